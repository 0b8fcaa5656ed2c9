"""launch/local_cluster.sh: one command as several processes of one run."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from jobs import ROOT

# What `main` does with the flags that each process is given.
STARTS = """
import sys, jax
from unipt_jax import distributed
given = dict(flag.removeprefix("--").split("=") for flag in sys.argv[1:])
distributed.start(
    coordinator=given["coordinator"],
    processes=int(given["processes"]),
    process=int(given["process"]),
)
print(f"process {jax.process_index()} of {jax.process_count()},", end=" ")
print(f"{jax.device_count()} devices")
distributed.run_and_exit(lambda: 3)
"""

SCRIPT = ROOT / "launch" / "local_cluster.sh"


def cluster(*arguments: str, **more) -> subprocess.Popen:
    """The script as a child process."""
    return subprocess.Popen(
        [SCRIPT, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def end(*arguments: str, **more) -> tuple[int, str, str]:
    """Exit code, output and complaints of the whole script."""
    process = cluster(*arguments, **more)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def test_each_process_has_the_command_and_its_number(tmp_path):
    show = 'printf "<%s>" "$@"; echo; env | grep JAX_'
    command = ["bash", "-c", show, "x", "a  b", "$HOME", "it's"]
    flags = ["3", "--devices", "4", "--logs", str(tmp_path)]
    code, output, errors = end(*flags, "--", *command)
    assert code == 0, errors
    port = re.search(r"--coordinator=localhost:(\d+)", output)[1]
    for i in range(3):
        text = (tmp_path / f"{i}.log").read_text()
        flags = f"<--coordinator=localhost:{port}><--processes=3><--process={i}>"
        assert text.splitlines()[0] == f"<a  b><$HOME><it's>{flags}"
        assert "JAX_NUM_CPU_DEVICES=4" in text and "JAX_PLATFORMS=cpu" in text
    first = (tmp_path / "0.log").read_text().splitlines()
    assert output.splitlines() == [f"[0] {line}" for line in first]


def test_gpus_are_dealt_in_order():
    code, output, _ = end("2", "--gpus=3", "--dry-run", "--", "train", "a b")
    first, second = output.replace("\\", "").splitlines()
    assert code == 0
    assert "CUDA_VISIBLE_DEVICES=0,1,2 train a b --coord" in first
    assert "CUDA_VISIBLE_DEVICES=3,4,5 train a b --coord" in second


def test_one_that_fails_ends_all_with_its_code(tmp_path):
    text = 'case "$*" in *--process=1*) echo broken; exit 5;; esac; echo $$; sleep 60'
    flags = ["3", "--grace=1", f"--logs={tmp_path}"]
    code, _, errors = end(*flags, "--", "bash", "-c", text, "x")
    assert code == 5
    assert "process 1 ended with 5" in errors and "[1] broken" in errors
    for i in (0, 2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"{i}.log").read_text()), 0)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_as_sigterm_and_they_save(tmp_path, sent):
    text = 'trap "echo saved; exit 75" TERM; echo began; while :; do sleep 0.05; done'
    process = cluster("2", f"--logs={tmp_path}", "--", "bash", "-c", text, "x")
    logs = [tmp_path / f"{i}.log" for i in range(2)]
    for log in logs:
        wait_for("began", log)
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert all("saved" in log.read_text() for log in logs)


def wait_for(text: str, log: pathlib.Path) -> None:
    for _ in range(600):
        if log.exists() and text in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{text} does not come in {log}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "how many processes"),
        (["two", "--", "x"], "whole number from 1, not 'two'"),
        (["2"], "no command"),
        (["2", "python"], "unexpected 'python'"),
        (["2", "--device", "4", "--", "x"], "unknown flag --device"),
        (["2", "--devices", "0", "--", "x"], "--devices must be a whole number"),
        (["2", "--devices=1", "--gpus=1", "--", "x"], "exclude each other"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence):
    code, output, errors = end(*arguments)
    assert code == 2 and not output
    assert sentence in errors and errors.count("\n") == 1


def test_two_processes_of_four_devices_start_and_may_fail_alike(tmp_path):
    flags = ["2", "--devices", "4", "--logs", str(tmp_path)]
    code, output, errors = end(*flags, "--", sys.executable, "-c", STARTS)
    assert code == 3, errors
    assert "[0] 2 processes, by flags: 8 devices (cpu), 4 of them" in output
    for i in range(2):
        log = (tmp_path / f"{i}.log").read_text()
        assert f"process {i} of 2, 8 devices" in log
        assert "another task died" not in log
