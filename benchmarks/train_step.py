"""How much faster than PyTorch is our pre-training step, on the same images and texts?

    python -m benchmarks.train_step --batch 8 --dtype both

The paper's sizes (ViT-B/16 at 384x128, BERT-base; --tower deit_s16 for the smaller one),
at most 100 tokens and captions of 20 to 45, random weights, dropout on, the same threads,
in one process and in turn, against the references of `reference_torch`: `expert` (every
trick that ours uses), `eager` (the method written down plainly), `released` (the way of
the published code) and `expert_onednn` (a private operator that PyTorch does not offer
for training). `ratio_NAME` is how often ours is as fast; those of bfloat16 are named
`ratio_NAME_bf16` as well, and by that alone with --dtype both. Bars on two cores: 1.25
for `expert`, 1.8 for `eager`, 2.5 for `released`, 1 for `expert` in bfloat16; on a GPU
1.25 for `expert` in bfloat16.
"""

import argparse
import math
import os
import platform
import time
from statistics import median

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room

from benchmarks import contestants, report
from unipt_jax.errors import UserError

NAMES = ("ours", "expert", "expert_onednn", "eager", "released")
PADDED = ("eager", "released")  # to the longest of all lengths
MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark and prints its figures."""
    contestants.run(arguments, compare, argv)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line; raises UserError for what no machine of this kind can do."""
    parser = report.arguments(__doc__, repeats=5)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--batch", type=int, help="8; on a GPU 512")
    parser.add_argument("--steps", type=int, default=1, help="in a row, a timing")
    parser.add_argument("--tower", choices=contestants.TOWERS, default="vit_b16")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "both"),
        help="float32; on a GPU bfloat16. both: one after the other",
    )
    parser.add_argument("--threads", type=int, default=0, help="0: every usable core")
    parser.add_argument(
        "--compile",
        choices=MODES,
        default="max-autotune-no-cudagraphs",
        help="mode of torch.compile for the expert on a GPU; at large batches CUDA graphs "
        "save nothing (no kernel waits for its launch) and hold a step's memory",
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=NAMES,
        default=NAMES,
        help="each holds about 3 GiB, and one at a time 2 more for its step at batch 8",
    )
    args = parser.parse_args(argv)
    gpu = contestants.on_gpu()
    args.batch = args.batch or (512 if gpu else 8)
    args.dtype = args.dtype or ("bfloat16" if gpu else "float32")
    if args.batch < 1 or args.steps < 1 or args.repeats < 1:
        raise UserError(
            f"--batch {args.batch}, --steps {args.steps} and --repeats {args.repeats} "
            "must be 1 or more"
        )
    return args


def compare(args: argparse.Namespace) -> dict:
    """The figures of each precision, and the ratios of all."""
    threads = contestants.limit_threads(args.threads)
    dtypes = ("float32", "bfloat16") if args.dtype == "both" else (args.dtype,)
    races = {}
    for dtype in dtypes:
        if races:
            contestants.release()
        races[dtype] = race(args, dtype, threads)
    ratios = {}
    for dtype, figures in races.items():
        found = ratios_of(figures["seconds"])
        if dtype == dtypes[0]:
            ratios |= found
        if dtype == "bfloat16":
            ratios |= {f"{name}_bf16": ratio for name, ratio in found.items()}
    return {
        "benchmark": "train_step",
        **ratios,
        "tower": args.tower,
        "batch": args.batch,
        "caption_tokens": contestants.CAPTION,
        "threads": threads,
        "dtypes": races,
        "processor": platform.processor() or platform.machine(),
    }


def ratios_of(seconds: dict[str, float]) -> dict[str, float]:
    """How often ours is as fast as each of the others."""
    return {
        f"ratio_{name}": round(value / seconds["ours"], 3)
        for name, value in seconds.items()
        if name != "ours" and "ours" in seconds
    }


def race(args: argparse.Namespace, dtype: str, threads: int) -> dict:
    """Builds and warms up each contestant, then times them in turn."""
    config = contestants.paper(args.tower, args.batch, dtype)
    plain = dtype == "float32" and not contestants.on_gpu()
    names = [n for n in args.contestants if plain or n != "expert_onednn"]
    size = config.model.image.height, config.model.image.width
    losses, first, runs, peak, used, texts = {}, {}, {}, {}, {}, {}
    for name in names:
        contestants.tell(f"{dtype}: building {name} and taking its first step")
        lengths = config.data.lengths[-1:] if name in PADDED else config.data.lengths
        drawn = contestants.draw(args.batch, args.steps, lengths, size)
        texts[name] = [ids for _, ids in drawn]
        if name == "ours":
            contestant = contestants.Ours(config)
        else:
            contestant = contestants.theirs(config, name, threads, args.compile)
        batches = [contestant.prepare(batch) for batch in drawn]
        start = time.perf_counter()
        losses[name] = round(contestant.step(batches[0], wait=True), 3)
        first[name] = round(time.perf_counter() - start, 1)
        used[name] = []
        runs[name] = turn(contestant, batches, used[name])
        runs[name]()  # every shape is compiled, every cache is warm
        if (gib := contestant.peak_gib()) is not None:
            peak[name] = gib
    for run in runs.values():  # the memory that each gives back and takes is settled
        run()
    report.progress(f"timing {', '.join(names)} in turn, {args.repeats} times each")
    times = report.alternate(runs, args.repeats)
    seconds = {name: median(values) / args.steps for name, values in times.items()}
    real = [(ids != contestants.BERT.pad).sum(1) for ids in texts[names[0]]]
    rounded = {
        "seconds": seconds,
        "images_per_second": {name: args.batch / s for name, s in seconds.items()},
        # Of all threads: less moved by a busy machine than time is.
        "cpu_seconds": {n: median(v[2:]) / args.steps for n, v in used.items()},
    }
    return {
        **{k: {n: round(x, 4) for n, x in v.items()} for k, v in rounded.items()},
        **contestants.utilisation(config, real, seconds),
        "all_seconds": {
            name: [round(value / args.steps, 4) for value in values]
            for name, values in times.items()
        },
        "text_length": {
            name: sorted({ids.shape[1] for ids in texts[name]}) for name in names
        },
        "first_loss": losses,
        "chance_loss": round(
            math.log(args.batch) + math.log(contestants.BERT.vocabulary), 3
        ),
        "compile_seconds": first,
        "peak_gib": peak,
    }


def turn(contestant, batches: list, used: list):
    """A function that takes a step a batch, and adds its CPU seconds to `used`."""

    def run() -> None:
        start = time.process_time()
        contestants.waited(contestant.step, batches)
        used.append(time.process_time() - start)

    return run


if __name__ == "__main__":
    main()
