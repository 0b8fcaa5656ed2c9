"""The command line: an exit code, one sentence on stderr, and nothing half written."""

import errno
import json
import os
import re

import building
import pytest
from building import here, refusal, there, tree

from data_prep import build, synthetic
from unipt_jax.data import records, tokenizers
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    for value, name in enumerate(("a.png", "b.png")):
        building.picture(folder / name, value, size=(16, 32))
    (folder / "captions.csv").write_text(
        "path,caption,person_id,split\n"
        "a.png,a man in red,1,train\n"
        "b.png,a woman in blue,2,test\n"
    )
    return folder


# --- what is written -----------------------------------------------------------------


def test_a_folder_is_built_from_the_shell(raw, tmp_path):
    out = tmp_path / "out"
    code, said, err = there("folder", "--raw", raw, "--out", out, "--vocabulary", 40)
    assert (code, err) == (0, "")
    assert said.splitlines()[-1] == f"{out}: {{'train': 1, 'test': 1}}"
    (record,) = Records(out, "test", PersonRecord)
    assert record.captions == ("a woman in blue",)
    tokenizer = tokenizers.load(out / "tokenizer")
    rows, _ = tokenizer.encode(["a woman in red"], 32)
    assert tokenizer.backend.decode(rows[0]) == "a woman in red"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]


