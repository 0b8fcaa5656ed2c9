"""CUHK-PEDES, ICFG-PEDES, RSTPReid: what comes out of a set that is as it should be, in
whatever way it lies on disk, and where the splits come from."""

import json
import os
import random
import subprocess
import sys

import pytest
import trees

from data_prep import identities
from unipt_jax.data import records

SETS = list(trees.MAKERS)
FINE = "nothing stands in the way of training\n"


# --- a set that is whole -------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "images", "persons", "captions"),
    [
        ("cuhk_pedes", [34_054, 3_078, 3_074], [11_003, 1_000, 1_000], 80_440),
        ("icfg_pedes", [34_674, 19_848], [3_102, 1_000], 54_522),
        ("rstp_reid", [18_505, 1_000, 1_000], [3_701, 200, 200], 41_010),
    ],
)
def test_published_counts_are_those_of_the_method(name, images, persons, captions):
    published = identities.KINDS[name].published
    assert [s.images for s in published.splits.values()] == images
    assert [s.identities for s in published.splits.values()] == persons
    assert published.total == (sum(images), sum(persons), captions)
    sums = {"cuhk_pedes": (40_206, 13_003), "icfg_pedes": (54_522, 4_102)}
    sums["rstp_reid"] = (20_505, 4_101)
    assert published.total[:2] == sums[name]
    assert published.first_id == (1 if name == "cuhk_pedes" else 0)
    others = {"cuhk_pedes": ((), (80_412,)), "icfg_pedes": ((54_521,), (54_521,))}
    assert (published.images, published.captions) == others.get(name, ((), ()))


@pytest.mark.parametrize("name", SETS)
def test_a_whole_set_passes_the_check_with_all_its_counts(make, name):
    tree = make(name).write()
    before = sorted(tree.raw.parent.rglob("*"))
    done = tree.check()
    assert (done.code, done.problems()) == (0, [])
    assert done.out.endswith(FINE)
    rows = [line.split() for line in done.out.splitlines()]
    wanted = {**tree.published.splits, "all": tree.published.total}
    for split, counts in wanted.items():
        found = [word for n in counts for word in (str(n), "of", str(n))]
        assert [split, "0", *found] in rows
    assert sorted(tree.raw.parent.rglob("*")) == before  # nothing is written


def test_the_counts_printed_are_these(make):
    """In figures, lest the tree and the tool be wrong alike."""
    rows = [
        line.split() for line in make("cuhk_pedes").write().check().out.splitlines()
    ]
    assert ["train", "0", "13", "of", "13", "7", "of", "7", "28", "of", "28"] in rows
    assert ["all", "0", "21", "of", "21", "11", "of", "11", "44", "of", "44"] in rows


@pytest.mark.parametrize("name", SETS)
def test_records_hold_what_the_annotation_says_in_its_order(make, name):
    tree = make(name)
    random.Random(0).shuffle(tree.entries)  # splits mixed, identities in no order
    found = tree.write().built()
    assert found == tree.planted()
    train = found["train"]
    persons = tree.published.splits["train"].identities
    assert {r.label for r in train} == set(range(persons))
    assert all(r.attributes == {} for r in train)
    ids = [r.image_id for some in found.values() for r in some]
    assert sorted(ids) == sorted(tree.images)
    assert len(set(ids)) == len(ids)


def test_metadata_says_what_the_set_was_made_of(make):
    tree = make("icfg_pedes").write()
    tree.built()
    meta = records.metadata(tree.out)
    assert meta["set"] == "icfg_pedes"
    assert meta["counts"] == {
        "train": {"images": 12, "identities": 4, "captions": 12},
        "test": {"images": 6, "identities": 2, "captions": 6},
    }
    assert meta["counts"] == meta["published"]
    assert (meta["left_out"], meta["allow_missing"]) == (0, False)
    assert list(meta["sources"]) == ["ICFG-PEDES.json"]
    size = (tree.raw / "ICFG-PEDES.json").stat().st_size
    assert meta["sources"]["ICFG-PEDES.json"]["bytes"] == size
    assert f"--raw {tree.raw}" in meta["command"]


def test_a_set_opens_with_plain_tfds_where_tensorflow_cannot_be_imported(
    make, tmp_path
):
    tree = make("rstp_reid").write()
    tree.built()
    out = tree.out
    code = f"""
import json
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(out)!r})
rows = [row for split in ("train", "val", "test")
        for row in builder.as_data_source(split)]
print(json.dumps([[int(row["person_id"]), row["image_id"].decode(),
                   list(row["image"].shape)] for row in rows]))
"""
    (tmp_path / "tensorflow.py").write_text("raise ImportError('no TensorFlow here')")
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    wanted = [[e["id"], e["img_path"], [48, 24, 3]] for e in tree.entries]
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


# --- how it lies on disk -------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"images": ""}, id="directly below raw"),
        pytest.param({"images": "CUHK-PEDES/imgs"}, id="one folder deeper"),
        pytest.param({"images": "a/b/c"}, id="under other names"),
        pytest.param({"images": "imgs.zip"}, id="in a zip"),
        pytest.param({"images": "download/imgs.tar"}, id="in a tar"),
        pytest.param({"bom": True}, id="a byte order mark"),
        pytest.param({"backslashes": True}, id="backslashes"),
        pytest.param({"text_ids": True}, id="ids as text"),
        pytest.param({"paths": "img_path"}, id="img_path"),
        pytest.param({"paths": "file_path"}, id="file_path"),
        pytest.param({"prefix": "./"}, id="dot slash"),
    ],
)
def test_the_records_are_the_same_however_the_set_lies_on_disk(make, name, options):
    tree = make(name).write(**options)
    assert tree.built() == tree.planted()
    assert tree.check().problems() == []


