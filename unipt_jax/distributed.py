"""Starts the processes of a run: flags or a scheduler's variables in, one mesh out."""

import contextlib
import dataclasses
import errno
import glob
import importlib.util
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import jax

from unipt_jax.errors import Stopped, UserError

# Seconds. A process may still write pages when the others have ended: they wait, and
# notice where it dies meanwhile.
_SHUTDOWN = 3600
_HEARTBEAT = 100
_GRACE = 5


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among those of a run.

    coordinator: host:port of process 0. source: where this was found. devices: which of
    the GPUs that the process sees are its own; None for all.
    """

    coordinator: str
    processes: int
    process: int
    source: str
    devices: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def start(
    mode: str = "auto",
    *,
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    patience: float = 300,
    heartbeat: int = _HEARTBEAT,
) -> None:
    """Makes this process one of the processes of its run, where it is one of several.

    mode: `auto` looks at the flags, then for a Slurm step of several tasks, a TPU VM,
    and Open MPI's launcher, and starts nothing where there is none of them; `on`
    insists; `off` never starts anything. patience: seconds to wait for the others.
    heartbeat: seconds after which a process that is not heard of counts as dead, and
    jax ends all others. Must come before anything is computed. Raises UserError for
    flags that do not fit, and where the processes do not find each other.
    """
    place = find(mode, coordinator, processes, process, os.environ)
    if place is None and (mode == "off" or processes == 1):
        return
    timeouts = dict(
        initialization_timeout=max(1, round(patience)),
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=_SHUTDOWN,
    )
    if place is None:
        source = _start_detected(mode, os.environ, timeouts)
        if source is None:
            return
    else:
        source = place.source
        _bypass_proxies(place.address[0])
        meet(place, patience)
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            place.devices,
            cluster_detection_method="deactivate",
            **timeouts,
        )
        if jax.process_count() != place.processes:
            raise UserError(
                f"{jax.default_backend()} devices were found for "
                f"{jax.process_count()} processes where {place.source} says "
                f"{place.processes}; start as many as there are, or --distributed=off"
            )
    if jax.process_index() == 0:
        print(
            f"{jax.process_count()} processes, by {source}: {jax.device_count()} "
            f"devices ({jax.devices()[0].device_kind}), {jax.local_device_count()} of "
            "them in process 0",
            flush=True,
        )


def run_and_exit(job: Callable[[], int]) -> NoReturn:
    """Ends this process with the exit code that `job` returns.

    One that fails among several does not wait long for the others, which would wait for
    it: jax then ends them with an error of its own, at once where this is process 0,
    else when its heartbeats stay away.
    """
    try:
        code = job()
    except BaseException:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if code not in (0, Stopped.CODE) and jax.distributed.is_initialized():
        leave = threading.Timer(_GRACE, os._exit, [code])
        leave.daemon = True
        leave.start()
        jax.distributed.shutdown()  # comes back where all processes fail alike
        os._exit(code)
    sys.exit(code)


def find(
    mode: str,
    coordinator: str,
    processes: int | None,
    process: int | None,
    environ: Mapping[str, str],
) -> Place | None:
    """The place that flags or Slurm's variables give, or None where they give none.

    Raises UserError for flags that do not fit together.
    """
    given = {"--coordinator": coordinator or None}
    given |= {"--processes": processes, "--process": process}
    flags = [flag for flag, value in given.items() if value is not None]
    if coordinator and not re.fullmatch(r".+:\d{1,5}", coordinator):
        raise UserError(
            f"--coordinator={coordinator} must be HOST:PORT, the address of process 0"
        )
    contradicts = processes == 1 if mode == "on" else (processes or 1) > 1
    if mode != "auto" and contradicts:
        raise UserError(
            f"--distributed={mode} with --processes={processes}; leave out one of the two"
        )
    slurm = None if mode == "off" else from_slurm(environ, coordinator)
    complete = len(flags) in (0, 3) or processes == 1
    if not complete and not (slurm and flags == ["--coordinator"]):
        missing = " and ".join(flag for flag in given if flag not in flags)
        raise UserError(
            f"{' and '.join(flags)} without {missing}: each process is told host:port "
            "of process 0, how many they are, and its own number, from 0"
        )
    if process is not None and process >= processes:
        raise UserError(
            f"--process={process} must be below --processes={processes}; processes are "
            "numbered from 0"
        )
    if mode == "off" or processes == 1:
        return None
    return Place(coordinator, processes, process, "flags") if processes else slurm


def from_slurm(environ: Mapping[str, str], coordinator: str = "") -> Place | None:
    """The place of one task of several in a Slurm step, as srun's variables tell it.

    None outside of a step (in an allocation's own shell, say) and in a step of a single
    task. The port comes from the ids of job and step, or from JAX_COORDINATOR_PORT.
    Follows jax's detection of Slurm, but for the GPUs: jax gives each task one, which a
    task with a node of its own, or with GPUs that Slurm bound to it, must not have.
    """
    if not {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environ.keys():
        return None
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or 1)
    if tasks == 1:
        return None
    job, step = environ["SLURM_JOB_ID"], environ.get("SLURM_STEP_ID", "0")
    if not coordinator:
        chosen = 61440 + (int(job) * 8 + int(step)) % 4096  # above ephemeral ports
        port = environ.get("JAX_COORDINATOR_PORT") or chosen
        coordinator = f"{_first_host(environ['SLURM_STEP_NODELIST'])}:{port}"
    process = int(environ["SLURM_PROCID"])
    source = f"Slurm step {job}.{step}"
    return Place(coordinator, tasks, process, source, _gpus_of_task(environ))


def _first_host(nodes: str) -> str:
    """The first of Slurm's list of nodes: 'gpu[007-015,020]-ib,big1' -> 'gpu007-ib'."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _gpus_of_task(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """Which of the GPUs that a Slurm task sees are its own; None for all of them.

    Tasks that share a node and all see all of its GPUs divide them in order. Raises
    UserError where they cannot be divided.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environ or environ.get("JAX_PLATFORMS") == "cpu":
        return None
    counts = []  # of tasks, by node: '2(x3),1' -> 2 2 2 1
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "1")
    for part in re.finditer(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(part[1])] * int(part[2] or 1)
    here = counts[min(int(environ.get("SLURM_NODEID", 0)), len(counts) - 1)]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = len(glob.glob("/dev/nvidia[0-9]*"))
    else:
        gpus = len([name for name in visible.split(",") if name.strip()])
    bound = gpus < int(environ.get("SLURM_GPUS_ON_NODE") or 0)
    if here == 1 or bound or gpus < here:
        return None
    if gpus % here:
        raise UserError(
            f"{gpus} GPUs of a node cannot be divided among its {here} tasks; start one "
            "task a GPU or one a node (--ntasks-per-node)"
        )
    share = gpus // here
    first = int(environ.get("SLURM_LOCALID", 0)) * share
    return tuple(range(first, first + share))


