"""How much faster than PyTorch is our pre-training step, on the same images and texts?

    python -m benchmarks.train_step --batch 8

The paper's sizes (ViT-B/16 at 384x128, BERT-base), random weights, dropout on, the same
threads, in one process and in turn, against the references of `reference_torch`:
`eager` (the method written down plainly, texts padded to 100), `expert` (every trick that
ours uses) and `expert_onednn` (that, with a private operator that PyTorch does not offer
for training). Bars: 1.6 times as fast as `eager`, 1.15 times as fast as `expert`. On a
GPU add --dtype bfloat16 and a larger --batch.
"""

import argparse
import math
import os
import platform
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room

import jax
import numpy as np
from jax.sharding import AxisType

from benchmarks import report
from configs import pretrain
from unipt_jax import host, loop, objectives, sharding
from unipt_jax.data import pipeline
from unipt_jax.errors import UserError
from unipt_jax.models import unipt

VOCABULARY, PAD, CLS, SEP, MASK = 30_522, 0, 101, 102, 103  # bert-base-uncased
WORDS = (1_000, 30_000)  # ids of whole words
CAPTION = (25, 60)  # tokens of a pseudo caption, the shortest and the longest
CONTESTANTS = ("ours", "eager", "expert", "expert_onednn")
TOTAL = 1_000  # steps of the schedule; the race sees the first few


def main() -> None:
    host.keep_memory()  # of both sides: it is one process
    parser = report.arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1, help="in a row, a timing")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=0, help="0: every usable core")
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=CONTESTANTS,
        help="each holds about 4 GiB",
    )
    args = parser.parse_args()
    try:
        report.finish(compare(args), save=args.save)
    except UserError as error:
        raise SystemExit(str(error)) from None


def compare(args: argparse.Namespace) -> dict:
    """Builds and warms up each contestant, then times them in turn."""
    threads = limit_threads(args.threads)
    config = paper(args.batch, args.dtype)
    names = args.contestants
    lengths = {"eager": config.data.lengths[-1:]}
    batches = {
        name: draw(args, lengths.get(name, config.data.lengths)) for name in names
    }
    losses, first, runs, peak, used = {}, {}, {}, {}, {}
    for name in names:
        report.progress(f"building {name} and taking its first step")
        if name == "ours":
            step, memory = ours(config)
        else:
            step, memory = theirs(config, name, threads)
        start = time.perf_counter()
        losses[name] = round(step(batches[name][0], wait=True), 3)
        first[name] = round(time.perf_counter() - start, 1)
        used[name] = []
        runs[name] = turn(step, batches[name], used[name])
        runs[name]()  # every shape is compiled, every cache is warm
        if (gib := memory()) is not None:
            peak[name] = gib
    for run in runs.values():  # the memory that each gives back and takes is settled
        run()
    report.progress(f"timing {', '.join(names)} in turn, {args.repeats} times each")
    times = report.alternate(runs, args.repeats)
    seconds = {name: median(values) / args.steps for name, values in times.items()}
    ratios = {
        f"ratio_{name}": round(seconds[name] / seconds["ours"], 3)
        for name in names
        if name != "ours" and "ours" in names
    }
    return (
        {"benchmark": "train_step"}
        | ratios
        | {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "images_per_second": {
                name: round(args.batch / value, 2) for name, value in seconds.items()
            },
            "cpu_seconds": {  # of all threads: less moved by a busy machine than time is
                name: round(median(values[1:]) / args.steps, 4)
                for name, values in used.items()
            },
            "all_seconds": {
                name: [round(value / args.steps, 4) for value in values]
                for name, values in times.items()
            },
            "batch": args.batch,
            "dtype": args.dtype,
            "threads": threads,
            "text_length": {
                name: sorted({tokens.shape[1] for _, tokens in batches[name]})
                for name in names
            },
            "first_loss": losses,
            "chance_loss": round(math.log(args.batch) + math.log(VOCABULARY), 3),
            "compile_seconds": first,
            "peak_gib": peak,
            "processor": platform.processor() or platform.machine(),
        }
    )


