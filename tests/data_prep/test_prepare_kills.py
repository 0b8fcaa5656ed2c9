"""A build that is killed, or whose disk is full, goes on and ends as if nothing had
been; what it leaves is never taken for a set."""

import os
import random
import shutil
import signal
import subprocess
import time

import building
import kills
import pytest
from building import command, here, names, refusal, shards_in, start, tree, wait_for

from data_prep import prepare


@pytest.fixture(scope="module")
def whole(whole):
    """What is in its files."""
    return tree(whole)


def workers_of(process):
    """The ids of its worker processes."""
    found = []
    for child in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{child}/stat") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{child}/cmdline") as file:
                spawned = "spawn_main" in file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == process.pid and spawned:
            found.append(int(child))
    return found


def runs(process_id):
    try:
        with open(f"/proc/{process_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def goes_on(raw, out, whole, *options):
    """The same command ends as if nothing had been, and leaves nothing else."""
    code, _, err = here(*command(raw, out, *options))
    assert (code, err) == (0, "")
    assert tree(out) == whole
    assert out.name in names(out.parent)
    assert not [name for name in names(out.parent) if "partial" in name]


# --- killed --------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_again_and_again_it_ends_as_if_undisturbed(
    raw, whole, tmp_path, workers
):
    """While it plans, in the midst of shards, and while it describes the set."""
    out, chance, killed = tmp_path / "out", random.Random(workers), 0
    partial = tmp_path / "out.partial"
    moments = [
        lambda: partial.exists(),
        lambda: (partial / "plan.json").exists(),
        lambda: shards_in(out) > 1,
        lambda: shards_in(out) > 4,
        lambda: shards_in(out) > 7,
    ]
    done = 0
    for moment in moments:
        process = start(*command(raw, out, "--workers", workers), slow=True)
        wait_for(process, moment)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert not out.exists() or tree(out) == whole
        assert out.exists() or shards_in(out) >= done
        done = shards_in(out)
    assert killed >= 4
    goes_on(raw, out, whole)


def test_killed_before_any_write_it_ends_as_if_undisturbed(tmp_path):
    """A set with all there is: splits, a picture left out, a vocabulary."""
    raw = tmp_path / "raw"
    splits = ["pretrain", "train", "train", "train", "test", "pretrain"]
    rows = [[f"{i}.png", f"a man {i}", i, split] for i, split in enumerate(splits)]
    building.write(raw, rows)
    (raw / "5.png").write_bytes(b"no picture")
    options = ["--shard-images", 2, "--allow-missing", "--vocabulary", 40]
    args = ["folder", "--raw", raw, *options, "--out"]
    assert here(*args, tmp_path / "whole")[0] == 0
    whole, moments = tree(tmp_path / "whole"), 0
    assert "tokenizer/tokenizer.json" in whole and prepare.LEFT_OUT in whole
    for nth in range(400):
        out = tmp_path / str(nth) / "out"
        try:
            with kills.before_moment(nth):
                code, _, err = here(*args, out)
        except kills.Killed:
            moments += 1
            assert not out.exists() or tree(out) == whole
            code, _, err = here(*args, out)
        else:
            nth = None
        assert (code, err) == (0, "")
        assert tree(out) == whole
        assert names(out.parent) == ["out"]
        shutil.rmtree(out.parent)
        if nth is None:
            break
    assert 40 < moments < 400


def test_workers_do_not_outlive_a_parent_that_is_killed(raw, whole, tmp_path):
    out = tmp_path / "out"
    process = start(*command(raw, out, "--workers", 3), slow=True)
    wait_for(process, lambda: shards_in(out) > 0)
    workers = workers_of(process)
    assert len(workers) == 3 and all(map(runs, workers))
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while any(map(runs, workers)):
        assert time.monotonic() < end, "workers live on"
        time.sleep(0.05)
    goes_on(raw, out, whole)


def test_a_worker_that_is_killed_is_one_sentence(raw, whole, tmp_path):
    out = tmp_path / "out"
    process = start(*command(raw, out, "--workers", 2), slow=True)
    wait_for(process, lambda: shards_in(out) > 1)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: memory ran out, or one of 2 worker processes died")
    assert err.count("\n") == 1 and "fewer --workers" in err
    assert not out.exists()
    goes_on(raw, out, whole)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("moment", ["as workers start", "among shards"])
def test_control_c_is_one_sentence_and_the_command_goes_on(
    raw, whole, tmp_path, workers, moment
):
    """The terminal sends it to the workers, too."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    process = start(
        *command(raw, out, "--workers", workers), slow=True, start_new_session=True
    )
    if moment == "among shards":
        wait_for(process, lambda: shards_in(out) > 1)
    elif workers == 1:
        wait_for(process, (partial / "plan.json").exists)
    else:
        wait_for(process, lambda: workers_of(process))
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err == "stopped; the same command goes on from here\n"
    assert process.returncode == 130
    assert not out.exists()
    goes_on(raw, out, whole)


def test_of_two_builds_at_once_the_second_is_refused(raw, whole, tmp_path):
    out = tmp_path / "out"
    process = start(*command(raw, out, "--workers", 1), slow=True)
    wait_for(process, (tmp_path / "out.partial" / "plan.json").exists)
    for options in ([], ["--resume"], ["--quality", 50]):
        said = refusal(*command(raw, out, *options))
        assert f"another process is preparing {out} now" in said
        assert "give another --out" in said
    assert process.wait(timeout=60) == 0
    assert tree(out) == whole
    assert names(tmp_path) == ["out"]
    process.communicate()


# --- disks ---------------------------------------------------------------------------


def remount(disk, options):
    command = ["mount", "-o", f"remount,{options}", str(disk)]
    subprocess.run(command, check=True, capture_output=True)


def test_a_full_disk_is_one_sentence_wherever_it_fills_up(
    raw, whole, tmp_path, small_disk
):
    disk, sizes, told = small_disk("size=4k,nr_inodes=1000"), 0, set()
    out = disk / "out"
    for pages in range(1, 400):
        remount(disk, f"size={4 * pages}k")
        code, _, err = here(*command(raw, out))
        if code == 0:
            break
        sizes += 1
        assert code == 1
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert "the same command" in err and str(disk) in err, err
        told.add(err.split(" ")[1].rsplit("/", 1)[-1][:8])
        assert not out.exists()
    assert 10 < sizes < 399
    assert {"records-", "out.part"} == told  # shards, and the rest
    assert tree(out) == whole
    assert names(disk) == ["out"]


def test_a_disk_that_is_full_for_workers_is_one_sentence(
    raw, whole, tmp_path, small_disk
):
    disk = small_disk("size=96k")
    process = start(*command(raw, disk / "out", "--workers", 2), slow=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    assert str(disk) in err and "the same command" in err
    remount(disk, "size=4m")
    goes_on(raw, disk / "out", whole)


def test_a_disk_that_cannot_be_written_is_one_sentence(
    raw, whole, tmp_path, small_disk
):
    disk = small_disk("ro,size=4m")
    said = refusal(*command(raw, disk / "out"))
    assert str(disk) in said and "read-only" in said
    remount(disk, "rw")
    assert names(disk) == []
    goes_on(raw, disk / "out", whole)