def _start_detected(
    mode: str, environ: Mapping[str, str], timeouts: Mapping[str, int]
) -> str | None:
    """Starts what jax detects by itself; returns what that was, None for nothing."""
    tpu, mpi = _on_tpu(environ), int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    nothing = UserError(
        "--distributed=on, but there is nothing to start from: no --coordinator, no "
        "Slurm step of several tasks, no TPU slice, no mpirun; give --coordinator, "
        "--processes and --process, or leave --distributed out"
    )
    if mode == "auto" and not tpu and not (mpi and "OMPI_MCA_orte_hnp_uri" in environ):
        return None
    if "SLURM_STEP_NODELIST" in environ and not tpu:  # jax would take one GPU of it
        raise nothing
    source = "the TPU slice" if tpu else "Open MPI" if mpi else "what jax detects"
    try:
        jax.distributed.initialize(**timeouts)
    except (ValueError, OSError) as error:  # no coordinator; no metadata server
        if mode == "auto":  # alone, it would write where the others wait for it
            raise UserError(
                f"this looks like {source}, but jax cannot start from it ({error}); "
                "start again, or give --distributed=off to run this process alone"
            ) from error
        raise nothing from error
    return source


def _on_tpu(environ: Mapping[str, str]) -> bool:
    """Whether this process will compute on the TPU of a TPU VM."""
    platforms = environ.get("JAX_PLATFORMS") or "tpu"
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    installed = importlib.util.find_spec("libtpu") is not None
    return "tpu" in platforms.split(",") and installed and bool(chips)


def _bypass_proxies(host: str) -> None:
    """Keeps what processes say to each other out of HTTP proxies, which gRPC obeys."""
    if any(name.lower().endswith("_proxy") for name in os.environ):
        for name in ("no_proxy", "no_grpc_proxy"):  # gRPC reads the first that is set
            before = os.environ.get(name) or os.environ.get(name.upper(), "")
            hosts = [h for h in before.split(",") if h]
            os.environ[name] = ",".join([*hosts, host])


