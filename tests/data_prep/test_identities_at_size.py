"""CUHK-PEDES with all of its 40,206 images, and sets that several processes write."""

import json

import pytest
import trees

from data_prep import identities
from data_prep.entries import Counts, Published
from unipt_jax.data import records

SINGLES = frozenset({1369, 4116, 6116})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """As published, by either annotation file; every picture another small JPEG."""
    published = identities.KINDS["cuhk_pedes"].published
    raw = tmp_path_factory.mktemp("cuhk") / "raw"
    tree = trees.cuhk_pedes(raw, published, SINGLES, picture=trees.cheap)
    tree.write()
    tree.annotate("caption_all.json", split=False)
    return tree


def test_cuhk_pedes_at_its_true_size_is_as_published(whole):
    done = whole.check("--workers", 2)
    assert (done.code, done.problems()) == (0, [])
    rows = [line.split() for line in done.out.splitlines()]
    figures = {
        "train": ["34,054", "11,003", "68,126"],
        "val": ["3,078", "1,000", "6,158"],
        "test": ["3,074", "1,000", "6,156"],
        "all": ["40,206", "13,003", "80,440"],
    }
    for split, wanted in figures.items():
        assert [split, "0", *(w for n in wanted for w in (n, "of", n))] in rows
    # Nothing but what is so in the real one, too: none of the pictures is a copy.
    assert done.notes() == ["3 identities have one image: 1369, 4116, 6116"]


def test_its_annotation_without_splits_gives_the_same_splits(whole):
    kind = identities.KINDS["cuhk_pedes"]
    given = identities.read(kind, whole.raw)
    file = str(whole.raw / "caption_all.json")
    derived = identities.read(kind, whole.raw, annotation=file)
    assert derived.notes and not given.notes
    assert [(e.image_id, e.split, e.place) for e in derived.entries] == [
        (e.image_id, e.split, e.place) for e in given.entries
    ]


def test_a_folder_of_it_that_is_missing_is_one_problem(whole, tmp_path):
    """With the annotation that has no splits: two troubles that many users have."""
    (whole.raw / "imgs" / "CUHK01").rename(tmp_path / "away")
    file = whole.raw / "caption_all.json"
    try:
        done = whole.check("--annotations", file, "--workers", 2)
    finally:
        (tmp_path / "away").rename(whole.raw / "imgs" / "CUHK01")
    assert done.code == 1
    assert done.problems() == [
        "5,744 of 5,744 images of CUHK01 are missing, the whole folder"
    ]


@pytest.fixture
def few(tmp_path, monkeypatch):
    """RSTPReid with 320 images: enough that several processes share them."""
    counts = {"train": Counts(280, 56, 560), "val": Counts(20, 4, 40)}
    published = Published(counts | {"test": Counts(20, 4, 40)})
    tree = trees.rstp_reid(tmp_path / "raw", published)
    tree.publish(monkeypatch)
    return tree.write()


def files(folder):
    """Path -> content."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_set_has_the_same_bytes_whatever_the_workers(few, tmp_path):
    size = ["--height", 32, "--width", 16, "--shard-images", 30]
    bad = few.raw / "imgs" / few.images[100]
    bad.write_bytes(b"<html>")
    found = []
    for workers in (1, 2, 3):
        out = tmp_path / f"by {workers}"
        done = trees.run("rstp_reid", "--raw", few.raw, "--out", out, *size,
                         "--allow-missing", "--workers", workers)  # fmt: skip
        assert done.code == 0, done.error
        found.append(files(out))
    shards = [name for name in found[0] if ".array_record-" in name]
    assert len(shards) == 10 + 1 + 1  # of 279, 20 and 20 images
    assert found[0] == found[1] == found[2]


def test_the_records_are_the_same_whatever_the_shards(few, tmp_path):
    for images in (7, 100):
        out = tmp_path / f"by {images}"
        done = trees.run("rstp_reid", "--raw", few.raw, "--out", out,
                         "--shard-images", images, "--workers", 1)  # fmt: skip
        assert done.code == 0, done.error
        assert trees.read(out) == few.planted()
        splits = json.loads((out / "dataset_info.json").read_text())["splits"]
        lengths = {split["name"]: split["shardLengths"] for split in splits}
        assert lengths["val"] == (["7", "7", "6"] if images == 7 else ["20"])
    assert records.splits(out) == {"train": 280, "val": 20, "test": 20}
