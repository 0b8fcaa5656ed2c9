"""Contestants in processes of their own: told to work in turn, they answer figures."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report


class Side:
    """A process that holds its data and works when told to."""

    def __init__(self, name: str, module: str, flags: Sequence[str]) -> None:
        """module: of benchmarks; its program must call `serve` with these flags."""
        report.progress(f"{name}: getting ready in a process of its own")
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self._answer()

    def run(self, task: str = "run") -> dict[str, Any]:
        """`seconds`, `mb_above_data` and the `result` of a task."""
        self.process.stdin.write(f"{task}\n")
        self.process.stdin.flush()
        answer = self._answer()
        report.progress(f"{self.name}: {task} {answer['seconds']:.4f} s")
        return answer

    def end(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SystemExit(f"the process of {self.name} ended with exit code {code}")
        return json.loads(line)


def serve(tasks: Mapping[str, Callable[[], Any]], **said: Any) -> None:
    """Does the task that each line on stdin names, and answers on stdout.

    said: what is answered first, when all is ready. The memory that tasks take counts
    from here on: what is held already is data.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew, from here
    before = report.peak_rss_mb()  # imports and data
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        result = tasks[line.strip()]()
        seconds = time.perf_counter() - start
        above = report.peak_rss_mb() - before
        answer = {"seconds": seconds, "mb_above_data": above, "result": result}
        print(json.dumps(answer), flush=True)
