"""What a person sees of a run: a progress line, metrics.jsonl, TensorBoard events."""

import contextlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from etils import epath

# What rows say of a run's speed: another run, or a resumed one, has other values.
SPEED = ("images_per_second", "step_seconds", "tflops_per_second", "mfu", "input_wait")
# The progress line: short names; values that are shown otherwise than as `.4g`; what it
# leaves out (metrics.jsonl has it), and, where that is still too long, what else, in turn.
SHORT = {"images_per_second": "img/s", "tflops_per_second": "TFLOP/s"}
SHORT |= {"input_wait": "wait", "gradient_norm": "grad"}
FORMATS = {"images_per_second": ",.0f", "mfu": ".1f", "input_wait": ".0f"}
PERCENT = ("mfu", "input_wait")
UNSHOWN = ("step_seconds",)
SPARE = ("gradient_norm", "tflops_per_second", "temperature", "lr", "input_wait")
COLUMNS = 100  # of the line where it is no terminal that shows it


def _event_writer(folder: epath.Path, purge_step: int) -> Any:
    """TensorBoard's events, without PyTorch.

    tensorboardX imports it wherever it is installed, a second of every start; None in
    its place says that it is not there.
    """
    absent = sys.modules.setdefault("torch", None) is None
    try:
        from tensorboardX import SummaryWriter
    finally:
        if absent:
            del sys.modules["torch"]
    return SummaryWriter(str(folder), purge_step=purge_step)


def choices(title: str, values: Mapping[str, Any]) -> None:
    """Prints the choices in force, a line each."""
    width = max(len(name) for name in values)
    lines = [f"  {name:<{width}}  {value}" for name, value in values.items()]
    print("\n".join([title, *lines]), flush=True)


def parameter_table(params: Any) -> None:
    """Prints the number of parameters under each of the upper two levels of names."""
    counts: dict[str, int] = {}
    for name, value in parameter_overview.flatten_dict(params).items():
        group = "/".join(name.split("/")[:2])
        counts[group] = counts.get(group, 0) + int(np.prod(value.shape))
    total = sum(counts.values())
    shown = {name: f"{count:>13,}" for name, count in counts.items()}
    choices("parameters", shown | {"total": f"{total:>13,}"})


def clock(seconds: float) -> str:
    """3725 -> "1:02:05"; 65 -> "1:05"."""
    minutes, second = divmod(max(int(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def progress(step: str, values: Mapping[str, float], left: str, width: int) -> str:
    """The line on the terminal: as much of the values as is worth so many columns."""
    shown = {
        name: f"{SHORT.get(name, name)} {value:{FORMATS.get(name, '.4g')}}"
        + ("%" if name in PERCENT else "")
        for name, value in values.items()
        if name not in UNSHOWN
    }
    for spare in (None, *SPARE):  # at first nothing is left out
        shown.pop(spare, None)
        line = f"step {step}  {' '.join(shown.values())}  {left}"
        if len(line) <= width:
            break
    return line


class Report:
    """Writes a run's numbers from process 0; on the others it writes nothing.

    A run that resumes at step `start` drops the rows beyond it, which were written
    after the checkpoint it resumes from: they come again, the same but for `SPEED`.
    peak: FLOP/s that all its devices can reach, None where that is not known.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        start: int,
        total: int,
        batch_size: int,
        peak: float | None = None,
    ) -> None:
        self._active = jax.process_index() == 0
        self._total, self._batch_size, self._peak = total, batch_size, peak
        self._path = epath.Path(workdir) / "metrics.jsonl"
        self._terminal = sys.stderr.isatty()
        self.started(start)
        if not self._active:
            return
        self._rows = _rows_until(self._path, start)
        self._rewrite()
        self._events = _event_writer(epath.Path(workdir) / "events", start + 1)

    def _rewrite(self) -> None:
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        partial.replace(self._path)

    @property
    def _appends(self) -> bool:
        return "://" not in str(self._path)

    def started(self, step: int) -> None:
        """The first update is done: compilation does not count as training time."""
        self._begin = time.monotonic()
        self._start = step
        self._restart(self._begin, step)

    def _restart(self, now: float, step: int) -> None:
        """What is measured from here on is of the next row."""
        self._mark, self._mark_step = now, step
        self._flops = self._waited = 0.0

    def pause(self, begin: float) -> None:
        """Takes the time since `begin` (an evaluation, a save) out of the speed."""
        self._mark += time.monotonic() - begin

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What happens in here is waiting for input."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    def count(self, flops: float) -> None:
        """Adds the model FLOPs of a step, of all devices together."""
        self._flops += flops

    def write(self, step: int, metrics: Mapping[str, Any], speed: bool = True) -> None:
        """One row: `step`, the metrics and, with `speed`, that since the row before."""
        values = {k: float(v) for k, v in metrics.items()}
        if speed:
            values |= self._speed(step)
        if not self._active:
            return
        # JSON has no NaN and no Infinity: they are written as null.
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        row = {"step": step} | finite
        self._rows.append(row)
        if self._appends:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._line(step, values)

    def _speed(self, step: int) -> dict[str, float]:
        """The values of `SPEED` since the row before; none where there was no step.

        images_per_second. step_seconds: a step's, on average. tflops_per_second: model
        FLOPs (`flops.step`) of all devices, in 10^12; mfu: in percent of the peak of all
        devices. input_wait: percent of the time in which the loop waited for a batch;
        the devices, a step behind, may have worked meanwhile: it is the most that faster
        input could save.
        """
        now, steps = time.monotonic(), step - self._mark_step
        seconds, flops, waited = now - self._mark, self._flops, self._waited
        self._restart(now, step)
        if steps < 1:
            return {}
        seconds = max(seconds, 1e-9)
        values = {
            "images_per_second": round(steps * self._batch_size / seconds, 2),
            "step_seconds": round(seconds / steps, 6),
        }
        if flops:
            values["tflops_per_second"] = float(f"{flops / seconds / 1e12:.4g}")
            if self._peak:
                values["mfu"] = round(100 * flops / seconds / self._peak, 2)
        values["input_wait"] = round(100 * waited / seconds, 2)
        return values

    def _line(self, step: int, values: Mapping[str, float]) -> None:
        done = step - self._start
        left = (
            (time.monotonic() - self._begin) / done * (self._total - step)
            if done > 0
            else 0
        )
        width = shutil.get_terminal_size().columns - 1 if self._terminal else COLUMNS
        line = progress(f"{step}/{self._total}", values, f"{clock(left)} left", width)
        if self._terminal:
            print(f"\r{line[:width]:<{width}}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, from process 0."""
        if self._active:
            print(("\n" if self._terminal else "") + text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Makes all rows so far visible to others; called at every save."""
        if self._active:
            if not self._appends:
                self._rewrite()
            self._events.flush()

    def close(self) -> None:
        """Writes what is left and ends the progress line."""
        self.flush()
        if self._active:
            self._events.close()
            if self._terminal:
                print(file=sys.stderr)


def _rows_until(path: epath.Path, step: int) -> list[dict[str, Any]]:
    """The whole rows of a metrics file that are not beyond `step`."""
    rows = []
    if step and path.exists():
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line a kill cut short: its step is beyond any save
            if row["step"] <= step:
                rows.append(row)
    return rows


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none where it has none."""
    return _rows_until(epath.Path(workdir) / "metrics.jsonl", sys.maxsize)
