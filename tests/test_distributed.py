"""The processes of a run find each other, or say in one sentence why they do not."""

import concurrent.futures
import os
import socket
import subprocess
import sys
import time

import pytest
from jobs import ROOT

from unipt_jax import distributed
from unipt_jax.errors import UserError

STEP = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008,012]-ib,big1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "6",
    "SLURM_LOCALID": "2",
}

HELLO = """
import jax
from unipt_jax import distributed
distributed.start({arguments})
print("counts", jax.process_index(), jax.process_count(), jax.device_count())
"""

# Process 1 ends as `{end}` says while process 0 waits for it.
ONE_DIES = """
import os, jax
from jax.experimental import multihost_utils
from unipt_jax import distributed
from unipt_jax.errors import UserError
distributed.start({arguments}, heartbeat=5)
distributed._GRACE = 1
def job():
    multihost_utils.sync_global_devices("both have started")
    if jax.process_index() == 1:
        {end}
    multihost_utils.sync_global_devices("process 0 waits here")
    return 0
distributed.run_and_exit(job)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def find(**given):
    """`distributed.find` with these flags and variables."""
    flags = dict(mode="auto", coordinator="", processes=None, process=None, environ={})
    return distributed.find(**flags | given)


def start(code: str, **environ: str) -> subprocess.Popen:
    """A Python process with 4 CPU devices that runs this code."""
    ours = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | ours | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ends(processes) -> list[tuple[int, str]]:
    """Exit code and output of each."""
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    return [(p.returncode, o) for p, o in zip(processes, outputs, strict=True)]


def flags(port: int, process: int) -> str:
    return f"coordinator='localhost:{port}', processes=2, process={process}"


# --- what flags and variables say ---------------------------------------------------


def test_nothing_given_is_one_process_alone():
    assert find() is None
    assert find(processes=1) is None
    assert find(processes=1, process=0, coordinator="a:1") is None


def test_an_allocations_shell_is_one_process_alone():
    shell = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert find(environ=shell) is None
    assert find(environ=STEP | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_flags_go_before_slurm():
    place = find(coordinator="a:1", processes=2, process=1, environ=STEP)
    assert place == distributed.Place("a:1", 2, 1, "flags")


def test_off_goes_before_slurm():
    assert find(mode="off", environ=STEP) is None


def test_place_of_a_slurm_task():
    place = find(environ=STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    port = 61440 + 17 * 8 + 2
    coordinator = f"gpu007-ib:{port}"
    assert place == distributed.Place(coordinator, 8, 6, "Slurm step 17.2", (2,))


def test_coordinator_beside_slurm_changes_the_address_alone():
    place = find(coordinator="a:1", environ=STEP | {"CUDA_VISIBLE_DEVICES": ""})
    assert (place.coordinator, place.processes, place.process) == ("a:1", 8, 6)


def test_port_of_the_environment_under_slurm():
    place = find(environ=STEP | {"JAX_COORDINATOR_PORT": "5", "JAX_PLATFORMS": "cpu"})
    assert place.address == ("gpu007-ib", 5)


@pytest.mark.parametrize(
    ("more", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, (4, 5)),
        ({"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_ON_NODE": "4"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, (2,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_LOCAL_DEVICE_IDS": "1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5", "JAX_PLATFORMS": "cpu"}, None),
        (
            {
                "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
                "SLURM_STEP_TASKS_PER_NODE": "1(x8)",
                "SLURM_LOCALID": "0",
            },
            None,
        ),
    ],
)
def test_gpus_of_a_slurm_task(more, devices):
    assert find(environ=STEP | more).devices == devices


def test_gpus_that_do_not_divide():
    with pytest.raises(UserError, match="6 GPUs of a node .* its 4 tasks"):
        find(environ=STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,m2", "n1"), ("n[3,5]", "n3"), ("r[2-4]n[07-09],x", "r2n07")],
)
def test_first_host_of_a_node_list(nodes, first):
    more = {"SLURM_STEP_NODELIST": nodes, "JAX_PLATFORMS": "cpu"}
    assert find(environ=STEP | more).address[0] == first


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"process": 1}, "--process without --coordinator and --processes"),
        ({"processes": 2}, "--processes without --coordinator and --process"),
        ({"coordinator": "a:1"}, "--coordinator without --processes and --process"),
        ({"coordinator": "a:1", "processes": 2}, "without --process:"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "must be below"),
        ({"processes": 1, "process": 1}, "must be below --processes=1"),
        ({"coordinator": "a", "processes": 2, "process": 0}, "must be HOST:PORT"),
        ({"mode": "off", "processes": 2}, "leave out one"),
        ({"mode": "on", "processes": 1}, "leave out one"),
        ({"process": 1, "environ": STEP | {"JAX_PLATFORMS": "cpu"}}, "without"),
    ],
)
def test_flags_that_do_not_fit(given, sentence):
    with pytest.raises(UserError, match=sentence):
        find(**given)


# --- how they meet ------------------------------------------------------------------


def meeting(*places: tuple[int, int], patience: float = 20, port: int = 0) -> list:
    """What becomes of processes (their number, own number) that meet: None or a text."""
    coordinator = f"localhost:{port or free_port()}"

    def one(place):
        try:
            here = distributed.Place(coordinator, *place, "flags")
            return distributed.meet(here, patience)
        except UserError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, places))


def test_all_come_and_all_go():
    assert meeting((3, 2), (3, 0), (3, 1)) == [None] * 3


def test_one_stays_away_and_all_others_know_which():
    said = meeting((4, 0), (4, 1), (4, 3), patience=0.5)
    assert len(set(said)) == 1
    assert "of 4 processes (by flags) number 2 did not come to localhost:" in said[0]


def test_processes_that_count_differently():
    said = meeting((2, 0), (3, 1))
    assert said[0] == said[1]
    assert "process 1 was started as one of 3, process 0 as one of 2" in said[0]


def test_a_number_given_twice():
    assert all(
        "two processes are number 1" in s for s in meeting((3, 0), (3, 1), (3, 1))
    )


def test_nobody_at_the_address():
    port = free_port()
    (said,) = meeting((2, 1), patience=0.3, port=port)
    assert f"found no process 0 at localhost:{port} within 0.3 s" in said
    assert "refused" in said


def test_an_unknown_host():
    place = distributed.Place("no-such-host.invalid:1", 2, 1, "flags")
    with pytest.raises(UserError, match="no-such-host.invalid:1 within"):
        distributed.meet(place, 0.3)


def test_port_in_use():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        (said,) = meeting((2, 0), port=port)
    assert f"port {port} of localhost:{port} is in use" in said


def test_another_program_at_the_address():
    with socket.create_server(("localhost", 0)) as server:

        def hang_up():
            for _ in range(2):
                server.accept()[0].close()

        with concurrent.futures.ThreadPoolExecutor() as pool:
            pool.submit(hang_up)
            (said,) = meeting((2, 1), patience=0.3, port=server.getsockname()[1])
    assert "found no process 0" in said


def test_a_stranger_and_one_who_left_do_not_count():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        both = pool.submit(meeting, (2, 0), port=port)
        for greeting in (b"GET / HTTP/1.1\r\n", b"unipt", b""):
            said = None
            while said is None:
                try:
                    with socket.create_connection(("localhost", port), 5) as peer:
                        peer.sendall(greeting)
                        said = greeting
                except ConnectionRefusedError:
                    time.sleep(0.05)
        assert meeting((2, 1), port=port) == [None]
        assert both.result() == [None]


def test_one_who_left_may_come_again():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        zero = pool.submit(meeting, (3, 0), port=port)
        peer = None
        while peer is None:
            try:
                peer = socket.create_connection(("localhost", port), 5)
            except ConnectionRefusedError:
                time.sleep(0.05)
        with peer:
            peer.sendall(b"unipt_jax 3 1\n")
        assert meeting((3, 1), (3, 2), port=port) == [None] * 2
        assert zero.result() == [None]


# --- processes of their own ---------------------------------------------------------


def test_two_processes_by_flags_share_eight_devices():
    port = free_port()
    codes = [HELLO.format(arguments=flags(port, i)) for i in range(2)]
    proxy = {"http_proxy": "http://localhost:9", "no_proxy": ""}  # gRPC would obey it
    (code0, out0), (code1, out1) = ends([start(c, **proxy) for c in codes])
    assert (code0, code1) == (0, 0), out0 + out1
    assert "2 processes, by flags: 8 devices (cpu), 4 of them in process 0" in out0
    assert "counts 0 2 8" in out0 and "counts 1 2 8" in out1
    assert "by flags" not in out1


def test_two_tasks_of_a_slurm_step_share_eight_devices():
    step = {
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    tasks = [
        start(
            HELLO.format(arguments=""),
            **STEP | step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
        )
        for i in range(2)
    ]
    (code0, out0), (code1, out1) = ends(tasks)
    assert (code0, code1) == (0, 0), out0 + out1
    assert "2 processes, by Slurm step 17.2: 8 devices" in out0
    assert "counts 0 2 8" in out0 and "counts 1 2 8" in out1


def test_two_hosts_that_jax_detects_as_a_tpu_slice_share_eight_devices():
    slice_ = {
        "JAX_FORCE_TPU_INIT": "1",  # jax takes this for a TPU VM
        "TPU_WORKER_HOSTNAMES": "localhost,localhost",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    code = HELLO.format(arguments="'on'")
    hosts = [start(code, **slice_, TPU_WORKER_ID=str(i)) for i in range(2)]
    (code0, out0), (code1, out1) = ends(hosts)
    assert (code0, code1) == (0, 0), out0 + out1
    assert "counts 0 2 8" in out0 and "counts 1 2 8" in out1


def test_on_with_nothing_to_start_from():
    ((code, output),) = ends([start(HELLO.format(arguments="'on'"))])
    assert code == 1
    assert "--distributed=on, but there is nothing to start from" in output


@pytest.mark.parametrize(
    ("end", "code"), [("os.kill(os.getpid(), 9)", -9), ("return 3", 3)]
)
def test_one_that_fails_ends_the_other(end, code):
    port = free_port()
    codes = [ONE_DIES.format(arguments=flags(port, i), end=end) for i in range(2)]
    before = time.monotonic()
    (code0, out0), (code1, out1) = ends([start(c) for c in codes])
    assert time.monotonic() - before < 40
    assert code1 == code, out1
    assert code0 not in (0, 75)
    # Whichever notices first: jax's coordinator, or the collective that it waits in.
    told = ("another task died", "closed by peer", "reset by peer")
    assert any(sentence in out0 for sentence in told), out0
