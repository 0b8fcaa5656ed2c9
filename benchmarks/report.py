"""Times functions in turn and prints a benchmark's figures as one JSON object."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """A parser with the two flags that every benchmark has: --repeats and --save."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help="timings of each")
    parser.add_argument(
        "--save",
        action="store_true",
        help="also write the figures to benchmarks/results/",
    )
    return parser


def progress(sentence: str) -> None:
    """Says on stderr what runs: stdout is for the figures."""
    print(sentence, file=sys.stderr, flush=True)


def environment() -> dict[str, str | int]:
    """Versions (of torch: "-" where it is absent), device kind and usable cores."""
    import jax  # here, so that a process that only measures memory stays small

    versions = {}
    for package in ("jax", "torch", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "-"
    return versions | {
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": len(os.sched_getaffinity(0)),
    }


def alternate(
    functions: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each function, `repeats` times, each in its turn.

    In turn, so that a machine that slows down or is shared slows all of them. A
    function must wait for its own result (`jax.block_until_ready`) and be warm.
    """
    seconds = {name: [] for name in functions}
    for turn in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
        taken = ", ".join(
            f"{name} {times[-1]:.3f} s" for name, times in seconds.items()
        )
        progress(f"{turn + 1} of {repeats}: {taken}")
    return seconds


def peak_rss_mb() -> float:
    """The most memory this process has held so far, in MiB.

    From Linux's VmHWM: `resource.getrusage` gives a child its parent's peak as well.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def result_file(benchmark: str, device: str) -> Path:
    """Where figures are kept: results/NAME.json of CPUs, results/NAME.DEVICE.json else.

    device: its kind as JAX gives it: "NVIDIA H200" becomes "h200".
    """
    words = re.findall("[a-z0-9]+", device.lower().removeprefix("nvidia"))
    place = "" if words == ["cpu"] else f".{'_'.join(words)}"
    return RESULTS / f"{benchmark}{place}.json"


def finish(figures: dict, *, save: bool = False) -> None:
    """Prints figures and environment as one JSON object, the last line of the run.

    `figures["benchmark"]` names the benchmark; with `save` the same object is written
    to its `result_file`.
    """
    result = figures | environment()
    if save:
        RESULTS.mkdir(exist_ok=True)
        path = result_file(figures["benchmark"], result["device"])
        path.write_text(json.dumps(result, indent=2) + "\n")
        progress(f"wrote {path}")
    print(json.dumps(result), flush=True)
