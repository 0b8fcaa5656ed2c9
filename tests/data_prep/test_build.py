"""The command line: an exit code, one sentence on stderr, and nothing half written."""

import errno
import io
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from data_prep import build, folder, synthetic
from unipt_jax.data import records, tokenizers
from unipt_jax.data.records import PersonRecord, Records

ROOT = pathlib.Path(__file__).parents[2]


def picture(value=0):
    out = io.BytesIO()
    Image.new("RGB", (4, 8), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture())
    (folder / "captions.csv").write_text(
        "path,caption,person_id,split\n"
        "a.png,a man in red,1,train\n"
        "b.png,a woman in blue,2,test\n"
    )
    return folder


@pytest.fixture
def run(capsys):
    """Runs a command; gives the exit code and what it printed."""

    def main(*args):
        code = build.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return main


def tree(path):
    """Everything below a folder, with its content."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def test_a_folder_is_built_from_the_shell(raw, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.build", "folder", "--raw", raw]
        + ["--out", tmp_path / "out", "--vocabulary", "40"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        f"{tmp_path / 'out'}: {{'train': 1, 'test': 1}}"
    )
    (record,) = Records(tmp_path / "out", "test", PersonRecord)
    assert record.captions == ("a woman in blue",)
    tokenizer = tokenizers.load(tmp_path / "out" / "tokenizer")
    rows, _ = tokenizer.encode(["a woman in red"], 32)
    assert tokenizer.backend.decode(rows[0]) == "a woman in red"


def test_a_mistake_ends_the_shell_command_with_one_and_one_sentence(raw, tmp_path):
    (raw / "a.png").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.build", "folder", "--raw", raw]
        + ["--out", tmp_path / "out"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"error: 1 pictures of {raw}/captions.csv are missing: a.png; mend them or "
        "take their rows out\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_check_reads_all_and_writes_nothing(raw, tmp_path, run):
    before = tree(tmp_path)
    code, out, err = run("folder", "--raw", raw, "--out", tmp_path / "o", "--check")
    assert (code, err) == (0, "")
    assert "train" in out and "test" in out
    assert tree(tmp_path) == before
    assert not (tmp_path / "o").exists()
    (raw / "b.png").write_bytes(b"no picture")
    code, _, err = run("folder", "--raw", raw, "--check")
    assert code == 1
    assert "not readable: b.png" in err


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["folder"], "no --raw"),
        (["folder", "--raw", "RAW"], "no --out"),
        (["folder", "--raw", "RAW", "--out", "RAW"], "exists already"),
        (["folder", "--raw", "RAW/none", "--out", "OUT"], "no RAW/none/captions.csv"),
        (["folder", "--raw", "RAW/a.png", "--out", "OUT"], "no RAW/a.png/captions.csv"),
        (["synthetic", "--out", "RAW"], "no record set at RAW"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_writes_nothing(
    raw, tmp_path, run, args, why
):
    def real(text):
        return text.replace("RAW", str(raw)).replace("OUT", str(tmp_path / "out"))

    before = tree(tmp_path)
    code, _, err = run(*map(real, args))
    assert code == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    assert real(why) in err
    assert tree(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_an_unknown_set_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit) as caught:
        build.main(["imagenet"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert all(name in said for name in build.SETS)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_a_refusal_of_the_system_is_one_sentence_and_leaves_nothing(
    raw, tmp_path, run, monkeypatch, number, why
):
    def fails(*args, **kwargs):
        raise OSError(number, os.strerror(number), "/data/out")

    monkeypatch.setattr(folder.tokenizers, "train", fails)
    args = ["--raw", raw, "--out", tmp_path / "out", "--vocabulary", "9"]
    code, _, err = run("folder", *args)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: /data/out: ") and why in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_an_error_that_is_nobodys_mistake_is_not_swallowed(raw, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(folder.tokenizers, "train", fails)
    with pytest.raises(OSError, match="broken disk"):
        build.main(
            ["folder", "--raw", str(raw), "--out", str(tmp_path / "out")]
            + ["--vocabulary", "9"]
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


@pytest.fixture
def drawn(monkeypatch):
    """Stands in for the drawing of the synthetic set; lists how it was called."""
    calls = []

    def stand_in(out, *, workers, **wanted):
        calls.append(wanted)
        people = [PersonRecord(picture(), str(i)) for i in range(3)]
        records.write_set(out, PersonRecord, {"train": people}, metadata=wanted)

    monkeypatch.setattr(synthetic, "build", stand_in)
    return calls


SMALL = ["--identities", "3", "--seed", "5", "--height", "8", "--width", "4"]


def test_the_synthetic_set_is_drawn_once_and_the_second_time_left_alone(
    drawn, tmp_path, run
):
    out = tmp_path / "set"
    code, said, _ = run("synthetic", "--out", out, *SMALL)
    assert (code, said) == (0, f"{out}: {{'train': 3}}\n")
    assert drawn == [{"identities": 3, "seed": 5, "height": 8, "width": 4}]
    before = tree(out)
    code, said, err = run("synthetic", "--out", out, *SMALL)
    assert (code, err) == (0, "")
    assert said == f"{out} is there already, as asked for: {{'train': 3}}\n"
    assert len(drawn) == 1
    assert tree(out) == before


@pytest.mark.parametrize("name", ["identities", "seed", "height", "width"])
def test_another_synthetic_set_in_its_place_is_refused(drawn, tmp_path, run, name):
    out = tmp_path / "set"
    run("synthetic", "--out", out, *SMALL)
    before = tree(out)
    code, _, err = run("synthetic", "--out", out, *SMALL, f"--{name}", "77")
    had = drawn[0][name]
    assert code == 1
    assert err.count("\n") == 1
    assert f"another synthetic set ({name}={had}, asked for 77)" in err
    assert tree(out) == before


def test_a_folder_set_is_not_taken_for_a_synthetic_one(drawn, raw, tmp_path, run):
    run("folder", "--raw", raw, "--out", tmp_path / "out")
    code, _, err = run("synthetic", "--out", tmp_path / "out", *SMALL)
    assert (code, drawn) == (1, [])
    assert "identities=None, asked for 3" in err


def test_the_synthetic_set_goes_to_data_synthetic_unless_told_otherwise(
    drawn, tmp_path, run, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run("synthetic", *SMALL)[0] == 0
    assert records.splits(tmp_path / "data" / "synthetic") == {"train": 3}


def test_an_output_below_a_file_is_one_sentence(raw, run):
    code, _, err = run("folder", "--raw", raw, "--out", raw / "a.png" / "set")
    assert code == 1
    assert str(raw / "a.png") in err


@pytest.mark.parametrize("size", ["-3", "8"])
def test_a_vocabulary_of_at_most_n_tokens_has_at_most_n_or_is_refused(
    raw, tmp_path, run, size
):
    args = ["--raw", raw, "--out", tmp_path / "out", "--vocabulary", size]
    code, _, err = run("folder", *args)
    if code:
        assert "vocabulary" in err
    else:
        assert len(tokenizers.load(tmp_path / "out" / "tokenizer")) <= int(size)