def test_folders_that_lie_elsewhere_are_found(make):
    tree = make("cuhk_pedes")
    tree.write(elsewhere={"Market": "Market-1501", "cam_a": "", "cam_b": "x/y.tar/z"})
    assert tree.built() == tree.planted()


def test_folders_in_archives_of_their_own_are_found(make):
    tree = make("cuhk_pedes")
    tree.write(without=lambda path: path.startswith(("Market/", "CUHK01/")))
    for folder, name in (("Market", "imgs/Market.zip"), ("CUHK01", "CUHK01.tar")):
        mine = [path for path in tree.images if path.startswith(f"{folder}/")]
        files = {path: tree.encoded(path) for path in mine}
        trees.pack(tree.raw / name, files)
    assert tree.built() == tree.planted()


def test_plain_captions_are_one_caption_each(make):
    tree = make("rstp_reid").write(plain_captions=True)
    found = tree.built("--allow-missing")  # half of the captions are gone
    for entry, record in zip(tree.of("train"), found["train"], strict=True):
        assert record.captions == (entry["captions"][0],)
    assert tree.check().problems()[0] == (
        "train is not as published: captions 15 of 30"
    )


def test_spaces_and_line_ends_in_captions_become_single_spaces(make):
    tree = make("icfg_pedes")
    tree.entries[0]["captions"] = ["  A man\tin\n red.  "]
    assert tree.write().built()["train"][0].captions == ("A man in red.",)


@pytest.mark.parametrize("below", ["annotations", "CUHK-PEDES/data"])
def test_an_annotation_up_to_two_folders_below_is_found(make, below):
    tree = make("cuhk_pedes")
    tree.illustrate()
    file = tree.annotate(f"{below}/reid_raw.json")
    done = tree.check()
    assert done.code == 0
    assert f"by {file}\n" in done.out


def test_the_nearest_annotation_is_taken(make):
    tree = make("rstp_reid").write()
    (tree.raw / "old").mkdir()
    (tree.raw / "old" / "data_captions.json").write_text("[]")
    assert tree.check().code == 0


def test_icfg_pedes_has_either_name(make):
    tree = make("icfg_pedes")
    tree.illustrate()
    tree.annotate("ICFG_PEDES.json")
    assert tree.built() == tree.planted()


@pytest.mark.parametrize("name", SETS)
def test_an_annotation_of_another_name_is_named_by_the_user(make, name, tmp_path):
    tree = make(name)
    tree.illustrate()
    file = tree.annotate(tmp_path / "mine" / "my captions.json")
    done = tree.check()
    assert done.code == 1
    assert done.error.startswith(f"no annotation of {name} in {tree.raw}: expected ")
    assert tree.file in done.error and "--annotations FILE" in done.error
    assert tree.built("--annotations", file) == tree.planted()


def test_an_annotation_that_is_not_there_says_what_json_there_is(make):
    tree = make("rstp_reid")
    tree.illustrate()
    tree.annotate("rstp.json")
    assert "(there is rstp.json)" in tree.check().error


def test_a_named_annotation_that_is_not_there_is_refused_by_name(make):
    tree = make("rstp_reid").write()
    done = tree.check("--annotations", tree.raw / "none.json")
    assert done.code == 1
    assert done.error.startswith(f"{tree.raw / 'none.json'} is not there")


def test_a_linked_folder_inside_raw_is_followed(make):
    tree = make("cuhk_pedes").write(elsewhere={"Market": "store"})
    (tree.raw / "imgs" / "Market").symlink_to(tree.raw / "store" / "Market")
    (tree.raw / "all").symlink_to("imgs")
    assert tree.built() == tree.planted()


def test_linked_images_inside_raw_are_read(make):
    tree = make("rstp_reid").write()
    (tree.raw / "store").mkdir()
    for path in tree.images:
        image = tree.raw / "imgs" / path
        image.rename(tree.raw / "store" / f"_{path}")
        image.symlink_to(f"../store/_{path}")
    assert tree.built() == tree.planted()


@pytest.mark.parametrize("what", ["imgs/Market", "imgs"])
def test_a_linked_folder_out_of_raw_is_refused_by_name(make, tmp_path, what):
    tree = make("cuhk_pedes").write()
    (tree.raw / what).rename(tmp_path / "away")
    (tree.raw / what).symlink_to(tmp_path / "away")
    done = tree.check()
    assert done.code == 1
    assert f"{tree.raw}/{what} is a link to {tmp_path}/away, outside" in done.error


def test_a_linked_image_out_of_raw_is_refused_by_name(make, tmp_path):
    tree = make("rstp_reid").write()
    image = tree.raw / "imgs" / tree.images[3]
    image.rename(tmp_path / "away.jpg")
    image.symlink_to(tmp_path / "away.jpg")
    done = tree.check()
    assert done.code == 1
    assert f"{image} is a link to {tmp_path}/away.jpg, outside" in done.error


def test_raw_itself_may_be_a_link(make, tmp_path):
    tree = make("icfg_pedes").write()
    (tmp_path / "link").symlink_to(tree.raw)
    tree.raw = tmp_path / "link"
    assert tree.built() == tree.planted()
