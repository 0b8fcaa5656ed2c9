"""The caption job: images and a frozen CLIP in, a caption record set out.

Divide, conquer, combine, as UniPT has it: `lexicon` has the phrases, `conquer` chooses
among them, `compose` makes sentences. Processes share the work by shards and need nothing
of each other; a shard that is written is never done again.
"""

import collections
import concurrent.futures
import dataclasses
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from unipt_jax import encoder as encoders
from unipt_jax import report, rundir, sharding
from unipt_jax.captions import compose, pictures, quality, reading
from unipt_jax.captions import report as pages
from unipt_jax.captions.conquer import STEPS, Judge, fit_thresholds
from unipt_jax.captions.lexicon import OPTIONAL, PAPER, Lexicon, Phrase
from unipt_jax.captions.outputs import Outputs, Row
from unipt_jax.captions.pictures import Pictures
from unipt_jax.data import images
from unipt_jax.errors import Stopped, UserError

# A job may go on with these changed: they do not change what is written.
HARMLESS = ("data.threads", "examples", "luperson_t")
AHEAD = 3  # batches that are read while one is decided about


def run(config: Any, workdir: str) -> None:
    """The job: captions of `config.data.images` or `.records`, in `workdir`."""
    _check(config)
    source = pictures.open_pictures(
        config.data.images, config.data.records, config.data.split
    )
    words = reading.read(config.phrases, config.prompts)
    with config.unlocked():
        config.dtype = _dtype(config.dtype)
    folder = epath.Path(workdir)
    outputs = Outputs(
        folder,
        split=config.data.split,
        shards=-(-len(source) // config.shard),
        aligned=source.aligned,
        keep_records=config.keep_records and not source.aligned,
    )
    if outputs.complete and not (folder / "config.json").exists():
        raise UserError(
            f"{folder} is a record set that no caption job made; give another --workdir"
        )
    encoder = encoders.load(
        config.model,
        mesh=sharding.local_mesh(),
        dtype=config.dtype,
        size=tuple(config.size) if any(config.size) else None,
        fit=config.fit,
    )
    rundir.open_workdir(config, folder, harmless=HARMLESS)
    _same_inputs(folder, source.fingerprint() | {"phrases": words.digest})
    if outputs.complete:
        if jax.process_index() == 0:
            outputs.clear()  # a kill may have come between
        print(f"{workdir} has all its captions already; see {workdir}/report.html")
        return
    judge = Judge(encoder, words, config.batch_size)
    job = Job(config, source, words, judge, outputs)
    thresholds = job.thresholds(folder)
    announce(config, source, words, encoder, thresholds, outputs)
    job.write_shards(thresholds)
    for shard in range(outputs.shards):
        outputs.wait(shard)
    if jax.process_index() == 0:
        finish(config, source, words, outputs, thresholds)
    while not outputs.complete:  # jax ends no process before the last is done
        time.sleep(1)


def _check(config: Any) -> None:
    """Raises UserError for numbers with which no job can be done."""
    if config.fit not in images.FITS:
        raise UserError(f"fit '{config.fit}' is not one of {', '.join(images.FITS)}")
    for name, value, low in (
        ("shard", config.shard, 1),
        ("batch_size", config.batch_size, 1),
        ("captions_per_image", config.captions_per_image, 1),
        ("data.threads", config.data.threads, 1),
        ("calibrate.images", config.calibrate.images, 0),
        ("examples", config.examples, 0),
    ):
        if value < low:
            raise UserError(f"{name}={value} must be {low} or more")
    if any(config.size) and (len(config.size) != 2 or min(config.size) < 1):
        raise UserError(
            f"size={tuple(config.size)} must be a height and a width, or (0, 0) for the "
            "model's own"
        )
    split = config.data.split
    if not re.fullmatch(r"\w[\w-]*", split) or split == "all":  # as TFDS reads them
        raise UserError(
            f"data.split '{split}' must be a name of letters, digits, _ and -, not 'all'"
        )
    if not 0 <= config.threshold < 1:
        raise UserError(
            f"threshold={config.threshold} must be a probability, from 0 to below 1"
        )
    for name, share in config.calibrate.targets.items():
        if name not in OPTIONAL or not 0 <= share <= 1:
            raise UserError(
                f"calibrate.targets.{name}={share} must be the share, 0 to 1, of one of "
                + ", ".join(OPTIONAL)
            )


def _dtype(name: str) -> str:
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def _same_inputs(folder: epath.Path, now: dict[str, Any]) -> None:
    """Raises UserError where the images or phrases are others than when it began."""
    file = folder / "inputs.json"
    if file.exists():
        before = json.loads(file.read_text())
        if before != now:
            differ = [k for k in now if before.get(k) != now[k]]
            raise UserError(
                f"{folder} was begun with other {' and '.join(differ)} than are there "
                "now, and its captions would not fit together; use another --workdir"
            )
    elif jax.process_index() == 0:
        rundir.write_json(file, now)


@dataclasses.dataclass
class Loaded:
    """A batch of images. pixels: (batch_size, H, W, 3); places without one are black.

    rows: what is known of each image before it is decided about; a row with a reason
    is skipped.
    """

    pixels: np.ndarray
    rows: list[Row]


@dataclasses.dataclass
class Job:
    """All that a process needs to write its shards."""

    config: Any
    source: Pictures
    words: Lexicon
    judge: Judge
    outputs: Outputs

    def _row(self, index: int, keep: bool) -> tuple[Row, np.ndarray | None]:
        """An image's row and pixels; of an image that cannot be read, why."""
        encoder = self.judge.encoder
        image_id = ""
        try:
            image_id = self.source.image_id(index)
            record = self.source[index]
            image_id = record.image_id
            pixels = images.decode(record.image, *encoder.size, encoder.fit)
            if keep:
                stored = images.as_stored(record.image)
                record = dataclasses.replace(record, image=stored)
        except (OSError, ValueError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return Row(index, image_id, image_id, reason=reason[:300]), None
        row = Row(index, image_id, record.file_path, record=record if keep else None)
        return row, pixels

    def _batches(self, groups: list[np.ndarray], keep: bool) -> Iterator[Loaded]:
        """Groups of image numbers, at most a batch each, read ahead by threads."""
        size = self.judge.batch_size
        pool = concurrent.futures.ThreadPoolExecutor(self.config.data.threads)
        waiting: collections.deque = collections.deque()

        def collect() -> Loaded:
            pixels = np.zeros((size, *self.judge.encoder.size, 3), np.uint8)
            rows = []
            for place, future in enumerate(waiting.popleft()):
                row, image = future.result()
                rows.append(row)
                if image is not None:
                    pixels[place] = image
            return Loaded(pixels, rows)

        try:
            for group in groups:
                waiting.append([pool.submit(self._row, int(i), keep) for i in group])
                if len(waiting) > AHEAD:
                    yield collect()
            while waiting:
                yield collect()
        finally:
            pool.shutdown(cancel_futures=True)

    def _decided(self, groups: list[np.ndarray], keep: bool) -> Iterator:
        """(rows, best, steps) of each group; the device works while the host does."""
        pending = None
        for loaded in self._batches(groups, keep):
            numbers = self.judge.start(loaded.pixels)
            if pending is not None:
                yield pending[0], self.judge.finish(pending[1])
            pending = loaded.rows, numbers
        if pending is not None:
            yield pending[0], self.judge.finish(pending[1])

    def _groups(self, numbers: np.ndarray) -> list[np.ndarray]:
        size = self.judge.batch_size
        return [numbers[i : i + size] for i in range(0, len(numbers), size)]

    def thresholds(self, folder: epath.Path) -> dict[str, int]:
        """Of each optional attribute, in steps: the config's, or fitted to targets."""
        plain = {name: round(self.config.threshold * STEPS) for name in OPTIONAL}
        wanted = min(self.config.calibrate.images, len(self.source))
        if not wanted:
            return plain
        file = folder / "calibration.json"
        if file.exists():
            return plain | json.loads(file.read_text())["thresholds"]
        # Evenly spaced, so that a set in the order of its cameras is seen whole.
        sample = np.arange(wanted) * len(self.source) // wanted
        steps = []
        with _progress(wanted, 0, "calibrating") as bar:
            for rows, found in self._decided(self._groups(sample), keep=False):
                good = [not row.reason for row in rows]
                steps.append(found.steps[: len(rows)][good])
                bar.update(len(rows))
        names = list(self.words.attributes)
        targets = dict(self.config.calibrate.targets)
        everything = np.concatenate(steps)
        if not len(everything):
            raise UserError(
                f"none of the {wanted} images to calibrate with can be read; look at "
                "some of them, or set calibrate.images=0"
            )
        fitted = fit_thresholds(everything, names, targets)
        if jax.process_index() == 0:
            reached = {
                name: float((everything[:, names.index(name)] > t).mean())
                for name, t in fitted.items()
            }
            said = dict(images=len(everything), thresholds=fitted)
            rundir.write_json(file, said | dict(targets=targets, reached=reached))
        return plain | fitted

    def write_shards(self, thresholds: dict[str, int]) -> None:
        """Writes those of this process's shards that are missing.

        Raises Stopped after a SIGTERM.
        """
        stop: list[int] = []
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        mine = range(jax.process_index(), self.outputs.shards, jax.process_count())
        size = self.config.shard
        spans = {
            s: np.arange(len(self.source))[s * size : (s + 1) * size] for s in mine
        }
        left = [shard for shard in mine if not self.outputs.done(shard)]
        groups = {shard: self._groups(spans[shard]) for shard in left}
        keep = self.config.keep_records and not self.source.aligned
        stream = self._decided([g for s in left for g in groups[s]], keep)
        total = sum(map(len, spans.values()))
        before = total - sum(len(spans[s]) for s in left)
        with _progress(total, before, "captions") as bar:
            for shard in left:
                rows: list[Row] = []
                for _ in groups[shard]:
                    batch, found = next(stream)
                    rows += [
                        self.caption(row, best, steps, thresholds)
                        for row, best, steps in zip(
                            batch,
                            found.best.tolist(),
                            found.steps.tolist(),
                            strict=False,
                        )
                    ]
                    bar.update(len(batch))
                    if stop:
                        raise Stopped(
                            f"stopped; {self.outputs.folder} keeps the shards that are "
                            "written, and the same command goes on from there"
                        )
                self.outputs.write(shard, rows)

    def caption(self, row: Row, best, steps, thresholds: dict[str, int]) -> Row:
        """The row with its captions and their evidence."""
        if row.reason:
            return row
        chosen = self.judge.chosen(best, steps, thresholds)
        written = compose.captions(
            self.words,
            chosen,
            seed=self.config.seed,
            image_id=row.image_id,
            count=self.config.captions_per_image,
        )
        return dataclasses.replace(
            row,
            captions=tuple(caption.text for caption in written),
            templates=tuple(caption.template for caption in written),
            evidence=evidence(self.words, chosen, steps),
        )


def evidence(
    words: Lexicon, chosen: dict[str, Phrase], steps: list[int]
) -> dict[str, dict[str, Any]]:
    """Attribute -> the phrase told of, its value, and the best phrase's probability.

    The first two are "" for a thing that was not seen surely enough.
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


def announce(config, source, words, encoder, thresholds, outputs) -> None:
    """Prints the choices in force."""
    if jax.process_index() != 0:
        return
    height, width = encoder.size
    phrases = sum(len(a.phrases) for a in words.attributes.values())
    shown = ", ".join(f"{name} {t / STEPS:g}" for name, t in thresholds.items())
    fitted = config.calibrate.images
    values = {
        "images": f"{len(source)}, of {source.name}",
        "model": f"{encoder.name}, {config.dtype}",
        "devices": f"{jax.device_count()} ({jax.devices()[0].device_kind}), "
        f"{config.batch_size} images each at a time",
        "pictures": f"{height}x{width}, fit {encoder.fit}",
        "phrases": f"{phrases} of {len(words.attributes)} attributes, {config.prompts} "
        f"prompt; {len(words.templates)} templates"
        + (f"; with {config.phrases}" if config.phrases else ""),
        "thresholds": shown + (f" (fitted on {fitted} images)" if fitted else ""),
        "captions": f"{config.captions_per_image} an image, seed {config.seed}",
        "shards": f"{outputs.shards} of {config.shard} images",
    }
    report.choices("caption", values)


def finish(config, source, words, outputs: Outputs, thresholds) -> None:
    """Joins the shards, measures, writes the page, and last what makes it a set."""
    counts = outputs.join(config.luperson_t)
    tally = pages.Tally(words)
    score = quality.Score(words)
    known = source.aligned and bool(source[0].attributes)
    for row in outputs.rows():
        if "reason" not in row:
            tally.add(row)
            if known:
                score.add(row["evidence"], source[row["index"]].attributes)
    summary = counts | tally.figures()
    if known:
        summary["accuracy"] = score.figures()
        print(quality.table(summary["accuracy"]))
    rundir.write_json(outputs.folder / "captions.json", summary)
    html = pages.render(
        title=f"Captions of {source.name}",
        subtitle=f"by {config.model}, seed {config.seed}",
        source=source,
        tally=tally,
        summary=summary,
        thresholds=thresholds,
        paper=PAPER,
        examples=config.examples,
    )
    rundir.write_text(outputs.folder / "report.html", html)
    outputs.finish(
        {
            "name": "captions",
            "made_by": f"unipt_jax.captions, {config.model}",
            "images": source.name,
            "seed": config.seed,
            **counts,
        }
    )
    print(
        f"{counts['captioned']} images captioned, {counts['skipped']} skipped; see "
        f"{outputs.folder}/report.html, and train with "
        f"--config.data.captions={outputs.folder}"
        + (
            f" --config.data.records={outputs.folder}/records"
            if config.keep_records and not source.aligned
            else ""
        )
    )
