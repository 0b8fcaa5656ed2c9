"""What the devices do, step by step: a window of steps in, a trace in the workdir out."""

import re
import tempfile
import time
from typing import Any, Self

import jax
from etils import epath

from unipt_jax.errors import UserError
from unipt_jax.report import Report


def window(text: str, steps: int) -> tuple[int, int] | None:
    """ "10:15" -> (10, 15): from 10 completed updates to 15; None for an empty text.

    They count from where the program started, so a resumed run may be profiled too.
    steps: of the whole run. Raises UserError for what is no window of it.
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None:
        raise UserError(
            f"profile='{text}' is not START:STOP, two numbers of updates completed since "
            "the start of the program, such as 10:15"
        )
    start, stop = map(int, found.groups())
    if start >= stop:
        raise UserError(
            f"profile={text} ends before it begins; give START:STOP with START below "
            "STOP, such as 10:15"
        )
    if stop > steps:
        raise UserError(
            f"profile={text} goes beyond the {steps} steps of the run; give a STOP of "
            f"{steps} or less"
        )
    return start, stop


class Profiler:
    """Traces the steps of a window into workdir/profile; without a window, nothing.

    Every process writes files of its own, side by side. As a context manager it ends a
    trace that is under way, however the run ends.
    """

    def __init__(
        self,
        steps: tuple[int, int] | None,
        workdir: epath.Path,
        begin: int,
        log: Report,
    ) -> None:
        """steps: see `window`. begin: updates completed before the program started."""
        self._first, self._last = (begin + n for n in steps) if steps else (-1, -1)
        self._folder, self._log = epath.Path(workdir) / "profile", log
        self._local: tempfile.TemporaryDirectory | None = None
        self._from = self._done = begin
        self._missed = steps is not None

    def __enter__(self) -> Self:
        self.at(self._done)
        return self

    def at(self, done: int, pending: Any = None) -> None:
        """Called after each step, with the updates completed.

        pending: what the last step computes; at the window's edges it is waited for, so
        that the trace holds whole steps.
        """
        self._done = done
        if done == self._first:
            jax.block_until_ready(pending)
            self._start()
        elif done == self._last:
            jax.block_until_ready(pending)
            self._stop()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._local is not None:
            self._stop()
        elif self._missed and kind is None:
            self._log.say(
                f"no profile: it begins after step {self._first}, the run ended at "
                f"{self._done}"
            )

    def _start(self) -> None:
        begin = time.monotonic()
        self._from, self._missed = self._done, False
        self._local = tempfile.TemporaryDirectory()
        jax.profiler.start_trace(self._local.name)
        self._log.pause(begin)

    def _stop(self) -> None:
        """Ends the trace and puts its files, written locally, into the workdir."""
        begin, local = time.monotonic(), self._local
        self._local = None
        with local:
            jax.profiler.stop_trace()
            # One folder, as viewers want of one run of several hosts.
            name = f"steps_{self._from + 1}_to_{self._done}"
            target = self._folder / "plugins" / "profile" / name
            target.mkdir(parents=True, exist_ok=True)
            for file in epath.Path(local.name).glob("plugins/profile/*/*"):
                ending = re.search(r"\.(xplane\.pb|trace\.json\.gz)$", file.name)
                if ending:
                    to = target / f"process_{jax.process_index()}{ending.group()}"
                    to.write_bytes(file.read_bytes())
        self._log.say(
            f"profile of steps {self._from + 1} to {self._done} in {self._folder}; `pip "
            f"install xprof` and `xprof --logdir {self._folder}` show it, TensorBoard "
            f"with that plugin too; {target}/*.trace.json.gz open at ui.perfetto.dev"
        )
        self._log.pause(begin)
