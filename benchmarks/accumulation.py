"""What does a large batch in parts cost, and is its gradient the whole batch's?

    python -m benchmarks.accumulation

The pre-training objective on towers of the quickstart's size, dropout on, a batch of
512: all at once, and in parts of 64 (`memory.micro_batch`), in turn, in one process.
Bars: gradients equal to 1e-5, at most 1.45 times the time. On a GPU, --size paper
--dtype bfloat16 takes the paper's towers.
"""

import argparse
from collections.abc import Callable
from statistics import median

import jax
import numpy as np

from benchmarks import report
from configs import pretrain
from unipt_jax import host, objectives, sharding, tree
from unipt_jax.models import unipt

VOCABULARY, PAD, CLS, SEP, MASK = 2_000, 0, 1, 2, 3
CAPTION = (20, 45)  # tokens, the shortest and the longest


def main() -> None:
    host.keep_memory()
    parser = report.arguments(__doc__.splitlines()[0], repeats=7)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--part", type=int, default=64)
    parser.add_argument("--size", choices=("quickstart", "paper"), default="quickstart")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    report.finish(compare(args), save=args.save)


def compare(args: argparse.Namespace) -> dict:
    """Both ways in turn, after one look at their gradients."""
    config = pretrain.get_config(args.size).unlock()
    config.model.dtype = args.dtype
    config.model.image.dropout = config.model.text.dropout = 0.1
    config.pixels.update(dict(flips=True, shift=3))
    model = unipt.build(
        config.model.to_dict(), vocabulary=VOCABULARY, pad=PAD, cls=CLS, sep=SEP
    )
    params = jax.jit(lambda key: unipt.initialise(model, key))(jax.random.key(0))
    batch = draw(config, args.batch)
    key = jax.random.key(1)
    runs, gradients, values, held = {}, {}, {}, {}
    for name, part in (("whole", 0), ("parts", args.part)):
        report.progress(f"compiling {name}")
        run = compiled(config, model, part, (params, batch, key))
        (values[name], _), gradients[name] = run(params, batch, key)
        held[name] = round(run.memory_analysis().temp_size_in_bytes / 2**20)
        runs[name] = waiting(run, params, batch, key)
    pairs = zip(*(tree.flatten(gradients[n]).values() for n in runs), strict=True)
    far = max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(gradients["whole"]))
    report.progress(f"timing both in turn, {args.repeats} times each")
    times = report.alternate(runs, args.repeats)
    seconds = {name: round(median(taken), 3) for name, taken in times.items()}
    ratios = [p / w for p, w in zip(times["parts"], times["whole"], strict=True)]
    return {
        "benchmark": "accumulation",
        "times_the_whole": round(median(ratios), 3),
        "max_difference": far,
        "largest_gradient": round(largest, 3),
        "loss_difference": abs(float(values["parts"]) - float(values["whole"])),
        "seconds": seconds,
        "working_mib": held,
        "batch": args.batch,
        "part": args.part,
        "size": args.size,
        "dtype": args.dtype,
    }


def draw(config, batch: int) -> dict[str, jax.Array]:
    """A batch of noise: images, and texts of 20 to 45 tokens in one bucket."""
    rng = np.random.default_rng(0)
    size = config.model.image.height, config.model.image.width
    counts = rng.integers(CAPTION[0], CAPTION[1] + 1, batch)
    length = min(n for n in config.data.lengths if n >= CAPTION[1])
    words = rng.integers(MASK + 1, VOCABULARY, (batch, length))
    place = np.arange(length)
    tokens = np.where(place < counts[:, None] - 1, words, PAD)
    tokens[:, 0] = CLS
    tokens[np.arange(batch), counts - 1] = SEP
    images = rng.integers(0, 256, (batch, *size, 3), np.uint8)
    return jax.device_put({"image": images, "tokens": tokens.astype(np.int32)})


def compiled(config, model: unipt.DualEncoder, part: int, args: tuple):
    """Value and gradient of pre-training's objective, so many samples at a time."""
    objective = objectives.pretrain(
        model,
        weights=objectives.PretrainWeights(**config.loss),
        pixels=objectives.Pixels(**config.pixels),
        masked=objectives.Masking(MASK, config.mlm.rate),
        memory=objectives.Memory(part, mesh=sharding.local_mesh()),
    )
    grad = jax.value_and_grad(objective, has_aux=True)
    return jax.jit(grad).lower(*args).compile()


def waiting(run: Callable, *args) -> Callable[[], None]:
    """A warm call that waits for its result."""

    def call() -> None:
        jax.block_until_ready(run(*args))

    call()
    return call


if __name__ == "__main__":
    main()
