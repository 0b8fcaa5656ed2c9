"""Stands in for gcloud: records its calls, answers as a plan says, is its own hosts.

Run as `gcloud ARGS...` with STAND_IN naming a folder. There, calls.jsonl gets one line a
call; plan.json has the states that `describe` answers in turn (the last one stays), and
the exit codes of the first `ssh` and `scp` calls. Hosts are folders, host0 and so on;
commands for them run here, with the folder as HOME. What is created is empty.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

FOLDER = pathlib.Path(os.environ["STAND_IN"])
HOSTS = [FOLDER / f"host{i}" for i in range(2)]


def option(name: str) -> str:
    found = [a for a in sys.argv if a.startswith(f"--{name}=")]
    return found[0].partition("=")[2] if found else ""


def take(name: str, otherwise):
    """The next of a list in the plan."""
    file = FOLDER / "plan.json"
    plan = json.loads(file.read_text())
    values = plan.get(name, [])
    value = values[0] if values else otherwise
    if values and (len(values) > 1 or name.endswith("_codes")):
        plan[name] = values[1:]
    file.write_text(json.dumps(plan))
    return value


def wipe() -> None:
    """Ends what runs on the hosts, and empties them."""
    for host in HOSTS:
        for file in host.glob("unipt_run/pid.*"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(file.read_text()), signal.SIGKILL)
        shutil.rmtree(host, ignore_errors=True)
        host.mkdir()


def describe(kind: str) -> int:
    state = take(kind, "READY" if kind == "vm" else "ACTIVE")
    if state == "BROKEN":
        print("ERROR: the network is unreachable", file=sys.stderr)
        return 1
    if state == "MISSING":
        print("ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource", file=sys.stderr)
        return 1
    print("WARNING: something about quota", file=sys.stderr)
    print(state)
    return 0


def on_hosts(verb: str) -> int:
    """scp, or ssh with a command."""
    code = take(f"{verb}_codes", 0)
    if code:
        return code
    worker = option("worker")
    hosts = HOSTS if worker == "all" else [HOSTS[int(worker or 0)]]
    codes = []
    for host in hosts:
        host.mkdir(exist_ok=True)
        if verb == "scp":
            shutil.copy(sys.argv[5], host / sys.argv[6].partition(":")[2])
            continue
        command = ["bash", "-c", option("command")]
        home = os.environ | {"HOME": str(host)}
        codes.append(
            subprocess.run(command, env=home, check=False, cwd=host).returncode
        )
    return max(codes, default=0)


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[0] == "storage":  # a host's own call
        with open(os.path.expanduser("~/storage.calls"), "a") as file:
            file.write(" ".join(arguments) + "\n")
        return 0
    with (FOLDER / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    if arguments[:2] == ["config", "get-value"]:
        print(take(arguments[2], "(unset)"))
        return 0
    assert arguments[:2] == ["compute", "tpus"], arguments
    kind = {"tpu-vm": "vm", "queued-resources": "queue"}[arguments[2]]
    verb = arguments[3]
    if verb == "describe":
        return describe(kind)
    if verb in ("ssh", "scp"):
        return on_hosts(verb)
    if verb in ("create", "delete"):
        wipe()
        return take(f"{verb}_codes", 0)
    assert verb == "start", verb
    return 0


sys.exit(main())