def limit_threads(threads: int) -> int:
    """Binds the process to so many cores, which is what XLA counts; 0: all of them."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise UserError(f"--threads {threads}, but this process has {len(cores)} cores")
    threads = threads or len(cores)
    os.sched_setaffinity(0, cores[:threads])
    return threads


def paper(batch: int, dtype: str):
    """The paper's pre-training, at this batch and precision."""
    config = pretrain.get_config("paper").unlock()
    config.batch_size = batch
    config.model.dtype = dtype
    return config.lock()


def draw(args: argparse.Namespace, lengths: tuple[int, ...]) -> list[tuple]:
    """`steps` batches of noise: uint8 images (B, H, W, 3) and ids (B, L), int32.

    The same for every contestant, but for the length that texts are padded to.
    """
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(args.steps):
        images = rng.integers(0, 256, (args.batch, 384, 128, 3), np.uint8)
        counts = rng.integers(CAPTION[0], CAPTION[1] + 1, args.batch)
        words = rng.integers(*WORDS, (args.batch, max(lengths)))
        place = np.arange(max(lengths))
        tokens = np.where(place < counts[:, None] - 1, words, PAD)
        tokens[:, 0] = CLS
        tokens[np.arange(args.batch), counts - 1] = SEP
        length = pipeline.bucket(counts.max(), lengths)
        batches.append((images, tokens[:, :length].astype(np.int32)))
    return batches


def turn(step: Callable, batches: list[tuple], used: list) -> Callable[[], None]:
    """All batches, one step each; waits for the last, as a training loop would.

    Each call adds the CPU seconds that it took to `used`.
    """

    def run() -> None:
        start = time.process_time()
        for batch in batches[:-1]:
            step(batch, wait=False)
        step(batches[-1], wait=True)
        used.append(time.process_time() - start)

    return run


def ours(config) -> tuple[Callable, Callable]:
    """The step that `loop.fit` takes, on one device: step(batch, wait=) -> loss."""
    device = jax.devices()[0]
    mesh = jax.make_mesh(
        (1, 1), ("data", "fsdp"), devices=[device], axis_types=(AxisType.Auto,) * 2
    )
    model = unipt.build(
        config.model.to_dict(), vocabulary=VOCABULARY, pad=PAD, cls=CLS, sep=SEP
    )
    objective = objectives.pretrain(
        model,
        weights=objectives.PretrainWeights(**config.loss),
        pixels=objectives.Pixels(**config.pixels),
        masked=objectives.Masking(MASK, config.mlm.rate),
    )
    optimiser = loop.make_optimiser(config, TOTAL)
    state, shardings = loop.initial_state(model, optimiser, config.seed, mesh)
    update = loop.make_step(objective, optimiser, config.seed, shardings)
    rows = np.arange(config.batch_size)

    def step(batch: tuple, wait: bool) -> float | None:
        nonlocal state
        arrays = {"image": batch[0], "tokens": batch[1]}
        placed = sharding.place_batch(arrays, rows, config.batch_size, mesh)
        state, metrics = update(state, placed)
        if not wait:
            return None
        jax.block_until_ready(state)
        return float(metrics["loss"])

    def memory() -> float | None:
        peak = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return peak and round(peak / 2**30, 2)

    return step, memory


def theirs(config, kind: str, threads: int) -> tuple[Callable, Callable]:
    """One of the two references: step(batch, wait=) -> loss."""
    from benchmarks import reference_torch  # only here: "ours" alone needs no PyTorch

    special = dict(pad=PAD, cls=CLS, sep=SEP, mask=MASK)
    tokens = reference_torch.Tokens(vocabulary=VOCABULARY, **special)
    gpu = jax.devices()[0].platform == "gpu"
    reference = reference_torch.Reference(
        config,
        kind,
        tokens,
        total=TOTAL,
        device="cuda" if gpu else "cpu",
        threads=threads,
    )
    return reference.step, reference.peak_gib


if __name__ == "__main__":
    main()
