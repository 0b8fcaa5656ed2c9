"""Processes that share work: items in, results out, in order, a few ahead."""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from unipt_jax.errors import UserError


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin(parent: int) -> None:
    """A worker leaves the keyboard to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that start in the block do not hear the keyboard, even before
    `_begin`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    work: Callable[[Any], Any], items: Iterable, *, workers: int | None
) -> Iterator[Any]:
    """`work` of each item, in their order. workers: processes; None for one a core; 1
    does the work here.

    Raises what `work` raises, and UserError where a process died.
    """
    workers = workers or cores()
    try:
        yield from map(work, items) if workers == 1 else _shared(work, items, workers)
    except (BrokenProcessPool, MemoryError) as error:
        raise UserError(
            f"memory ran out, or one of {workers} worker processes died, as they do "
            "then; run the same command again, with fewer --workers"
        ) from error


def _shared(work: Callable[[Any], Any], items: Iterable, workers: int) -> Iterator[Any]:
    """`run` with processes."""
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, initializer=_begin, initargs=(os.getpid(),)
    )
    waiting: collections.deque = collections.deque()
    try:
        for item in items:
            with _deaf():
                waiting.append(pool.submit(work, item))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
