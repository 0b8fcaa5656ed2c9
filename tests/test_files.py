"""What is written is there whole, whoever else writes, and a folder is one process's."""

import fcntl
import os

import pytest
from etils import epath

from unipt_jax import rundir
from unipt_jax.data import shards
from unipt_jax.errors import UserError


def test_two_processes_may_write_one_file_at_once(tmp_path, monkeypatch):
    file = epath.Path(tmp_path / "results.json")
    real, own = type(file).replace, os.getpid()

    def replace(partial, target):
        if os.getpid() == own:  # the other one comes just before
            monkeypatch.setattr(os, "getpid", lambda: own + 1)
            rundir.write_json(file, ["other"])
        return real(partial, target)

    monkeypatch.setattr(type(file), "replace", replace)
    rundir.write_json(file, ["own"])
    assert file.read_text() == '[\n  "own"\n]'
    assert os.listdir(tmp_path) == ["results.json"]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    file = epath.Path(tmp_path / "results.html")
    rundir.write_text(file, "before")
    with pytest.raises(UnicodeEncodeError):
        rundir.write_text(file, "\udce9")
    assert os.listdir(tmp_path) == ["results.html"] and file.read_text() == "before"


def test_a_folder_is_held_by_a_lock_on_a_file_that_stays(tmp_path):
    """A lock on the folder itself is no other machine's to see."""
    with shards.alone(tmp_path, "wait"), open(tmp_path / "lock") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(UserError, match="^wait$"), shards.alone(tmp_path, "wait"):
            pass
    with shards.alone(tmp_path, "wait"):
        pass
    assert os.listdir(tmp_path) == ["lock"]