def test_a_mistake_ends_the_shell_command_with_one_and_one_sentence(raw, tmp_path):
    (raw / "a.png").unlink()
    code, out, err = there("folder", "--raw", raw, "--out", tmp_path / "out")
    assert code == 1
    assert "PROBLEM: 1 of 2 images of . is missing: a.png\n" in out
    assert err == (
        f"error: {raw}: 1 problem, see above: training would suffer; mend them, or go "
        "on without what is missing with --allow-missing\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_check_reads_all_and_writes_nothing(raw, tmp_path):
    before = tree(tmp_path)
    args = ["folder", "--raw", raw, "--check"]
    code, out, err = here(*args, "--out", tmp_path / "o")
    assert (code, err) == (0, "")
    assert "train" in out and "test" in out
    assert "nothing stands in the way of training" in out
    (raw / "b.png").write_bytes(b"no picture")
    assert "1 problem" in refusal(*args)
    assert "PROBLEM: 1 image cannot be read: b.png (" in here(*args)[1]
    code, out, _ = here(*args, "--allow-missing")
    assert code == 1 and "PROBLEM: 1 image cannot be read" in out  # all of test
    (raw / "captions.csv").write_text("path,caption\na.png,a man\nb.png,a woman\n")
    code, out, _ = here(*args, "--allow-missing")
    assert code == 0 and "PROBLEM: 1 image cannot be read" in out
    for name in ("b.png", "captions.csv"):
        (raw / name).write_bytes(before[f"raw/{name}"])
    assert tree(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_images_are_stored_at_the_size_and_quality_asked_for(raw, tmp_path):
    args = ["folder", "--raw", raw, "--height", 24, "--width", 8]
    assert here(*args, "--out", tmp_path / "fine")[0] == 0
    assert here(*args, "--out", tmp_path / "coarse", "--quality", 5)[0] == 0
    for name, quality in (("fine", 95), ("coarse", 5)):
        (record,) = Records(tmp_path / name, "train", PersonRecord)
        assert build.prepare.images.size(record.image) == (24, 8)
        wanted = build.prepare.images.as_stored(
            (raw / "a.png").read_bytes(), (24, 8), quality=quality
        )
        assert record.image == wanted
        made = records.metadata(tmp_path / name)
        assert (made["height"], made["width"]) == (24, 8)
        assert f"JPEG of quality {quality}" in made["images"]


def test_the_command_is_kept_as_far_as_it_decides_what_is_written(raw, tmp_path):
    words = ["--raw", raw, "--out", tmp_path / "out", "--workers", 1, "--resume"]
    more = ["--annotations", raw / "captions.csv", "--allow-missing"]
    assert here("folder", *words, *more, "--shard-images", 3)[0] == 0
    assert records.metadata(tmp_path / "out")["command"] == (
        f"python -m data_prep.build folder --raw {raw} --annotations "
        f"{raw}/captions.csv --shard-images 3 --allow-missing"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("raw", "x"),
        ("annotations", "x"),
        ("splits", "x"),
        ("records", "x"),
        ("height", 300),
        ("width", 300),
        ("quality", 50),
        ("shard_images", 5),
        ("vocabulary", 50),
        ("allow_missing", True),
    ],
)
def test_what_decides_is_in_the_command_and_the_rest_is_not(option, value):
    """Every flag is here, or listed below."""
    idle = {"help", "set", "out", "check", "workers", "resume", "tokenizer"}
    idle |= {"text_length", "beam", "peek", "identities", "seed"}
    all_there_are = {action.dest for action in build.parser()._actions}
    assert all_there_are == idle | build.DECISIVE.keys()
    args = build.parser().parse_args(["folder"])
    plain = build.command(args)
    setattr(args, option, value)
    assert build.command(args) != plain


def test_the_tokenizer_and_length_asked_for_say_which_captions_are_cut(raw, tmp_path):
    assert (
        here("folder", "--raw", raw, "--out", tmp_path / "o", "--vocabulary", 60)[0]
        == 0
    )
    check = ["folder", "--raw", raw, "--check", "--text-length"]
    tokenizer = ["--tokenizer", tmp_path / "o" / "tokenizer"]
    assert "longer than" not in here(*check, 7)[1]
    code, out, _ = here(*check, 5)  # four words, and two tokens around them
    assert code == 0
    assert "note: 2 captions are longer than 5 words and marks alone" in out
    assert "note: 2 captions are longer than 5 tokens" in here(*check, 5, *tokenizer)[1]


def test_captions_alone_are_written_for_records_that_are_there(raw, tmp_path):
    building.picture(raw / "c.png", 7)
    (raw / "captions.csv").rename(tmp_path / "captions.csv")
    assert here("folder", "--raw", raw, "--out", tmp_path / "images")[0] == 0
    for image in raw.glob("*.png"):
        image.unlink()
    (tmp_path / "captions.csv").rename(raw / "captions.csv")
    args = ["folder", "--raw", raw, "--records", tmp_path / "images"]
    code, said, err = here(*args, "--out", tmp_path / "captions")
    assert (code, "error" in err) == (0, False)
    assert "2 of 3 images" in said and "0 captioned images are not in it" in said
    rows = list(Records(tmp_path / "captions", "pretrain", CaptionRecord))
    assert [r.captions for r in rows] == [("a man in red",), ("a woman in blue",), ()]
    assert not (tmp_path / "captions.partial").exists()
    assert "exists already" in refusal(*args, "--out", tmp_path / "captions")
    said = refusal(*args[:-1], tmp_path / "none", "--out", tmp_path / "other")
    assert f"no record set at {tmp_path / 'none'}" in said


def test_a_page_is_written_with_the_set_or_of_one_that_is_there(raw, tmp_path):
    args = ["folder", "--out", tmp_path / "out", "--peek"]
    assert here(*args, tmp_path / "a.html", "--raw", raw)[0] == 0
    assert here(*args, tmp_path / "b" / "b.html")[0] == 0
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b" / "b.html").read_text()
    assert "a man in red" in page
    assert "is a folder; give a file" in refusal(*args, tmp_path)
    args[2] = tmp_path / "none"
    assert f"no record set at {tmp_path / 'none'}" in refusal(
        *args, tmp_path / "c.html"
    )


def test_a_home_folder_may_be_written_as_a_tilde(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert here("folder", "--raw", "~/raw", "--out", "~/out")[0] == 0
    assert records.splits(tmp_path / "out") == {"train": 1, "test": 1}


# --- what is refused -----------------------------------------------------------------

TO = ["--raw", "RAW", "--out", "OUT"]


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["folder"], "no --raw: give the folder that holds folder"),
        (["folder", "--check"], "no --raw"),
        (["folder", "--raw", "RAW"], "no --out: give the folder to write"),
        (["folder", "--raw", "RAW", "--out", "RAW"], "RAW exists already; remove it"),
        (
            ["folder", "--raw", "RAW", "--out", "RAW", "--resume"],
            "no record set at RAW",
        ),
        (
            ["folder", "--raw", "RAW/none", "--out", "OUT"],
            "--raw RAW/none is not there",
        ),
        (["folder", "--raw", "RAW/a.png", "--out", "OUT"], "--raw RAW/a.png is a file"),
        (["folder", "--raw", "gs://b/x", "--out", "OUT"], "--raw gs://b/x: a bucket"),
        (["folder", "--raw", "RAW", "--out", "s3://b/x"], "--out s3://b/x: a bucket"),
        (["folder", *TO, "--height", "384"], "--height and --width go together"),
        (["folder", *TO, "--width", "384"], "--height and --width go together"),
        (["folder", *TO, "--height", "7", "--width", "9"], "--height 7 --width 9: exp"),
        (["folder", *TO, "--height", "9999", "--width", "9"], "expected 8 to 8192"),
        (["folder", *TO, "--workers", "0"], "--workers 0: expected 1 or more"),
        (["folder", *TO, "--workers", "-2"], "--workers -2: expected 1 or more"),
        (["folder", *TO, "--shard-images", "-1"], "--shard-images -1: expected 1"),
        (["folder", *TO, "--vocabulary", "-1"], "--vocabulary -1: expected 1 or more"),
        (["folder", *TO, "--vocabulary", "8"], "a vocabulary of 8 tokens is too small"),
        (["folder", *TO, "--text-length", "0"], "--text-length 0: expected 1 or more"),
        (["folder", *TO, "--quality", "0"], "--quality 0: expected 1 to 100"),
        (["folder", *TO, "--quality", "101"], "--quality 101: expected 1 to 100"),
        (["folder", *TO, "--annotations", "RAW/x.csv"], "RAW/x.csv is not there"),
        (["folder", *TO, "--annotations", "RAW"], "RAW is not there, or no file"),
        (["folder", *TO, "--tokenizer", "RAW"], "no tokenizer in RAW"),
        (["folder", *TO, "--tokenizer", "RAW/none"], "RAW/none"),
        (["folder", *TO, "--records", "RAW"], "no record set at RAW"),
        (["folder", *TO, "--records", "RAW", "--check"], "--check looks at images"),
        (
            ["folder", "--raw", "RAW/a.png/x", "--out", "OUT"],
            "RAW/a.png/x is not there",
        ),
        (["folder", "--raw", "RAW", "--out", "RAW/a.png/x"], "RAW/a.png"),
        (["cuhk_pedes", *TO, "--splits", "RAW/x.json"], "RAW"),
        (["folder", "--out", "OUT", "--peek", "OUT.html"], "no record set at OUT"),
        (["synthetic", "--out", "RAW"], "no record set at RAW"),
        (["synthetic", "--raw", "RAW", "--out", "OUT"], "leave --raw out"),
        (["synthetic", "--check", "--out", "OUT"], "leave --check out"),
        (["synthetic", "--vocabulary", "9", "--out", "OUT"], "leave --vocabulary out"),
        (["synthetic", "--identities", "0", "--out", "OUT"], "identities 0"),
        (["synthetic", "--workers", "0", "--out", "OUT"], "--workers 0: expected 1"),
        (["synthetic", "--height", "3", "--out", "OUT"], "16x8 pixels or more"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_writes_nothing(raw, tmp_path, args, why):
    def real(text):
        return text.replace("RAW", str(raw)).replace("OUT", str(tmp_path / "out"))

    before = tree(tmp_path)
    said = refusal(*map(real, args))
    assert real(why) in said and len(said) < 500
    assert tree(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_splits_that_are_not_there_or_do_not_fit_are_one_sentence(raw, tmp_path):
    rows = [{"file_path": "a.png", "captions": ["a man"], "id": 1}]
    (raw / "reid_raw.json").write_text(json.dumps(rows))
    args = ["cuhk_pedes", "--raw", raw, "--out", tmp_path / "out", "--splits"]
    assert f"{raw}/none.json" in refusal(*args, raw / "none.json")
    for content in ("", "[]", "{}", '{"a.png": "dev"}', '{"train": 3}'):
        (raw / "splits.json").write_text(content)
        assert str(raw / "splits.json") in refusal(*args, raw / "splits.json")
    assert not list(tmp_path.glob("out*"))


def test_a_vocabulary_without_captions_is_refused_before_anything_is_written(
    raw, tmp_path
):
    (raw / "captions.csv").unlink()
    args = ["--raw", raw, "--out", tmp_path / "out", "--vocabulary", "99"]
    assert "--vocabulary: there are no captions" in refusal("folder", *args)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


@pytest.mark.parametrize(
    "args", [["imagenet"], [], ["folder", "--height", "x"], ["folder", "--none"]]
)
def test_what_is_no_command_is_refused_with_those_there_are(capsys, args):
    with pytest.raises(SystemExit) as caught:
        build.main(args)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in build.SETS)


def test_every_flag_has_its_help(capsys):
    with pytest.raises(SystemExit) as caught:
        build.main(["--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for action in build.parser()._actions:
        assert action.help or action.dest == "seed"
        assert all(option in said for option in action.option_strings)
    assert re.search(r'--beam OPTIONS run on Apache Beam: "--runner', said)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
@pytest.mark.parametrize("where", ["train", "_finish"])
def test_a_refusal_of_the_system_is_one_sentence_and_the_command_goes_on(
    raw, tmp_path, monkeypatch, number, why, where
):
    def fails(*args, **kwargs):
        raise OSError(number, os.strerror(number), "/data/out")

    args = ["folder", "--raw", raw, "--out", tmp_path / "out", "--vocabulary", "50"]
    with monkeypatch.context() as patch:
        patch.setattr(
            build.tokenizers if where == "train" else build.prepare, where, fails
        )
        said = refusal(*args)
    assert said.startswith("/data/out: ") and why in said
    left = ["out.partial", "raw"] if where == "_finish" else ["raw"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    assert here(*args)[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]


def test_an_error_that_is_nobodys_mistake_is_not_swallowed(raw, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(build.tokenizers, "train", fails)
    with pytest.raises(OSError, match="broken disk"):
        here("folder", "--raw", raw, "--out", tmp_path / "out", "--vocabulary", "9")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


# --- the synthetic set ---------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch, raw):
    """Stands in for the drawing of the synthetic set; lists how it was called."""
    calls = []

    def stand_in(out, *, workers, **wanted):
        calls.append(wanted)
        image = (raw / "a.png").read_bytes()
        people = [PersonRecord(image, str(i)) for i in range(3)]
        records.write_set(out, PersonRecord, {"train": people}, metadata=wanted)

    monkeypatch.setattr(synthetic, "build", stand_in)
    return calls


SMALL = ["--identities", "3", "--seed", "5", "--height", "8", "--width", "4"]


def test_the_synthetic_set_is_drawn_once_and_the_second_time_left_alone(
    drawn, tmp_path
):
    out = tmp_path / "set"
    code, said, _ = here("synthetic", "--out", out, *SMALL)
    assert (code, said) == (0, f"{out}: {{'train': 3}}\n")
    assert drawn == [{"identities": 3, "seed": 5, "height": 8, "width": 4}]
    before = tree(out)
    code, said, err = here("synthetic", "--out", out, *SMALL)
    assert (code, err) == (0, "")
    assert said == f"{out} is there already, as asked for: {{'train': 3}}\n"
    assert len(drawn) == 1
    assert tree(out) == before


@pytest.mark.parametrize("name", ["identities", "seed", "height", "width"])
def test_another_synthetic_set_in_its_place_is_refused(drawn, tmp_path, name):
    out = tmp_path / "set"
    here("synthetic", "--out", out, *SMALL)
    before = tree(out)
    said = refusal("synthetic", "--out", out, *SMALL, f"--{name}", "77")
    assert f"another synthetic set ({name}={drawn[0][name]}, asked for 77)" in said
    assert tree(out) == before


def test_a_folder_set_is_not_taken_for_a_synthetic_one(drawn, raw, tmp_path):
    here("folder", "--raw", raw, "--out", tmp_path / "out")
    said = refusal("synthetic", "--out", tmp_path / "out", *SMALL)
    assert drawn == []
    assert "identities=None, asked for 3" in said


def test_the_synthetic_set_goes_to_data_synthetic_unless_told_otherwise(
    drawn, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert here("synthetic", *SMALL)[0] == 0
    assert records.splits(tmp_path / "data" / "synthetic") == {"train": 3}
