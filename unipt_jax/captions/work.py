"""The work of one process of the caption job: image numbers in, written shards out."""

import dataclasses
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from unipt_jax.captions import compose
from unipt_jax.captions.conquer import STEPS, Judge, fit_thresholds
from unipt_jax.captions.lexicon import Lexicon, Phrase
from unipt_jax.captions.loading import Loader
from unipt_jax.captions.outputs import Outputs, Row
from unipt_jax.errors import Stopped, UserError


def decided(loader: Loader, judge: Judge, groups: Sequence[np.ndarray]) -> Iterator:
    """(rows, findings) of each group; the device works while the host does."""
    pending = None
    for loaded in loader.batches(groups):
        numbers = judge.start(loaded.pixels)
        if pending is not None:
            yield pending[0], judge.finish(pending[1])
        pending = loaded.rows, numbers
    if pending is not None:
        yield pending[0], judge.finish(pending[1])


def in_groups(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """Numbers in their order, so many at a time."""
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def calibrate(
    loader: Loader, judge: Judge, targets: Mapping[str, float], count: int
) -> dict[str, Any]:
    """Fits thresholds on so many images: what calibration.json holds.

    targets: attribute -> the share of images in which it should be found.
    """
    count = min(count, len(loader.source))
    # Evenly spaced, so that a set in the order of its cameras is seen whole.
    sample = np.arange(count) * len(loader.source) // count
    steps = []
    with _progress(count, 0, "calibrating") as bar:
        for rows, found in decided(loader, judge, in_groups(sample, judge.batch_size)):
            good = [not row.reason for row in rows]
            steps.append(found.steps[: len(rows)][good])
            bar.update(len(rows))
    everything = np.concatenate(steps)
    if not len(everything):
        raise UserError(
            f"none of the {count} images to calibrate with can be read; look at some of "
            "them, or set calibrate.images=0"
        )
    names = [attribute.name for attribute in judge.attributes]
    fitted = fit_thresholds(everything, names, targets)
    reached = {
        name: float((everything[:, names.index(name)] > threshold).mean())
        for name, threshold in fitted.items()
    }
    return {
        "images": len(everything),
        "thresholds": fitted,
        "targets": dict(targets),
        "reached": reached,
    }


@dataclasses.dataclass(frozen=True)
class Writer:
    """Makes rows of images. thresholds: in steps. count: captions an image."""

    loader: Loader
    judge: Judge
    words: Lexicon
    thresholds: Mapping[str, int]
    seed: int
    count: int

    def rows(self, groups: Sequence[np.ndarray]) -> Iterator[list[Row]]:
        """The finished rows of each group of image numbers."""
        for rows, found in decided(self.loader, self.judge, groups):
            numbers = found.best.tolist(), found.steps.tolist()
            yield [self.caption(*each) for each in zip(rows, *numbers, strict=False)]

    def caption(self, row: Row, best: Sequence[int], steps: Sequence[int]) -> Row:
        """The row with its captions and their evidence."""
        if row.reason:
            return row
        chosen = self.judge.chosen(best, steps, self.thresholds)
        written = compose.captions(
            self.words,
            chosen,
            seed=self.seed,
            image_id=row.image_id,
            count=self.count,
        )
        return dataclasses.replace(
            row,
            captions=tuple(caption.text for caption in written),
            templates=tuple(caption.template for caption in written),
            evidence=evidence(self.words, chosen, steps),
        )


def write_shards(writer: Writer, outputs: Outputs, *, shard_size: int) -> None:
    """Writes those of this process's shards that are missing.

    Raises Stopped after a SIGTERM; the shard in hand is lost.
    """
    stop: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    mine = range(jax.process_index(), outputs.shards, jax.process_count())
    every = np.arange(len(writer.loader.source))
    spans = {s: every[s * shard_size : (s + 1) * shard_size] for s in mine}
    left = [shard for shard in mine if not outputs.done(shard)]
    groups = {s: in_groups(spans[s], writer.judge.batch_size) for s in left}
    stream = writer.rows([group for shard in left for group in groups[shard]])
    total = sum(map(len, spans.values()))
    before = total - sum(len(spans[shard]) for shard in left)
    try:
        with _progress(total, before, "captions") as bar:
            for shard in left:
                with outputs.open(shard) as add:
                    for _ in groups[shard]:
                        rows = next(stream)
                        add(rows)
                        bar.update(len(rows))
                        if stop:
                            raise Stopped(
                                f"stopped; {outputs.folder} keeps the shards that are "
                                "written, and the same command goes on from there"
                            )
    finally:
        stream.close()
        signal.signal(signal.SIGTERM, previous)


def evidence(
    words: Lexicon, chosen: dict[str, Phrase], steps: list[int]
) -> dict[str, dict[str, Any]]:
    """Attribute -> the phrase chosen, its value, and the best phrase's probability.

    The first two are "" for a thing that was not seen surely enough. A caption may leave
    a chosen one out: not every template tells of hair.
    """
    out = {}
    for name, probability in zip(words.attributes, steps, strict=True):
        phrase = chosen.get(name)
        out[name] = {
            "phrase": phrase.text if phrase else "",
            "value": phrase.value if phrase else "",
            "probability": probability / STEPS,
        }
    return out


def _progress(total: int, before: int, what: str) -> tqdm:
    """Images a second, share done, time left; on process 0."""
    first, count = jax.process_index() == 0, jax.process_count()
    return tqdm(
        total=total,
        initial=before,
        desc=what + (f" (process 0 of {count})" if count > 1 else ""),
        unit=" images",
        disable=not first,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
