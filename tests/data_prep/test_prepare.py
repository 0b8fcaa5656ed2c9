"""What a prepared set holds, and which command goes on with what another one left.
Kills and full disks are in test_prepare_kills.py."""

import hashlib
import json
import time

import building
import pytest
from building import command, here, names, refusal, there, tree

from data_prep import build, prepare
from unipt_jax.data import records, shards
from unipt_jax.data.records import UNKNOWN, PersonRecord, Records
from unipt_jax.errors import UserError

# --- what is written -----------------------------------------------------------------


def test_every_picture_is_there_in_the_order_of_the_paths(raw, whole):
    rows = list(Records(whole, "pretrain", PersonRecord))
    assert [r.image_id for r in rows] == sorted(tree(raw))
    for row in rows:
        assert row.image == (raw / row.image_id).read_bytes()
        assert (row.person_id, row.label, row.captions) == (UNKNOWN, UNKNOWN, ())
    info = json.loads((whole / shards.INFO).read_text())
    assert info["splits"][0]["shardLengths"] == ["7"] * 8 + ["4"]
    described = {"dataset_info.json", "features.json", "metadata.json"}
    assert len(names(whole)) == 9 + 3 and described < set(names(whole))
    assert names(whole.parent) == ["set"]


@pytest.mark.parametrize("workers", [2, 3])
def test_the_bytes_are_the_same_whatever_the_number_of_workers(
    raw, whole, tmp_path, workers
):
    out = tmp_path / "out"
    code, _, err = there(*command(raw, out, "--workers", workers), slow=True)
    assert (code, err) == (0, "")
    assert tree(out) == tree(whole)
    assert names(tmp_path) == ["out"]


