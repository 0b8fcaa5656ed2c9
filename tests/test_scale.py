"""A run is the same on every layout, and moves from one to the next.

Dropout, masks, flips and shifts are on. What test_train and test_finetune leave out: the
towers by parts, losses in tiles whose texts travel between processes, SigLIP's loss, two
processes that fine-tune, parameters shared between processes.
"""

import pathlib
import shutil
import signal
import sys
from unittest import mock

import finetuning
import jobs
import numpy as np
import pytest

from unipt_jax import loop, report
from unipt_jax.errors import Stopped

SMALL = (
    *(
        f"--config.model.{t}.{field}"
        for t in ("image", "text")
        for field in finetuning.TOWER
    ),
    "--config.model.text.attention_dropout=0.1",
    "--config.model.embedding=16",
    "--config.every.save=3",
    "--config.keep=9",
)
# On 8 devices a device has two pairs: it sees its own and then all others' in tiles of 1.
PARTS = ("--config.memory.micro_batch=8", "--config.memory.chunk=1")


def train(launcher, workdir, *more: str, devices: int = 1) -> tuple[int, str]:
    """9 steps of pre-training with both losses of all pairs, and MLM."""
    flags = launcher.arguments(workdir, *both(*more))
    return finetuning.here(*flags[flags.index("unipt_jax.main") + 1 :], devices=devices)


def both(*more: str) -> tuple[str, ...]:
    sigmoid = ("--config.loss.sigmoid=0.3", "--config.model.bias=learned")
    return *SMALL, *sigmoid, "--config.steps=9", *more


def figures(run) -> list[dict[str, float]]:
    """All that the rows say but how fast the steps were."""
    rows = finetuning.rows(run)
    return [{k: v for k, v in r.items() if k not in report.SPEED} for r in rows]


def assert_agree(run, whole) -> None:
    """All figures of all steps."""
    found, wanted = figures(run), figures(whole)
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    for row, expected in zip(found, wanted, strict=True):
        # float32 sums in another order, a few roundings (6e-8) off
        assert row == pytest.approx(expected, rel=3e-6)


def end(processes) -> list[str]:
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def stop_at(step: int):
    """A SIGTERM in that step."""
    at = loop._Interrupt.at

    def asked(self, done: int) -> bool:
        if done == step:
            signal.raise_signal(signal.SIGTERM)
        return at(self, done)

    return mock.patch.object(loop._Interrupt, "at", asked)


def as_killed(run: pathlib.Path, copy: pathlib.Path, step: int) -> None:
    """A copy of a run that was killed before its second save: rows lie behind it."""
    shutil.copytree(run, copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        if checkpoint.name.isdigit() and int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)


@pytest.fixture(scope="module")
def undisturbed(launcher, tmp_path_factory):
    """Pre-trained on one device, the whole batch at once."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = train(launcher, run)
    assert code == 0, output
    return run


@pytest.mark.slow
def test_a_run_moves_from_1_device_to_8_to_2_processes_and_is_the_same(
    undisturbed, launcher, tmp_path
):
    run = tmp_path / "run"
    as_killed(undisturbed, run, step=3)
    flags = ("--config.mesh.data=2", "--config.mesh.fsdp=4", *PARTS)
    with stop_at(5):
        code, output = train(launcher, run, *flags, devices=8)
    assert code == Stopped.CODE and "resumes after step 3" in output, output
    assert [row["step"] for row in figures(run)] == [1, 2, 3, 4, 5]
    # Parameters, too, are shared by both processes.
    flags = both("--config.mesh.fsdp=4", *PARTS)
    said = end(launcher.start_two(run, *flags, devices=2))
    assert "resumes after step 5" in said[0], said[0]
    assert_agree(run, undisturbed)
    moved = finetuning.params_of(run, "9")
    wanted = finetuning.params_of(undisturbed, "9")
    assert moved.keys() == wanted.keys()
    for path, x in wanted.items():
        # The keys' biases have no gradient but rounding, and Adam makes steps of that.
        np.testing.assert_allclose(moved[path], x, atol=1e-5, err_msg=path)


class Tuning(jobs.Launcher):
    """Starts fine-tuning in the place of pre-training."""

    def arguments(self, workdir, *more: str) -> list[str]:
        flags = finetuning.small(self.persons, workdir, *more)
        return [sys.executable, "-m", "unipt_jax.main", *flags]


@pytest.mark.slow
def test_fine_tuning_by_2_processes_in_parts_is_one_devices(
    launcher, persons, tmp_path
):
    flags = (
        "--config.loss.contrastive=0.5",  # with identity, ranking and PGU's
        "--config.model.text.attention_dropout=0.1",
        "--config.data.identities=2",
        "--config.evaluate.val=",
        "--config.evaluate.test=",
    )
    code, output = finetuning.here(*finetuning.small(persons, tmp_path / "one", *flags))
    assert code == 0, output
    launcher = Tuning(launcher.persons, launcher.cache)
    end(launcher.start_two(tmp_path / "two", *flags, *PARTS, devices=2))
    assert_agree(tmp_path / "two", tmp_path / "one")


def test_a_run_goes_on_in_other_parts_but_not_with_another_batch(
    undisturbed, launcher, tmp_path
):
    run = tmp_path / "run"
    as_killed(undisturbed, run, step=6)
    code, output = train(launcher, run, "--config.batch_size=32")
    assert code == 1 and "batch_size: 16 there, 32 now" in output
    code, output = train(launcher, run, "--config.memory.micro_batch=4")
    assert code == 0 and "resumes after step 6" in output, output
    assert_agree(run, undisturbed)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("memory.micro_batch=4", "multiple of the 8 devices: one of 8, 16, or 0"),
        ("memory.chunk=-1", "memory.chunk=-1 must be a number of texts"),
        ("memory.accumulation=plain", "'plain' is not there, only cached"),
        ("profile=5:99", "profile=5:99 goes beyond the 9 steps"),
        ("peak_tflops=-1", "peak_tflops=-1.0 must be the TFLOP/s of one device"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    flag, said, launcher, tmp_path
):
    code, output = train(launcher, tmp_path / "run", f"--config.{flag}", devices=8)
    assert code == 1 and said in output, output
    assert not (tmp_path / "run").exists()
