"""From records on disk to updated weights: what of a step's speed is left?

    python -m benchmarks.end_to_end

Synthetic JPEGs of 384x128 with captions of 20 to 45 tokens are written as a record set,
and pre-training's own pipeline and loop train on them (`ours`), beside the same step on
batches that lie on the device already (`resident`), and beside PyTorch's DataLoader, with
as many workers as read fastest, feeding the expert's step of `reference_torch` (`torch`).
`input_loss` is the share of `resident`'s images a second that `ours` loses (bar on a GPU:
5%), and the hours are what 1.3 million images and 15 epochs would take at the measured
speeds: a projection, not a run. Each timing starts a reader of its own, and its clock
after some steps, so that what was read ahead before counts little.
"""

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room

import jax
import numpy as np

from benchmarks import contestants, pictures, report
from benchmarks.train_step import MODES
from unipt_jax import loop
from unipt_jax.data import pipeline, records, tokenizers
from unipt_jax.errors import UserError

NAMES = ("ours", "resident", "torch")
IMAGES, EPOCHS = 1_300_000, 15  # the paper's pre-training
WARM = 3  # steps before the clock starts
READ = 20  # batches, to find the best number of workers

DEFAULTS = {  # by whether there is a GPU
    False: dict(batch=8, dtype="float32", steps=4, images=256, read_threads=2),
    True: dict(batch=512, dtype="bfloat16", steps=60, images=8192, read_threads=12),
}


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark and prints its figures."""
    contestants.run(arguments, compare, argv)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, with what suits the device where it says nothing."""
    parser = report.arguments(__doc__, repeats=3)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    cpu, gpu = DEFAULTS[False], DEFAULTS[True]

    def number(flag: str, name: str, says: str) -> None:
        says = f"{says}; {cpu[name]}, on a GPU {gpu[name]}"
        parser.add_argument(flag, type=int, help=says)

    number("--batch", "batch", "of a step")
    number("--steps", "steps", "of a timing")
    number("--images", "images", "written to disk")
    number("--read-threads", "read_threads", "of our pipeline")
    parser.add_argument("--tower", choices=contestants.TOWERS, default="vit_b16")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=0, help="0: every usable core")
    parser.add_argument(
        "--workers", type=int, nargs="+", help="of the DataLoader, to choose from"
    )
    parser.add_argument("--compile", choices=MODES, default=MODES[2])
    parser.add_argument("--contestants", nargs="+", choices=NAMES, default=NAMES)
    args = parser.parse_args(argv)
    for name, value in DEFAULTS[contestants.on_gpu()].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    numbers = (args.batch, args.steps, args.images, args.read_threads, args.repeats)
    if min(numbers) < 1:
        raise UserError(
            "--batch, --steps, --images, --read-threads and --repeats must be 1 or "
            f"more, here {', '.join(map(str, numbers))}"
        )
    if args.images < args.batch:
        raise UserError(f"--images {args.images} is less than one --batch {args.batch}")
    return args


