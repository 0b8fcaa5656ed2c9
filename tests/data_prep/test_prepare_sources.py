"""Sources that move, vanish, or are read by several threads while a set is written."""

import concurrent.futures
import pathlib
import random

import pretrain_trees as trees
import pytest
from building import command, crops, here, refusal, tree

from data_prep import checks, prepare
from data_prep.raw import Place, Raw, Reader
from unipt_jax.data import images, records
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.data.shards import ShardedSet

FILES = {
    f"{k:03}.jpg": trees.picture(k) for k in random.Random(0).sample(range(90), 90)
}


def interrupted(monkeypatch, args, after):
    """Runs a build that is stopped after so many shards."""
    written = prepare.write_shard
    calls = []

    def write_shard(task):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(task)
        return written(task)

    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write_shard", write_shard)
        assert here(*args)[0] == 130


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip"])
def test_threads_that_share_an_archive_read_each_its_own_picture(tmp_path, kind):
    trees.pack(tmp_path / f"part{kind}", FILES)
    raw = Raw(tmp_path)
    places = dict(raw.images())
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda p: checks.read_image(raw.root, places[p]), places)
        for path, content in zip(places, read, strict=True):
            assert content == FILES[path.partition("/")[2]]


def test_an_archive_that_is_wound_is_not_wound_back(tmp_path, monkeypatch):
    """Annotations name its pictures in another order than they lie in it."""
    trees.pack(tmp_path / "raw" / "part.tar.gz", FILES)
    trees._dump(
        tmp_path / "raw" / "said.json",
        [{"file_path": path, "captions": ["A man."]} for path in sorted(FILES)],
    )
    at, back = [0], []
    read = Reader.read

    def watched(self, place):
        back.append(place.start < at[0])
        at[0] = place.start
        return read(self, place)

    monkeypatch.setattr(Reader, "read", watched)
    out = tmp_path / "out"
    assert here("luperson_t", "--raw", tmp_path / "raw", "--out", out)[0] == 0
    assert not any(back) and len(back) == len(FILES)
    made = list(Records(out, "pretrain", PersonRecord))
    assert {r.image_id: r.image for r in made} == FILES
    assert [r.image_id for r in made] == sorted(FILES)


def test_a_build_goes_on_where_its_source_has_moved_to(tmp_path, monkeypatch):
    raw = crops(tmp_path / "raw")
    assert here(*command(raw, tmp_path / "whole"))[0] == 0
    interrupted(monkeypatch, command(raw, tmp_path / "out"), after=3)
    raw = raw.rename(tmp_path / "moved")
    assert here(*command(raw, tmp_path / "out", "--allow-missing"))[0] == 0
    assert records.metadata(tmp_path / "out")["left_out"] == 0
    sets = [tree(tmp_path / name) for name in ("out", "whole")]
    assert sets[0].keys() == sets[1].keys()
    assert all(sets[0][n] == sets[1][n] for n in sets[0] if "array_record" in n)


def test_pictures_that_are_gone_meanwhile_are_not_left_out(tmp_path, monkeypatch):
    """As where a network drive is lost."""
    raw, write = crops(tmp_path / "raw"), prepare.write

    def gone(survey, *args, **kwargs):
        raw.rename(tmp_path / "gone")
        write(survey, *args, **kwargs)

    args = command(raw, tmp_path / "out", "--allow-missing")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "write", gone)
        assert "cannot be read now" in refusal(*args)
    (tmp_path / "gone").rename(raw)
    assert here(*args)[0] == 0
    assert records.metadata(tmp_path / "out")["left_out"] == 0


def test_a_picture_for_which_memory_is_short_is_not_left_out(tmp_path, monkeypatch):
    raw = crops(tmp_path / "raw", 3)

    def short(*args, **kwargs):
        raise MemoryError

    args = command(raw, tmp_path / "out", "--allow-missing")
    with monkeypatch.context() as patch:
        patch.setattr(images.Image.Image, "convert", short)
        patch.setattr(images, "_is_plain", lambda image: short())
        assert "memory" in refusal(*args)
    assert here(*args)[0] == 0
    assert records.metadata(tmp_path / "out")["left_out"] == 0


def test_shards_of_captions_that_were_begun_there_are_not_taken_in(tmp_path):
    raw, partial = crops(tmp_path / "raw", 9), tmp_path / "out.partial" / "set"
    other = ShardedSet(partial, CaptionRecord, "pretrain", 16)
    other.write(3, [CaptionRecord("a", ("b",))])
    assert here(*command(raw, tmp_path / "out"))[0] == 0
    assert len(list((tmp_path / "out").glob("*array_record*"))) == 2


def test_a_drawn_set_does_not_take_the_place_of_a_build_that_was_begun(
    tmp_path, monkeypatch
):
    raw, out = crops(tmp_path / "raw"), tmp_path / "out"
    interrupted(monkeypatch, command(raw, out), after=3)
    before = tree(tmp_path)
    said = refusal("synthetic", "--out", out, "--identities", 2)
    assert f"{out}.partial was left by a build of another set" in said
    assert tree(tmp_path) == before


def test_a_link_that_holds_annotations_is_not_passed_over(tmp_path):
    raw = tmp_path / "raw"
    trees._dump(raw / "one.json", {"a.jpg": "A man."})
    trees.loose(raw, {"a.jpg": FILES["000.jpg"]})
    trees._dump(tmp_path / "two.json", {"a.jpg": "The man wears a red coat."})
    args = ("luperson_mllm", "--raw", raw, "--check")
    (raw / "two.json").symlink_to(tmp_path / "two.json")
    assert f"{raw}/two.json is a link to {tmp_path}/two.json" in refusal(*args)
    (tmp_path / "two.json").unlink()
    assert f"{raw}/two.json is a link to nothing" in refusal(*args)


def test_a_folder_for_each_person_is_listed_in_linear_time(tmp_path):
    """All pictures have one of a few names; 100,000 pairs of them would be 10 s."""
    raw = Raw(tmp_path)
    paths = [f"{person}/{k}.jpg" for person in range(5_000) for k in range(4)]
    raw.files = {f"imgs/{path}": Place(f"imgs/{path}") for path in paths}
    assert raw.locate(paths) == list(raw.files.values())
    assert raw.starts == {"imgs/": len(paths)} and not raw.several


def test_paths_that_lie_in_several_places_are_told(tmp_path):
    raw = tmp_path / "raw"
    trees.loose(raw, {f"{where}/1.jpg": FILES["001.jpg"] for where in ("imgs", "old")})
    trees.loose(raw, {"imgs/2.jpg": FILES["002.jpg"]})
    pathlib.Path(raw / "captions.csv").write_text(
        "path,caption\n1.jpg,A man.\n2.jpg,A\n"
    )
    code, out, _ = here("folder", "--raw", raw, "--check")
    assert code == 0
    assert f"images lie in {raw}/imgs/ (2)\n" in out
    assert "note: 1 image lies in several places: imgs/1.jpg, not old/1.jpg\n" in out
