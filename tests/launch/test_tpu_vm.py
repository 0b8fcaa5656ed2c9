"""launch/tpu_vm.sh against a gcloud that records its calls and is its own hosts."""

import json
import os
import pathlib
import shlex
import shutil
import stat
import subprocess
import sys
import time

import pytest
from jobs import ROOT

SCRIPT = ROOT / "launch" / "tpu_vm.sh"
STAND_IN = pathlib.Path(__file__).parent / "stand_in_gcloud.py"
WHERE = ["--zone=us-west4-a", "--project=ours"]
WORKDIR = "--workdir=gs://bucket/run"

# Records its calls; `uv venv DIR` makes the one file that is looked for.
UV = """#!/bin/bash
echo "uv $*" >>"$HOME/uv.calls"
if [[ "$1" == venv ]]; then mkdir -p "${@: -1}/bin"; printf '#!/bin/sh\\n' >"${@: -1}/bin/python"; chmod +x "${@: -1}/bin/python"; fi
"""


class Cloud:
    """A folder that stands for the cloud, and a small clone to install from."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        clone = folder / "clone"
        for file in ("launch/tpu_vm.sh", "unipt_jax/main.py", "data/big", ".gitignore"):
            (clone / file).parent.mkdir(parents=True, exist_ok=True)
            (clone / file).write_text("data/\n")
        self.bash = clone / "launch" / "tpu_vm.sh"
        shutil.copy(SCRIPT, self.bash)
        git = ["git", "-C", str(clone), "-c", "init.defaultBranch=main"]
        subprocess.run([*git, "init", "--quiet"], check=True)
        subprocess.run([*git, "add", "."], check=True)
        tools = folder / "tools"
        tools.mkdir()
        gcloud = (
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -E {STAND_IN} "$@"\n'
        )
        for name, text in (("gcloud", gcloud), ("uv", UV), ("sudo", "#!/bin/sh\n")):
            (tools / name).write_text(text)
            (tools / name).chmod(stat.S_IRWXU)
        path = f"{tools}:{os.environ['PATH']}"
        self.environ = os.environ | {"PATH": path, "STAND_IN": str(folder)}
        self.environ |= {"TPU_POLL_SECONDS": "0.05"}
        for name in ("TPU_NAME", "TPU_ZONE", "TPU_PROJECT", "TPU_TYPE", "TPU_VERSION"):
            self.environ.pop(name, None)
        self.plan()

    def plan(self, **plan) -> None:
        """What gcloud is to answer, see `stand_in_gcloud`."""
        (self.folder / "plan.json").write_text(json.dumps(plan))
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def script(self, *arguments: str, name: str = "persons") -> tuple[int, str]:
        """Exit code and output of tpu_vm.sh."""
        done = subprocess.run(
            [self.bash, arguments[0], "--name", name, *WHERE, *arguments[1:]],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout

    def calls(self, *verbs: str) -> list[list[str]]:
        """The calls of `compute tpus`, from kind and verb on; all, or of some verbs."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        calls = [json.loads(line)[2:] for line in lines]
        return [c for c in calls if not verbs or c[1] in verbs]

    def host(self, file: str, host: int = 0) -> str:
        """The text of a file in a host's home, once it is there."""
        path = self.folder / f"host{host}" / file
        for _ in range(100):
            if path.exists() and path.read_text():
                return path.read_text()
            time.sleep(0.05)
        raise AssertionError(f"{path} did not appear")


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


@pytest.fixture
def installed(cloud):
    """A cloud whose hosts have had their install."""
    for i in range(2):
        (cloud.folder / f"host{i}" / "unipt_env").mkdir(parents=True)
        (cloud.folder / f"host{i}" / "unipt_env" / "installed").touch()
        (cloud.folder / f"host{i}" / "unipt_jax").mkdir()
    return cloud


# --- the slice ----------------------------------------------------------------------

CREATE = [
    "tpu-vm",
    "create",
    "persons",
    *WHERE,
    "--accelerator-type=v5litepod-16",
    "--version=v2-alpha-tpuv5-lite",
]
QUEUE = [
    "queued-resources",
    "create",
    "persons",
    *WHERE,
    "--node-id=persons",
    "--accelerator-type=v5litepod-16",
    "--runtime-version=v2-alpha-tpuv5-lite",
    "--spot",
]


