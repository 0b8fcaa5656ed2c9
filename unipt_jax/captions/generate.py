"""The caption job: images and a frozen CLIP in, a caption record set out.

Divide, conquer, combine, as UniPT has it: `lexicon` has the phrases, `conquer` chooses
among them, `compose` makes sentences. Processes share the work by shards and need nothing
of each other; a shard that is written is never done again.
"""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from unipt_jax import encoder as encoders
from unipt_jax import report, rundir, sharding, tree
from unipt_jax.captions import pictures, quality, reading, work
from unipt_jax.captions import report as pages
from unipt_jax.captions.conquer import STEPS, Judge
from unipt_jax.captions.lexicon import OPTIONAL, PAPER, Lexicon
from unipt_jax.captions.loading import Loader
from unipt_jax.captions.outputs import LUPERSON_T, Outputs
from unipt_jax.captions.pictures import Pictures
from unipt_jax.data import images
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError

# A job may go on with these changed: they do not change what is written.
HARMLESS = ("data.threads", "examples", "luperson_t")
STOPPED = "stopped.json"  # one of several processes says here why it ended


def run(config: Any, workdir: str) -> None:
    """The job: captions of `config.data.images` or `.records`, in `workdir`."""
    _check(config, workdir)
    source = pictures.open_pictures(
        config.data.images, config.data.records, config.data.split
    )
    words = reading.read(config.phrases, config.prompts)
    with config.unlocked():
        config.dtype = _dtype(config.dtype)
        config.batch_size = sharding.per_device(config.batch_size)
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
    if jax.process_index() == 0 and (folder / STOPPED).exists():
        (folder / STOPPED).unlink()  # of an earlier try
    rundir.open_workdir(config, folder, harmless=HARMLESS)
    with _said_to_others(folder):
        model = {"model": encoder.name, "weights": tree.digest(encoder.params)}
        inputs = source.fingerprint() | {"phrases": words.digest} | model
        _same_inputs(folder, inputs)
        _run(config, source, words, encoder, outputs)


def _run(config, source: Pictures, words: Lexicon, encoder: Encoder, outputs) -> None:
    """The job, all of whose inputs are known to be those it began with."""
    folder = outputs.folder
    if outputs.complete:
        if jax.process_index() == 0:
            outputs.clear()  # a kill may have come between
            if config.luperson_t and not (folder / LUPERSON_T).exists():
                outputs.write_luperson_t()
        print(f"{folder} has all its captions already; see {folder}/report.html")
        return
    judge = Judge(encoder, words, config.batch_size)
    loader = Loader(
        source=source,
        size=encoder.size,
        fit=encoder.fit,
        batch_size=judge.batch_size,
        threads=config.data.threads,
        keep=False,
    )
    thresholds = _thresholds(config, loader, judge, folder)
    announce(config, source, words, encoder, thresholds, outputs)
    keep = config.keep_records and not source.aligned
    writer = work.Writer(
        loader=dataclasses.replace(loader, keep=keep),
        judge=judge,
        words=words,
        thresholds=thresholds,
        seed=config.seed,
        count=config.captions_per_image,
    )
    work.write_shards(writer, outputs, shard_size=config.shard)
    _wait(folder, lambda: all(map(outputs.done, range(outputs.shards))))
    if jax.process_index() == 0:
        finish(config, source, words, outputs, thresholds)
    _wait(folder, lambda: outputs.complete)  # jax ends none before the last is done


@contextlib.contextmanager
def _said_to_others(folder: epath.Path) -> Iterator[None]:
    """Where one of several processes ends early, the others learn of it."""
    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1 and not (folder / STOPPED).exists():
            said = {"process": jax.process_index(), "reason": str(error)}
            rundir.write_json(folder / STOPPED, said)
        raise