def test_the_metadata_say_what_was_read_and_how_but_not_when(tmp_path):
    raw, rows = tmp_path / "raw", []
    for i in range(9):
        split = ("train", "train", "test")[i % 3]
        rows.append(
            [f"{i}.png", f"a man {i}", i // 3 if split == "train" else 7, split]
        )
        rows.append([f"{i}.png", f"a boy {i}", *rows[-1][2:]])
    building.write(raw, rows)
    (raw / "4.png").write_bytes(b"no picture")
    (raw / "8.png").unlink()
    args = ["folder", "--raw", raw, "--allow-missing", "--vocabulary", 60]
    for place in ("one", "two"):
        begun = time.time()
        assert here(*args, "--out", tmp_path / place)[0] == 0
        time.sleep(max(0, 1.1 - (time.time() - begun)))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    made = records.metadata(tmp_path / "one")
    csv = (raw / "captions.csv").read_bytes()
    assert made == {
        "set": "folder",
        "command": f"python -m data_prep.build folder --raw {raw} --vocabulary 60 "
        "--allow-missing",
        "version": build._version(),
        "counts": {
            "train": {"images": 5, "identities": 3, "captions": 10},
            "test": {"images": 2, "identities": 1, "captions": 4},
        },
        "images": prepare.Options().stored,
        "allow_missing": True,
        "notes": [],
        "sources": {
            "captions.csv": {
                "bytes": len(csv),
                "sha256": hashlib.sha256(csv).hexdigest(),
            }
        },
        "left_out": 2,
        "images_sha256": made["images_sha256"],
        "fingerprint": made["fingerprint"],
    }
    lines = (tmp_path / "one" / prepare.LEFT_OUT).read_text().splitlines()
    left = {row["image_id"]: row["why"] for row in map(json.loads, lines)}
    assert left.keys() == {"4.png", "8.png"} and left["8.png"] == "missing"


def test_the_digest_of_the_images_is_of_the_sources_bytes_in_order(raw, whole):
    of_all = hashlib.sha256()
    paths = sorted(tree(raw))
    for at in range(0, len(paths), 7):
        of_shard = hashlib.sha256()
        for path in paths[at : at + 7]:
            of_shard.update(hashlib.sha256((raw / path).read_bytes()).digest())
        of_all.update(of_shard.digest())
    assert records.metadata(whole)["images_sha256"] == of_all.hexdigest()


def test_labels_count_the_persons_of_each_split_from_0(tmp_path):
    persons = {"train": [900, 5, 33, 5, "", 900], "val": [34, 2], "test": [70, 60, 70]}
    rows = [
        [f"{split}{i}.png", "a man", person, split]
        for split, mine in persons.items()
        for i, person in enumerate(mine)
    ]
    building.write(tmp_path / "raw", rows)
    out = tmp_path / "out"
    args = ["folder", "--raw", tmp_path / "raw", "--out", out, "--shard-images", 2]
    assert here(*args)[0] == 0
    for split, mine in persons.items():
        found = list(Records(out, split, PersonRecord))
        known = sorted({p for p in mine if p != ""})
        assert [r.person_id for r in found] == [UNKNOWN if p == "" else p for p in mine]
        assert [r.label for r in found] == [
            UNKNOWN if p == "" else known.index(p) for p in mine
        ]
    wanted = {"train": ["2", "2", "2"], "val": ["2"], "test": ["2", "1"]}
    info = json.loads((out / shards.INFO).read_text())
    assert {s["name"]: s["shardLengths"] for s in info["splits"]} == wanted


def test_shards_hold_256_to_4096_images_and_are_64_where_that_allows():
    for count in (*range(1, 40_000), 2**18 - 1, 2**18, 2**18 + 1, 10**7):
        size = prepare.Options().images(count)
        number = -(-count // size)
        assert 256 <= size <= 4096
        assert number <= 64 or size == 4096
        assert size == 256 or number > 60
        assert prepare.Options(shard=7).images(count) == 7


@pytest.mark.parametrize(
    "wrong", [{"size": (7, 8)}, {"size": (8, 8193)}, {"quality": 0}, {"quality": 101}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="expected"):
        prepare.Options(**wrong)


# --- which command goes on -----------------------------------------------------------


@pytest.fixture
def begun(raw, tmp_path):
    """A tree of one's own, and a build of it that an unreadable picture ended."""
    mine = building.crops(tmp_path / "raw")
    whole = (mine / "part1" / "031.jpg").read_bytes()
    (mine / "part1" / "031.jpg").write_bytes(whole[:100])
    said = refusal(*command(mine, tmp_path / "out"))
    assert "1 image cannot be read: part1/031.jpg (" in said
    assert f"8 of 9 shards are kept in {tmp_path}/out.partial" in said
    assert "--allow-missing" in said
    (mine / "part1" / "031.jpg").write_bytes(whole)
    return mine


def test_the_same_command_goes_on_with_what_is_left(begun, whole, tmp_path):
    partial = tmp_path / "out.partial" / "set"
    before = {file: file.stat().st_ino for file in partial.glob("*.array_record*")}
    assert len(before) == 8
    assert here(*command(begun, tmp_path / "out"))[0] == 0
    assert names(tmp_path) == ["out", "raw"]
    for file, inode in before.items():
        assert (tmp_path / "out" / file.name).stat().st_ino == inode
    found, wanted = tree(tmp_path / "out"), tree(whole)
    own = {"metadata.json"}  # has the folder's name in its command
    assert {n: b for n, b in found.items() if n not in own} == {
        n: b for n, b in wanted.items() if n not in own
    }


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--height", 16, "--width", 8], "images as they are;"),
        (["--quality", 60], "JPEG of quality 95, now as they are; what is not"),
        (["--shard-images", 8], "--shard-images 7, now 8"),
    ],
)
def test_another_command_is_refused_and_nothing_is_lost(begun, tmp_path, options, why):
    before = tree(tmp_path)
    said = refusal(*command(begun, tmp_path / "out", *options))
    assert f"{tmp_path}/out.partial was left by a build of another set" in said
    assert why in said and "remove it, give the same command as then" in said
    assert tree(tmp_path) == before
    assert here(*command(begun, tmp_path / "out"))[0] == 0
    assert names(tmp_path) == ["out", "raw"]


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_another_tree_is_refused_and_nothing_is_lost(begun, tmp_path, change):
    image, other = begun / "part2" / "059.jpg", begun / "part2" / "060.jpg"
    if change == "added":
        building.picture(other, 1)
    else:
        image.rename(other if change == "renamed" else tmp_path / "kept.jpg")
    before = tree(tmp_path)
    said = refusal(*command(begun, tmp_path / "out"))
    assert "another set (other images or annotations)" in said
    assert tree(tmp_path) == before


def test_what_one_run_leaves_out_the_next_one_may_want(begun, tmp_path, monkeypatch):
    """Killed with --allow-missing before the end; then the picture is mended."""
    image = begun / "part1" / "031.jpg"
    right = image.read_bytes()
    image.write_bytes(right[:100])

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_finish", killed)
        assert here(*command(begun, tmp_path / "out", "--allow-missing"))[0] == 130
    image.write_bytes(right)
    assert here(*command(begun, tmp_path / "out"))[0] == 0
    rows = list(Records(tmp_path / "out", "pretrain", PersonRecord))
    assert [r.image_id for r in rows] == sorted(tree(begun))


def test_unreadable_pictures_to_pretrain_on_are_left_out_if_allowed(begun, tmp_path):
    (begun / "part1" / "031.jpg").write_bytes(b"")
    args = command(begun, tmp_path / "out")
    assert "1 image cannot be read: part1/031.jpg (" in refusal(*args)
    assert here(*args, "--allow-missing")[0] == 0
    rows = list(Records(tmp_path / "out", "pretrain", PersonRecord))
    assert [r.image_id for r in rows] == sorted(tree(begun).keys() - {"part1/031.jpg"})
    made = records.metadata(tmp_path / "out")
    assert made["left_out"] == 1 and made["counts"]["pretrain"]["images"] == 59
    (line,) = (tmp_path / "out" / prepare.LEFT_OUT).read_text().splitlines()
    assert json.loads(line)["image_id"] == "part1/031.jpg"


def test_a_set_that_is_there_is_left_as_it_is_with_resume_and_refused_without(
    raw, whole
):
    before = tree(whole.parent)
    code, out, err = here(*command(raw, whole, "--resume", "--workers", 2))
    assert (code, err) == (0, "")
    assert out == f"{whole} is there already, as asked for: {{'pretrain': 60}}\n"
    assert f"{whole} exists already; remove it" in refusal(*command(raw, whole))
    said = refusal(*command(raw, whole, "--resume", "--quality", 60))
    assert f"{whole} holds another set, made by `python -m data_prep.build lup" in said
    assert tree(whole.parent) == before


def test_resume_without_a_set_builds_one(raw, whole, tmp_path):
    assert here(*command(raw, tmp_path / "out", "--resume"))[0] == 0
    assert tree(tmp_path / "out") == tree(whole)


def test_a_set_that_another_process_wrote_meanwhile_is_left_as_it_is(
    raw, whole, tmp_path, monkeypatch
):
    checked, out = build._checked, tmp_path / "out"

    def slowly(*args):
        with monkeypatch.context() as patch:
            patch.setattr(build, "_checked", checked)
            assert here(*command(raw, out))[0] == 0
        return checked(*args)

    monkeypatch.setattr(build, "_checked", slowly)
    assert f"{out} has been written by another process" in refusal(*command(raw, out))
    assert tree(out) == tree(whole)
    assert names(tmp_path) == ["out"]
