"""Training as a process: layouts agree, kills leave no trace, faults stop it cleanly."""

import random
import re
import signal
import time

import jobs
import numpy as np
import pytest

from unipt_jax.errors import Stopped

# Hundreds of steps are taken here: a fourth of the time each.
NARROW = tuple(
    f"--config.model.{tower}.{field}"
    for tower in ("image", "text")
    for field in ("features=32", "heads=2", "hidden=64")
)


@pytest.fixture(scope="module")
def undisturbed(launcher, tmp_path_factory):
    """Losses of 40 steps on one device, never killed."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = launcher.run(workdir, *NARROW)
    assert code == 0, output
    return jobs.losses(workdir)


@pytest.mark.slow
def test_losses_of_40_steps_agree_on_8_devices(launcher, undisturbed, tmp_path):
    # Meshes with fsdp, and two processes: test_scale.py, over fewer steps.
    mesh = "--config.mesh.data=8"
    code, output = launcher.run(tmp_path / "run", *NARROW, mesh, devices=8)
    assert code == 0, output
    assert_agree(jobs.losses(tmp_path / "run"), undisturbed)


def assert_agree(found: dict[int, float], expected: dict[int, float]) -> None:
    assert list(found) == list(expected)
    # float32 sums in another order; 40 updates let the differences grow
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


def saves_under_way(workdir):
    return list((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def saved(workdir):
    return [p for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]


def wait_for(process, condition, seconds: float = 600) -> None:
    """Returns when the condition holds or the process has ended."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the process neither got there nor ended"
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_ten_times_equals_undisturbed_to_the_bit(launcher, tmp_path):
    flags = [*NARROW, "--config.steps=150", "--config.every.save=5"]
    code, output = launcher.run(tmp_path / "undisturbed", *flags)
    assert code == 0, output
    workdir, chance, in_saves, killed = tmp_path / "run", random.Random(0), 0, 0
    rows = workdir / "metrics.jsonl"
    for kill in range(10):
        process = launcher.start(workdir, *flags)
        seen = {*saves_under_way(workdir), *saved(workdir)}
        if kill % 2:  # every other kill is aimed at the middle of a save, not the first
            wait_for(process, lambda seen=seen: set(saved(workdir)) - seen)
            seen |= {*saves_under_way(workdir), *saved(workdir)}
            wait_for(process, lambda seen=seen: set(saves_under_way(workdir)) - seen)
        else:
            size = rows.stat().st_size if rows.exists() else 0
            wait_for(process, lambda n=size: rows.exists() and rows.stat().st_size != n)
            time.sleep(chance.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        in_saves += bool(saves_under_way(workdir))
    code, output = launcher.run(workdir, *flags)
    assert code == 0, output
    assert "resumes after step" in output
    assert killed == 10 and in_saves > 0, f"{killed} kills, {in_saves} in a save"
    assert jobs.losses(workdir) == jobs.losses(tmp_path / "undisturbed")


@pytest.mark.slow
def test_sigterm_saves_ends_with_its_own_code_and_goes_on_the_same(
    launcher, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    process = launcher.start(workdir, *NARROW)
    rows = workdir / "metrics.jsonl"
    wait_for(process, lambda: rows.exists() and rows.stat().st_size > 0)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == Stopped.CODE, output
    assert "the same command goes on from there" in output
    code, output = launcher.run(workdir, *NARROW)
    assert code == 0, output
    assert jobs.losses(workdir) == undisturbed


@pytest.mark.slow
def test_sigterm_to_one_of_2_processes_stops_both_and_all_40_losses_agree(
    launcher, undisturbed, tmp_path
):
    workdir = tmp_path / "run"
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
    processes = launcher.start_two(workdir, *NARROW, *mesh, devices=2)
    rows = workdir / "metrics.jsonl"
    wait_for(processes[0], lambda: rows.exists() and rows.stat().st_size > 0)
    processes[1].send_signal(signal.SIGTERM)
    said = []
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == Stopped.CODE, output
        said += re.findall(r"stopped at step (\d+) of 40", output)
    assert len(said) == 2 and said[0] == said[1] == str(max(jobs.losses(workdir)))
    for process in launcher.start_two(workdir, *NARROW, *mesh, devices=2):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    assert_agree(jobs.losses(workdir), undisturbed)
