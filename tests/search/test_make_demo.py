"""`make demo`: which of its steps are done again, with a Python that only notes them."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
DATA, RUNS = pathlib.Path("data/synthetic"), pathlib.Path("runs/quickstart")
PICTURES, EVALUATION = DATA / "pictures", RUNS / "finetune/evaluation.json"
INDEX = RUNS / "index/index.json"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Runs it where `files` were made, each later than those before; gives its steps."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("setup.cfg", "pyproject.toml", ".venv/bin/python"):
        file = pathlib.Path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('#!/bin/sh\necho "$@" >> steps\n')
        os.utime(file, (1, 1))
    pathlib.Path(".venv/bin/python").chmod(0o755)
    for name in ("ready", "ready-for-demo"):
        pathlib.Path(".venv", name).touch()

    def run(*files):
        for second, file in enumerate(files, 1000):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.mkdir() if file == PICTURES else file.touch()
            os.utime(file, (second, second))
        os.utime(".venv/ready", (2000, 2000))
        os.utime(".venv/ready-for-demo", (2001, 2001))
        subprocess.run(["make", "--silent", "demo"], check=True, capture_output=True)
        *before, last = pathlib.Path("steps").read_text().splitlines()
        assert "--config.serve=True" in last
        return [step.split()[1] for step in before], last.rsplit("=", 1)[1]

    return run


def test_what_is_newer_than_what_it_was_made_of_is_kept(demo):
    assert demo(DATA / "a.array_record", PICTURES, EVALUATION, INDEX) == ([], "False")


def test_a_model_that_was_trained_since_gets_a_new_index(demo):
    assert demo(DATA / "a.array_record", PICTURES, INDEX, EVALUATION) == ([], "True")


def test_persons_that_were_drawn_since_are_unpacked_anew(demo):
    made = demo(PICTURES, DATA / "a.array_record", EVALUATION, INDEX)
    assert made == (["data_prep.pictures"], "False") and not PICTURES.exists()


def test_the_first_time_all_is_made(demo):
    made = demo(DATA / "a.array_record")
    assert made == (["benchmarks.quickstart", "data_prep.pictures"], "True")