def test_a_missing_slice_is_created_and_waited_for(cloud):
    cloud.plan(vm=["MISSING", "CREATING", "CREATING", "READY"])
    code, output = cloud.script("create")
    assert code == 0, output
    assert cloud.calls("create", "delete") == [CREATE]
    assert len(cloud.calls("describe")) == 4


def test_a_slice_that_is_there_is_used_as_it_is(cloud):
    cloud.plan(vm=["READY"])
    assert cloud.script("create")[0] == 0
    assert cloud.calls() == [
        ["tpu-vm", "describe", "persons", *WHERE, "--format=value(state)"]
    ]


def test_a_preempted_slice_is_made_anew(cloud):
    cloud.plan(vm=["PREEMPTED", "MISSING", "READY"])
    assert cloud.script("create", "--spot")[0] == 0
    delete = ["tpu-vm", "delete", "persons", *WHERE, "--quiet"]
    assert cloud.calls("create", "delete") == [delete, [*CREATE, "--spot"]]


def test_a_queued_resource_is_waited_for(cloud):
    waiting = ["MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    cloud.plan(queue=waiting, vm=["CREATING", "READY"])
    code, output = cloud.script("create", "--queued", "--spot")
    assert code == 0, output
    assert cloud.calls("create", "delete") == [QUEUE]
    assert "persons: WAITING_FOR_RESOURCES" in output


@pytest.mark.parametrize(
    "plan",
    [
        {"queue": ["SUSPENDED", "MISSING", "ACTIVE"]},
        {"queue": ["FAILED", "MISSING", "ACTIVE"]},
        {"queue": ["ACTIVE", "MISSING", "ACTIVE"], "vm": ["PREEMPTED", "READY"]},
    ],
)
def test_a_queued_resource_that_is_gone_is_asked_for_anew(cloud, plan):
    cloud.plan(**plan)
    assert cloud.script("create", "--queued", "--spot")[0] == 0
    delete = ["queued-resources", "delete", "persons", *WHERE, "--force", "--quiet"]
    assert cloud.calls("create", "delete") == [delete, QUEUE]


def test_a_request_that_fails_is_not_repeated(cloud):
    cloud.plan(queue=["MISSING", "FAILED"])
    code, output = cloud.script("create", "--queued")
    assert code == 1
    assert "the request failed; why, tells: gcloud compute tpus queued-reso" in output
    assert not cloud.calls("delete")


def test_what_gcloud_says_when_it_fails_is_shown(cloud):
    cloud.plan(vm=["BROKEN"])
    code, output = cloud.script("create")
    assert code == 1 and "the network is unreachable" in output


def test_delete(cloud):
    cloud.plan(queue=["MISSING"])
    assert cloud.script("delete")[0] == 0
    assert cloud.calls("delete") == [["tpu-vm", "delete", "persons", *WHERE, "--quiet"]]
    cloud.plan(queue=["MISSING"], vm=["MISSING"])
    code, output = cloud.script("delete")
    assert code == 0 and "there is no 'persons'" in output and not cloud.calls("delete")


def test_delete_finds_a_request_that_still_waits_without_being_told_of_it(cloud):
    cloud.plan(queue=["WAITING_FOR_RESOURCES"], vm=["MISSING"])
    assert cloud.script("delete")[0] == 0
    delete = ["queued-resources", "delete", "persons", *WHERE, "--force", "--quiet"]
    assert cloud.calls("delete") == [delete]


# --- its hosts ----------------------------------------------------------------------


def test_install_brings_what_git_tracks_to_all_hosts(cloud):
    cloud.plan(scp_codes=[255], ssh_codes=[255])  # each connection breaks once
    sets = ["--data=gs://b/one", "--data", "gs://b/c/two x/"]
    code, output = cloud.script("install", *sets)
    assert code == 0, output
    assert all("--worker=all" in call for call in cloud.calls())
    assert [c[1] for c in cloud.calls()] == ["scp", "scp", "ssh", "ssh"]
    for i in range(2):
        home = cloud.folder / f"host{i}"
        assert (home / "unipt_jax" / "unipt_jax" / "main.py").exists()
        assert not (home / "unipt_jax" / ".git").exists()
        assert not (home / "unipt_jax" / "data" / "big").exists()
        venv, pip = (home / "uv.calls").read_text().splitlines()
        assert "--python >=3.11,<3.14" in venv
        assert pip.endswith(f"--editable {home}/unipt_jax[tpu]")
        assert (home / "storage.calls").read_text().splitlines() == [
            f"storage rsync --recursive gs://b/one {home}/unipt_data/one",
            f"storage rsync --recursive gs://b/c/two x {home}/unipt_data/two x",
        ]
        assert (home / "unipt_jax" / "data" / "two x").is_dir()


AWKWARD = [
    "a  b",
    "",
    "$HOME",
    "it's",
    '"q"',
    "`id`",
    "*",
    "a\nb",
    "\\",
    "--x=(1,)",
    "é",
]


def test_awkward_arguments_arrive_unchanged_on_all_hosts(installed):
    show = "import json, sys; print('argv', json.dumps(sys.argv[1:]))"
    code, output = installed.script("run", "--", sys.executable, "-c", show, *AWKWARD)
    assert code == 0, output
    for i in range(2):
        assert installed.host("unipt_run/code", i) == "0\n"
        log = installed.host("unipt_run/log", i)
        assert json.loads(log.partition("argv ")[2]) == AWKWARD


def test_a_run_outlives_its_connection_and_is_not_started_twice(installed):
    wait = 'echo began; trap "echo saved; exit 75" TERM; while :; do sleep 0.05; done'
    assert installed.script("run", "--", "bash", "-c", wait)[0] == 0
    assert installed.host("unipt_run/log") == "began\n"
    code, output = installed.script("run", "--", "echo", "another")
    assert code == 0 and "left alone" in output
    assert "unipt_run running" in installed.script("status")[1]
    code, output = installed.script("install")
    assert code == 3 and "stop it first" in output
    assert installed.script("stop")[0] == 0
    assert installed.host("unipt_run/code") == "75\n"
    assert installed.host("unipt_run/log").endswith("saved\n")
    code, output = installed.script("status")
    assert "slice: READY" in output and "unipt_run ended 75; saved" in output


def test_logs_connect_again(installed):
    installed.plan(ssh_codes=[0, 255])
    assert installed.script("run", "--", "echo", "done well")[0] == 0
    code, output = installed.script("logs", "--worker=1")
    assert code == 0, output
    assert "connection lost" in output and "done well\nended with code 0" in output
    assert installed.calls("ssh")[-1][5] == "--worker=1"


def test_nothing_runs_where_nothing_is_installed(cloud):
    code, output = cloud.script("run", "--", "true")
    assert code == 4 and "run install first" in output


# --- until the end ------------------------------------------------------------------


def run_that(first: str, later: str, diary: pathlib.Path) -> list[str]:
    """A command that does the first thing on both hosts, then, started again, the other."""
    text = f'echo "$@" >>{diary}; if [ $(wc -l <{diary}) -le 2 ]; then {first}; else {later}; fi'
    return ["bash", "-c", text, "run", WORKDIR, "a  $b"]


def test_a_preempted_run_is_started_again_with_the_same_command(cloud, tmp_path):
    diary = tmp_path / "diary"
    states = ["MISSING", "READY", "READY", "PREEMPTED", "MISSING", "CREATING", "READY"]
    cloud.plan(vm=states)
    command = run_that("sleep 100", "true", diary)
    code, output = cloud.script("supervise", "--spot", "--", *command)
    assert code == 0, output
    assert "the run has ended" in output
    verbs = [c[1] for c in cloud.calls("create", "delete", "scp")]
    assert verbs == ["create", "scp", "delete", "create", "scp"]
    assert diary.read_text().splitlines() == [f"{WORKDIR} a  $b"] * 4


def test_a_suspended_queued_resource_is_asked_for_anew_and_the_run_goes_on(
    cloud, tmp_path
):
    cloud.plan(
        queue=["MISSING", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", "MISSING"]
        + ["WAITING_FOR_RESOURCES", "ACTIVE"]
    )
    command = run_that("sleep 100", "true", tmp_path / "diary")
    code, output = cloud.script("supervise", "--queued", "--spot", "--", *command)
    assert code == 0, output
    verbs = [c[1] for c in cloud.calls("create", "delete")]
    assert verbs == ["create", "delete", "create"]


def test_a_run_that_saved_and_ended_is_started_again_on_the_same_slice(cloud, tmp_path):
    command = run_that("exit 75", "true", tmp_path / "diary")
    code, output = cloud.script("supervise", "--", *command)
    assert code == 0, output
    assert [c[1] for c in cloud.calls("create", "delete", "scp")] == ["scp"]


def test_a_run_that_fails_is_not_started_again(cloud, tmp_path):
    command = run_that("exit 3", "true", tmp_path / "diary")
    code, output = cloud.script("supervise", "--", *command)
    assert code == 1 and "the run failed (ended 3)" in output
    assert len((tmp_path / "diary").read_text().splitlines()) == 2


def test_supervision_outlives_a_broken_network(cloud, tmp_path):
    cloud.plan(vm=["BROKEN", "BROKEN", "READY"], ssh_codes=[255, 0, 255])
    command = run_that("true", "true", tmp_path / "diary")
    code, output = cloud.script("supervise", "--", *command)
    assert code == 0, output


# --- mistakes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no action"),
        (["fly", "--name=a"], "unknown action 'fly'"),
        (["create"], "no name"),
        (["create", "--name=a", "--zone=z"], "no project"),
        (["create", "--name=a", "--project=p"], "no zone"),
        (["create", "--name=a", "--tpu"], "unknown flag --tpu"),
        (["create", "--name"], "--name needs a value"),
        (["install", "--name=a", *WHERE, "--data=b"], "gs://BUCKET/FOLDER, not 'b'"),
        (["run", "--name=a", *WHERE], "run needs the command"),
        (["stop", "--name=a", *WHERE, "--", "x"], "stop takes no command"),
        (["supervise", "--name=a", *WHERE, "--", "x"], "needs --workdir=gs://"),
    ],
)
def test_a_mistake_is_one_sentence(cloud, arguments, sentence):
    done = subprocess.run(
        [SCRIPT, *arguments],
        env=cloud.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert sentence in done.stderr and done.stderr.count("\n") == 1


def test_no_gcloud(cloud):
    (cloud.folder / "tools" / "gcloud").unlink()
    tools = cloud.environ | {"PATH": str(cloud.folder / "tools")}
    command = ["/bin/bash", SCRIPT, "create", "--name=a", *WHERE]
    done = subprocess.run(
        command, env=tools, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no gcloud on PATH" in done.stderr


@pytest.mark.parametrize(
    "action", ["create", "install", "logs", "status", "stop", "delete"]
)
def test_dry_run_prints_gclouds_lines_and_runs_none(cloud, action):
    code, output = cloud.script(action, "--queued", "--dry-run")
    assert code == 0 and "gcloud compute tpus" in output
    assert not cloud.calls()


def test_dry_run_of_all_in_one_prints_them_in_order(cloud):
    more = ["--queued", "--spot", "--dry-run", "--", "python", "-m", "x y", WORKDIR]
    for action in ("up", "supervise"):
        code, output = cloud.script(action, *more)
        assert code == 0 and not cloud.calls()
        verbs = [
            "queued-resources create",
            "tpu-vm describe",
            "tpu-vm scp",
            "tpu-vm ssh",
        ]
        places = [output.index(f"gcloud compute tpus {verb}") for verb in verbs]
        assert places == sorted(places)


def test_what_dry_run_prints_does_the_same(installed):
    command = ["printf", "<%s>", *AWKWARD]
    output = installed.script("run", "--dry-run", "--", *command)[1]
    printed = output[output.index("gcloud compute") :]
    subprocess.run(["bash", "-c", printed], env=installed.environ, check=True)
    told = "".join(f"<{argument}>" for argument in AWKWARD)
    assert installed.host("unipt_run/log", 1) == told