def _wait(folder: epath.Path, ready: Callable[[], bool]) -> None:
    """Waits for what another process does. Raises UserError if one has ended."""
    while not ready():
        if (folder / STOPPED).exists():
            said = json.loads((folder / STOPPED).read_text())
            raise UserError(
                f"process {said['process']} ended before its work was done "
                f"({said['reason']}); run the same command again"
            )
        time.sleep(1)


def _check(config: Any, workdir: str) -> None:
    """Raises UserError for values with which no job can be done."""
    if "://" in workdir:
        raise UserError(
            f"{workdir} is no local folder; write to one that all processes share, then "
            "copy it"
        )
    if config.fit not in images.FITS:
        raise UserError(f"fit '{config.fit}' is not one of {', '.join(images.FITS)}")
    for name, value, low in (
        ("shard", config.shard, 1),
        ("batch_size", config.batch_size, 0),
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
    """Raises UserError where images, phrases or weights are others than when the job
    began, or than process 0 has."""
    file = folder / "inputs.json"
    if jax.process_index() == 0 and not file.exists():
        rundir.write_json(file, now)
    _wait(folder, file.exists)
    before = json.loads(file.read_text())
    if before != now:
        differ = [k for k in now if before.get(k) != now[k]]
        raise UserError(
            f"{folder} was begun with other {' and '.join(differ)} than are there now, "
            "and its captions would not fit together; use another --workdir"
        )


def _thresholds(config, loader: Loader, judge: Judge, folder) -> dict[str, int]:
    """Of each optional attribute, in steps: the config's, or fitted by process 0."""
    plain = {name: round(config.threshold * STEPS) for name in OPTIONAL}
    if not config.calibrate.images:
        return plain
    file = folder / "calibration.json"
    if jax.process_index() == 0 and not file.exists():
        targets = dict(config.calibrate.targets)
        found = work.calibrate(loader, judge, targets, config.calibrate.images)
        rundir.write_json(file, found)
    _wait(folder, file.exists)
    return plain | json.loads(file.read_text())["thresholds"]


def announce(config, source, words, encoder, thresholds, outputs) -> None:
    """Prints the choices in force."""
    if jax.process_index() != 0:
        return
    height, width = encoder.size
    phrases = sum(len(a.phrases) for a in words.attributes.values())
    shown = ", ".join(f"{name} {t / STEPS:g}" for name, t in thresholds.items())
    fitted = ""
    if config.calibrate.images:
        said = json.loads((outputs.folder / "calibration.json").read_text())
        shares = (
            f"{name} {100 * share:.2g}%" for name, share in said["reached"].items()
        )
        fitted = f"fitted on {said['images']} images, of which have {', '.join(shares)}"
    values = {
        "images": f"{len(source)}, of {source.name}",
        "model": f"{encoder.name}, {config.dtype}",
        "devices": f"{jax.device_count()} ({jax.devices()[0].device_kind}), "
        f"{config.batch_size} images each at a time",
        "pictures": f"{height}x{width}, fit {encoder.fit}",
        "phrases": f"{phrases} of {len(words.attributes)} attributes, {config.prompts} "
        f"prompt; {len(words.templates)} templates"
        + (f"; with {config.phrases}" if config.phrases else ""),
        "thresholds": shown,
        **({"calibration": fitted} if fitted else {}),
        "captions": f"{config.captions_per_image} an image, seed {config.seed}",
        "shards": f"{outputs.shards} of {config.shard} images",
    }
    report.choices("caption", values)


def finish(config, source, words, outputs: Outputs, thresholds) -> None:
    """Joins the shards, measures, writes the page, and last what makes it a set."""
    counts = outputs.join()
    if config.luperson_t:
        outputs.write_luperson_t()
    tally = pages.Tally(words)
    score = quality.Score(words)
    known = None  # whether it is known what is true of the images: the first tells
    for row in outputs.rows():
        if "reason" not in row:
            tally.add(row)
            if known is None:
                known = source.aligned and bool(source[row["index"]].attributes)
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