def compare(args: argparse.Namespace) -> dict:
    """Writes the set, builds and warms up the contestants, times them in turn."""
    threads = contestants.limit_threads(args.threads)
    cores = len(os.sched_getaffinity(0))
    config = contestants.paper(args.tower, args.batch, args.dtype).unlock()
    config.data.threads = args.read_threads
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files, kilobytes = write_set(folder, args.images, config)
        tokenizer = tokenizers.load(folder / "tokenizer")
        batches = open_batches(folder, tokenizer, config)
        counts = np.diff(batches.table.offsets)
        lengths = list(
            counts[: len(counts) // args.batch * args.batch].reshape(-1, args.batch)
        )
        tokens = tokens_of(tokenizer)
        runs, workers = {}, None
        if {"ours", "resident"} & set(args.contestants):
            runs |= our_runs(args, config, batches, tokens)
        if "torch" in args.contestants:
            choices = args.workers or sorted(
                {0, 1, *(cores * k // 4 for k in (2, 3, 4))}
            )
            reader, workers = their_reader(args, config, files, tokenizer, choices)
            contestants.tell("building torch")
            reference = contestants.theirs(
                config, "expert", threads, args.compile, tokens
            )
            runs["torch"] = fed(reference.step, reader, args.steps)
        runs = {name: runs[name] for name in args.contestants}
        for name, run in runs.items():
            contestants.tell(f"warming up {name}")
            run()
        seconds = in_turn(runs, args.repeats)
    return figures(args, config, lengths, seconds) | {
        "threads": threads,
        "workers": workers,
        "kilobytes_an_image": round(kilobytes, 1),
    }


def figures(
    args: argparse.Namespace,
    config,
    lengths: list[np.ndarray],
    seconds: dict[str, list[float]],
) -> dict:
    """What the seconds of all timings say. lengths: (B,) tokens of texts, by batch."""
    images = args.batch * args.steps
    speed = {name: images / median(values) for name, values in seconds.items()}
    compared = {}
    if {"ours", "resident"} <= set(speed):
        compared["input_loss"] = round(1 - speed["ours"] / speed["resident"], 4)
    if {"ours", "torch"} <= set(speed):
        compared["ratio"] = round(speed["ours"] / speed["torch"], 3)
    hours = {name: IMAGES * EPOCHS / s / 3600 for name, s in speed.items()}
    of_step = {name: args.batch / s for name, s in speed.items()}
    return {
        "benchmark": "end_to_end",
        **compared,
        "images_per_second": {name: round(s, 3) for name, s in speed.items()},
        "projected_hours": {name: round(h, 2) for name, h in hours.items()},
        "projection": f"{IMAGES} images x {EPOCHS} epochs at these speeds; not run",
        **contestants.utilisation(config, lengths, of_step),
        "all_seconds": {n: [round(s, 4) for s in v] for n, v in seconds.items()},
        "tower": args.tower,
        "batch": args.batch,
        "dtype": args.dtype,
        "steps": args.steps,
        "images": args.images,
        "read_threads": args.read_threads,
        "caption_tokens": contestants.CAPTION,
    }


def write_set(folder: Path, count: int, config) -> tuple[list[Path], float]:
    """Files, `records` and `tokenizer` in the folder; the files and kB an image.

    The vocabulary has as many words as BERT's, so that MLM's head has its size; captions
    are drawn from it, with a length drawn evenly from `contestants.CAPTION`.
    """
    size = config.model.image.height, config.model.image.width
    report.progress(f"drawing {count} images of {size[0]}x{size[1]}")
    files, _ = pictures.draw_set(folder, count, size)
    special = list(tokenizers.SPECIAL)
    words = [f"w{i}" for i in range(contestants.BERT.vocabulary - len(special))]
    (folder / "tokenizer").mkdir()
    text = "".join(f"{word}\n" for word in special + words)
    (folder / "tokenizer" / "vocab.txt").write_text(text)
    rng = np.random.default_rng(1)
    shortest, longest = contestants.CAPTION
    rows = []
    for file, n in zip(files, rng.integers(shortest, longest + 1, count), strict=True):
        caption = " ".join(words[i] for i in rng.integers(0, len(words), n - 2))
        image = file.read_bytes()
        rows.append(records.PersonRecord(image, file.stem, captions=(caption,)))
    records.write_set(
        folder / "records", records.PersonRecord, {"pretrain": rows}, metadata={}
    )
    return files, sum(len(row.image) for row in rows) / count / 1000


def tokens_of(tokenizer: tokenizers.Tokenizer) -> contestants.Tokens:
    """The ids that the models must know."""
    ids = {name: getattr(tokenizer, name) for name in ("pad", "cls", "sep", "mask")}
    return contestants.Tokens(len(tokenizer), **ids)


def open_batches(
    folder: Path, tokenizer: tokenizers.Tokenizer, config
) -> pipeline.TrainBatches:
    """Our training stream."""
    return pipeline.TrainBatches(
        records.Records(folder / "records", "pretrain", records.PersonRecord),
        None,
        tokenizer,
        batch_size=config.batch_size,
        rows=np.arange(config.batch_size),
        size=(config.model.image.height, config.model.image.width),
        lengths=tuple(config.data.lengths),
        seed=config.seed,
        progress=False,
    )


def our_runs(
    args, config, batches: pipeline.TrainBatches, tokens
) -> dict[str, Callable]:
    """The runs of `ours` and of `resident`, which share model and step."""
    contestants.tell("building ours")
    ours = contestants.Ours(config, tokens)
    previous = None

    def step(batch: dict[str, jax.Array], wait: bool) -> None:
        nonlocal previous
        ours.state, metrics = ours.update(ours.state, batch)
        # The host stays one step ahead, as in the loop.
        jax.block_until_ready(metrics if wait else previous)
        previous = metrics

    def read() -> Iterator[dict]:
        stream = loop.placed(batches, 0, config, ours.mesh)
        return (batch for batch, _ in stream)

    kept = list(itertools.islice(read(), WARM + args.steps))
    return {
        "ours": fed(step, read, args.steps),
        "resident": fed(step, lambda: iter(kept), args.steps),
    }


def fed(step: Callable, read: Callable[[], Iterator], steps: int) -> Callable:
    """A function that takes so many steps from a new reader, and returns the seconds."""

    def run() -> float:
        stream = read()
        for index in range(WARM):
            step(next(stream), wait=index == WARM - 1)
        start = time.perf_counter()
        for index in range(steps):
            step(next(stream), wait=index == steps - 1)
        seconds = time.perf_counter() - start
        if hasattr(stream, "close"):
            stream.close()  # or it would read ahead into the others' time
        return seconds

    return run


def their_reader(args, config, files: list[Path], tokenizer, choices: list[int]):
    """The DataLoader with the number of workers that reads fastest; that number."""
    try:
        from benchmarks import torch_input
    except ImportError as error:
        raise UserError(
            f"this benchmark needs PyTorch ({error}); install it with "
            "pip install '.[torch]', or leave it out: --contestants ours resident"
        ) from error
    source = records.Records(
        files[0].parent / "records", "pretrain", records.PersonRecord
    )
    captions = [source[i].captions[0] for i in range(len(source))]
    ids, _ = tokenizer.encode(captions, config.data.lengths[-1])
    data = torch_input.Pictures([str(file) for file in files], ids)
    collate = torch_input.Collate(config.data.lengths, tokenizer.pad)

    def read(workers: int) -> Iterator:
        return iter(
            torch_input.loader(
                data,
                collate,
                batch=args.batch,
                workers=workers,
                pinned=contestants.on_gpu(),
            )
        )

    speeds = {workers: reading_speed(read, workers, args.batch) for workers in choices}
    best = max(speeds, key=speeds.get)
    return lambda: read(best), best


def reading_speed(read: Callable[[int], Iterator], workers: int, batch: int) -> float:
    """Images a second of a DataLoader alone; 0 where so many workers fail."""
    try:
        stream = read(workers)
        next(stream)
        start = time.perf_counter()
        for _ in range(READ):
            next(stream)
    except RuntimeError as error:  # most often shared memory that is too small
        report.progress(f"DataLoader, {workers} workers: {str(error).splitlines()[0]}")
        return 0.0
    speed = READ * batch / (time.perf_counter() - start)
    report.progress(f"DataLoader, {workers} workers: {speed:.0f} images/s")
    return speed


def in_turn(runs: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds that each run measures of itself, `repeats` times, each in its turn."""
    seconds = {name: [] for name in runs}
    for turn in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run())
        taken = ", ".join(f"{name} {v[-1]:.3f} s" for name, v in seconds.items())
        report.progress(f"{turn + 1} of {repeats}: {taken}")
    return seconds


if __name__ == "__main__":
    main()