def meet(place: Place, patience: float) -> None:
    """Waits until all processes have come to the address of process 0.

    jax's own start aborts where a process stays away or counts wrongly, without saying
    which. So each process first says over a plain connection, on the port that jax will
    use, how many it counts and which it is; when all have come process 0 lets them go.
    Raises UserError in every process that can be told: with those that did not come
    within `patience` seconds, numbers that differ, a number given twice, an address
    where nobody answers, a port in use.
    """
    deadline = time.monotonic() + patience
    if place.process:
        _join(place, deadline, patience)
    else:
        _gather(place, deadline, patience)


def _gather(place: Place, deadline: float, patience: float) -> None:
    """Process 0: lets all others go when all have come, or tells them why not."""
    objection = None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(place))
        came: dict[int, socket.socket] = {}
        while missing := sorted(set(range(1, place.processes)) - came.keys()):
            absent = ", ".join(map(str, missing[:8])) + ", ..." * (len(missing) > 8)
            left = deadline - time.monotonic()
            if left <= 0:
                objection = (
                    f"of {place.processes} processes (by {place.source}) number {absent} "
                    f"did not come to {place.coordinator} within {patience:g} s; start "
                    "all of them at about the same time, or one with --distributed=off"
                )
                break
            server.settimeout(min(left, 30))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                print(f"process 0 waits for {absent}", flush=True)
                continue
            hello = _hello(peer)
            if hello is None:  # another program's connection is no concern of the run
                continue
            came = {n: p for n, p in came.items() if not _gone(p)}
            objection = _objection(*hello, place, came)
            if objection:
                _tell(peer, f"no: {objection}")
                break
            came[hello[1]] = peer
        for peer in came.values():
            _tell(peer, f"no: {objection}" if objection else "go")
    if objection:
        raise UserError(objection)


def _objection(
    processes: int, process: int, place: Place, came: Mapping[int, socket.socket]
) -> str | None:
    """What is wrong with one who says that it is so many's process of that number."""
    if processes != place.processes:
        return (
            f"process {process} was started as one of {processes}, process 0 as one of "
            f"{place.processes}; give all processes the same --processes"
        )
    if process in came:
        return (
            f"two processes are number {process}; give each a --process of its own, "
            f"from 0 to {processes - 1}"
        )
    return None


def _hello(peer: socket.socket) -> tuple[int, int] | None:
    """How many processes the peer counts, and its number; None for other programs."""
    peer.settimeout(5)
    try:
        line = peer.makefile(errors="replace").readline(64)
    except OSError:
        return None
    said = re.fullmatch(r"unipt_jax (\d+) (\d+)\n", line)
    return said and (int(said[1]), int(said[2]))


def _gone(peer: socket.socket) -> bool:
    """Whether the other side has closed its connection."""
    peer.setblocking(False)
    try:
        return not peer.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _tell(peer: socket.socket, line: str) -> None:
    peer.settimeout(5)
    with contextlib.suppress(OSError):  # it has gone: jax will miss it
        peer.sendall(f"{line}\n".encode())


def _listen(place: Place) -> socket.socket:
    """A server on the port of process 0, on all interfaces. Raises UserError."""
    port = place.address[1]
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        return socket.create_server(("", port))
    except (OSError, OverflowError) as error:
        used = getattr(error, "errno", None) == errno.EADDRINUSE
        why = "is in use, perhaps by another process 0" if used else f"fails: {error}"
        raise UserError(
            f"port {port} of {place.coordinator} {why}; choose another with "
            "--coordinator=HOST:PORT (under Slurm: JAX_COORDINATOR_PORT)"
        ) from error


def _join(place: Place, deadline: float, patience: float) -> None:
    """Any other process: waits until process 0 lets it go. Raises UserError."""
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        answer = ""
        try:
            with socket.create_connection(place.address, min(left, 10)) as server:
                server.sendall(
                    f"unipt_jax {place.processes} {place.process}\n".encode()
                )
                server.settimeout(left + 10)  # process 0 gives up first, and says why
                answer = server.makefile(errors="replace").readline().strip()
                why = "another program answers there"
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
        if answer == "go":
            return
        if answer.startswith("no: "):
            raise UserError(answer.removeprefix("no: "))
        time.sleep(0.2)
    raise UserError(
        f"process {place.process} found no process 0 at {place.coordinator} within "
        f"{patience:g} s ({why}); start process 0 there at about the same time, and let "
        "this machine reach that port"
    )
