"""The same set from an Apache Beam pipeline, to the byte, also after a kill.

Beam is an extra that this project does without: where it is not installed, one test
sees to it that this is said.
"""

import importlib.util
import os
import random
import signal
import time

import building
import pytest
from building import (
    command,
    here,
    names,
    refusal,
    shards_in,
    start,
    there,
    tree,
    wait_for,
)

from data_prep import prepare
from unipt_jax.data import records

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="apache-beam is an extra"
)
DIRECT = "--runner=DirectRunner"
PROCESSES = f"{DIRECT} --direct_num_workers=2 --direct_running_mode=multi_processing"


@pytest.fixture(scope="module")
def whole(whole):
    """What is in its files."""
    return tree(whole)


def in_group(group):
    """The ids of the processes that a process started, and runs."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/stat") as file:
                state, _, its_group = file.read().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(process))
    return found


def test_without_beam_it_is_said_how_to_get_it(raw, tmp_path):
    """Also where it is installed: here it is hidden."""
    blocked = "import sys; sys.modules['apache_beam'] = None; sys.argv[0] = 'build'; "
    blocked += "from data_prep import build; sys.exit(build.main())"
    process = start(*command(raw, tmp_path / "out", "--beam", DIRECT), program=blocked)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: --beam needs Apache Beam (") and err.count("\n") == 1
    assert "pip install '.[beam]'" in err
    assert out == "" and names(tmp_path) == []


@needs_beam
@pytest.mark.parametrize("options", [DIRECT, PROCESSES])
def test_beam_writes_the_same_bytes(raw, whole, tmp_path, options):
    out = tmp_path / "out"
    code, said, err = there(*command(raw, out, "--beam", options))
    assert code == 0, err
    assert said.endswith(f"{out}: {{'pretrain': 60}}\n")
    assert "Traceback" not in err and "unparseable" not in err
    assert err == "" or options == PROCESSES  # those tell of logging before they log
    assert tree(out) == whole
    assert names(tmp_path) == ["out"]


@needs_beam
@pytest.mark.parametrize("options", [DIRECT, PROCESSES])
def test_beam_goes_on_after_a_kill(raw, whole, tmp_path, options):
    out, killed, chance = tmp_path / "out", 0, random.Random(0)
    args = command(raw, out, "--beam", options)
    for count in (1, 4):
        process = start(*args, slow=True, start_new_session=True)
        wait_for(process, lambda count=count: shards_in(out) >= count)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert not out.exists()
        end = time.monotonic() + 20
        while in_group(process.pid):
            assert time.monotonic() < end, "Beam's processes live on"
            time.sleep(0.05)
    assert killed == 2
    assert 4 <= shards_in(out) <= 9  # Beam's own processes end what they began
    assert here(*args)[0] == 0
    assert tree(out) == whole
    assert names(tmp_path) == ["out"]


@needs_beam
def test_control_c_does_not_wait_for_the_pipeline(raw, whole, tmp_path):
    out = tmp_path / "out"
    args = command(raw, out, "--beam", DIRECT)
    process = start(*args, slow=True)
    wait_for(process, lambda: shards_in(out) > 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "stopped; the same command goes on from here\n"
    assert not out.exists()
    assert here(*args)[0] == 0
    assert tree(out) == whole


@needs_beam
def test_unreadable_pictures_are_refused_or_left_out_as_without_beam(tmp_path):
    raw = building.crops(tmp_path / "raw", 20)
    (raw / "part1" / "013.jpg").write_bytes(b"no picture")
    beam = ["--beam", DIRECT]
    said = {}
    for name, options in (("plain", []), ("beam", beam)):
        said[name] = refusal(*command(raw, tmp_path / name, *options))
        said[name] = said[name].replace(str(tmp_path / name), "")
    assert said["plain"] == said["beam"]
    assert "1 image cannot be read: part1/013.jpg (" in said["beam"]
    assert "2 of 3 shards are kept" in said["beam"]
    for name, options in (("plain", []), ("beam", beam)):
        args = command(raw, tmp_path / name, "--allow-missing", *options)
        assert here(*args)[0] == 0
    assert tree(tmp_path / "plain") == tree(tmp_path / "beam")
    assert (tmp_path / "beam" / prepare.LEFT_OUT).exists()
    assert records.metadata(tmp_path / "beam")["left_out"] == 1
    assert names(tmp_path) == ["beam", "plain", "raw"]


@needs_beam
def test_splits_and_captions_are_the_same_too(tmp_path):
    splits = ["pretrain", "train", "train", "train", "val", "test"]
    rows = [[f"{i}.png", f"a man {i}", i, split] for i, split in enumerate(splits)]
    building.write(tmp_path / "raw", rows)
    args = ["folder", "--raw", tmp_path / "raw", "--shard-images", 2]
    args += ["--height", 16, "--width", 8, "--vocabulary", 40]
    assert here(*args, "--out", tmp_path / "plain")[0] == 0
    assert here(*args, "--out", tmp_path / "beam", "--beam", DIRECT)[0] == 0
    assert tree(tmp_path / "plain") == tree(tmp_path / "beam")


@needs_beam
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("DirectRunner", "'DirectRunner' is no option; give Beam's own as --beam"),
        (f"{DIRECT} 2", "'2' is no option"),
        ("--runner='DirectRunner", "No closing quotation"),
        ("--runner=NoRunner", "Unexpected pipeline runner: NoRunner"),
        (f"{DIRECT} --direct_num_workers=x", "--direct_num_workers: invalid int value"),
        (
            f"{DIRECT} --direct_running_mode=odd",
            "--direct_running_mode: invalid choice",
        ),
    ],
)
def test_options_that_are_none_are_one_sentence_at_once(raw, tmp_path, options, why):
    code, out, err = here(*command(raw, tmp_path / "out", "--beam", options))
    assert (code, out) == (1, "")
    assert err.startswith("error: --beam ") and err.count("\n") == 1 and why in err
    assert names(tmp_path) == []


@needs_beam
@pytest.mark.parametrize("options", [DIRECT, PROCESSES])
def test_a_full_disk_is_the_sentence_that_it_is_without_beam(raw, small_disk, options):
    disk = small_disk("size=96k")
    code, _, err = there(*command(raw, disk / "out", "--beam", options))
    assert code == 1 and "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert str(disk) in line and "then run the same command again" in line
    assert line == err.splitlines()[-1]
    assert not (disk / "out").exists()


@needs_beam
def test_a_pipeline_that_fails_is_one_sentence(raw, whole, tmp_path, monkeypatch):
    from data_prep import beam

    def fails(task):
        raise KeyError("nobody's mistake")

    args = command(raw, tmp_path / "out", "--beam", DIRECT)
    with monkeypatch.context() as patch:
        patch.setattr(beam, "write_shard", fails)
        said = refusal(*args)
    assert said.startswith(f"the Beam pipeline ({DIRECT}) failed: ")
    assert "nobody's mistake" in said and "the same command goes on" in said
    assert here(*args)[0] == 0
    assert tree(tmp_path / "out") == whole
