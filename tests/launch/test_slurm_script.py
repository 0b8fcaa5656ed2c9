"""launch/slurm.sh against an sbatch, srun and scontrol that record their calls."""

import os
import signal
import stat
import subprocess
import time

import pytest
from jobs import ROOT

SCRIPT = ROOT / "launch" / "slurm.sh"
RECORD = '#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" >>"$CALLS"\n'
# srun passes SIGTERM on, upon which a task saves and ends with 75.
SRUN = RECORD + "[[ $TASK == waits ]] || exit ${TASK:-0}\n"
SRUN += 'trap "exit 75" TERM; touch "$CALLS.started"; while :; do sleep 0.05; done\n'
COMMAND = ["python", "-m", "unipt_jax.main", "a  b", "$HOME", "it's"]
VARIABLES = ("NODES", "GPUS_PER_NODE", "TASKS_PER", "CPUS_PER_TASK", "TIME")
VARIABLES += ("PARTITION", "ACCOUNT", "JOB_NAME", "SAVE_SECONDS", "SLURM_JOB_ID")


@pytest.fixture
def environ(tmp_path):
    """Stand-ins on PATH, and no variables of ours."""
    for name, text in (("sbatch", RECORD), ("scontrol", RECORD), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    kept = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    path = f"{tmp_path}:{os.environ['PATH']}"
    return kept | {"PATH": path, "CALLS": str(tmp_path / "calls")}


def calls(environ) -> list[str]:
    """What the stand-ins were called with, one after the other."""
    try:
        with open(environ["CALLS"]) as file:
            return file.read().split("\0")[:-1]
    except FileNotFoundError:
        return []


def script(environ, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SCRIPT, *arguments],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_process_a_gpu_is_submitted(environ):
    assert script(environ | {"NODES": "2"}, *COMMAND).returncode == 0
    assert calls(environ) == [
        "sbatch",
        "--job-name=unipt_jax",
        "--nodes=2",
        "--gpus-per-node=8",
        "--ntasks-per-node=8",
        "--cpus-per-task=8",
        "--time=24:00:00",
        "--signal=B:USR1@300",
        str(SCRIPT),
        *COMMAND,
    ]


def test_a_process_a_node_is_submitted(environ):
    more = {"TASKS_PER": "node", "PARTITION": "gpu", "ACCOUNT": "ours"}
    assert script(environ | more, *COMMAND).returncode == 0
    told = calls(environ)
    assert "--ntasks-per-node=1" in told and "--gpus-per-node=8" in told
    assert "--partition=gpu" in told and "--account=ours" in told


def test_dry_run_prints_what_would_be_submitted(environ):
    printed = script(environ, "--dry-run", *COMMAND).stdout
    assert calls(environ) == []
    script(environ, *COMMAND)
    told = calls(environ)
    os.remove(environ["CALLS"])
    subprocess.run(["bash", "-c", printed], env=environ, check=True)
    assert calls(environ) == told


def test_the_job_starts_the_command_on_all_tasks_and_ends_with_its_code(environ):
    job = {"SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "4", "TASK": "3"}
    assert script(environ | job, *COMMAND).returncode == 3
    srun = ["srun", "--kill-on-bad-exit=0", "--wait=0", "--cpus-per-task=4"]
    assert calls(environ) == srun + COMMAND


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (signal.SIGUSR1, ["scontrol", "requeue", "17"]),  # the time is nearly up
        (signal.SIGTERM, []),  # the user cancels
    ],
)
def test_a_job_whose_time_is_up_saves_and_goes_back_to_the_queue(environ, sent, told):
    job = environ | {"SLURM_JOB_ID": "17", "TASK": "waits"}
    process = subprocess.Popen([SCRIPT, *COMMAND], env=job, stdout=subprocess.DEVNULL)
    while not os.path.exists(environ["CALLS"] + ".started"):
        time.sleep(0.02)
    process.send_signal(sent)
    assert process.wait(timeout=60) == 75
    assert calls(environ)[3 + len(COMMAND) :] == told


@pytest.mark.parametrize(
    ("arguments", "variables", "sentence"),
    [
        ([], {}, "no command"),
        (["--dryrun", "x"], {}, "unknown flag --dryrun"),
        (["x"], {"TASKS_PER": "core"}, "TASKS_PER must be gpu or node, not 'core'"),
        (["x"], {"NODES": "0"}, "NODES must be a whole number from 1, not '0'"),
        (["x"], {"GPUS_PER_NODE": "0"}, "TASKS_PER=gpu needs GPUs"),
        (["x"], {"PATH": "/nowhere"}, "no sbatch on PATH"),
    ],
)
def test_a_mistake_is_one_sentence(environ, arguments, variables, sentence):
    done = subprocess.run(
        ["/bin/bash", SCRIPT, *arguments],
        env=environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert sentence in done.stderr and done.stderr.count("\n") == 1
    assert calls(environ) == []
