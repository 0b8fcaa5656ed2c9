"""What does the contrastive loss over a large global batch take, in memory and time?

    python -m benchmarks.contrastive

Value and gradients of the loss on embeddings of width 768, on 8 virtual CPU devices (or
on all that there are): in tiles, as pre-training does above `memory.chunk`, at batches up
to 32,768; dense, where the matrix of all pairs fits; and dense in PyTorch. Each in a
process of its own, whose peak of memory is told. Bars: 32,768 within 4 GiB, memory
linear in the batch, gradients equal to the dense ones to 1e-5.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median

from benchmarks import report

WIDTH, SCALE, SEED = 768, 1 / 0.07, 0
TILED = (4096, 8192, 16384, 32768)
DENSE = (4096, 8192)
DEVICES = 8


def main() -> None:
    parser = report.arguments(__doc__.splitlines()[0], repeats=3)
    parser.add_argument("--chunk", type=int, default=1024, help="texts of a tile")
    parser.add_argument("--largest", type=int, default=TILED[-1], help="batch")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "BATCH"), help="in a child")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args)), flush=True)
        return
    runs = [("tiles", b) for b in TILED] + [("dense", b) for b in DENSE]
    runs += [("torch", b) for b in DENSE]
    found = {(w, b): child(w, b, args) for w, b in runs if b <= args.largest}
    report.finish(summary(found, args), save=args.save)


def child(way: str, batch: int, args: argparse.Namespace) -> dict:
    """One way at one batch, in a process of its own; {} where PyTorch is absent."""
    report.progress(f"{way}, a batch of {batch}")
    command = [sys.executable, "-m", "benchmarks.contrastive", "--one", way, str(batch)]
    command += ["--repeats", str(args.repeats), "--chunk", str(args.chunk)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(found: dict[tuple[str, int], dict], args: argparse.Namespace) -> dict:
    """The figures: by way and batch, and the bars'."""

    def column(name: str) -> dict[str, dict[str, float]]:
        ways = dict.fromkeys(way for way, _ in found)
        return {
            way: {
                str(b): row[name] for (w, b), row in found.items() if w == way and row
            }
            for way in ways
        }

    most = max(batch for way, batch in found if way == "tiles")
    least = min(batch for way, batch in found if way == "tiles")
    both = max(b for b in DENSE if b <= most)
    grown = found["tiles", most]["mib"] / found["tiles", least]["mib"]
    tiles, torch = found["tiles", both], found["torch", both]
    result = {
        "benchmark": "contrastive",
        "batch": most,
        "width": WIDTH,
        "mib": found["tiles", most]["mib"],
        "seconds": found["tiles", most]["seconds"],
        "memory_growth": round(grown, 2),
        "batch_growth": most // least,
        "virtual_devices": found["tiles", most]["devices"],
        "max_difference": found["dense", both]["max_difference"],
        "relative_difference": found["dense", both]["relative_difference"],
        "ratio_dense": round(found["dense", both]["seconds"] / tiles["seconds"], 3),
    }
    if torch:
        result["ratio_torch"] = round(torch["seconds"] / tiles["seconds"], 3)
    return result | {
        "ratios_at": both,
        "chunk": args.chunk,
        "mib_by_batch": column("mib"),
        "seconds_by_batch": column("seconds"),
    }


def measure(way: str, batch: int, args: argparse.Namespace) -> dict:
    """Seconds, MiB above the start, and for "dense" how far the tiles' gradients lie."""
    if way == "torch":
        return by_torch(batch, args.repeats)
    import jax

    if os.environ.get("JAX_PLATFORMS", "") == "cpu" or not accelerated():
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", DEVICES)
    import jax.numpy as jnp
    import numpy as np

    from unipt_jax import losses, pairwise, sharding

    mesh = sharding.make_mesh(data=0, fsdp=1)
    tiled = jax.jit(
        jax.value_and_grad(
            lambda i, t: pairwise.contrastive(i, t, SCALE, chunk=args.chunk, mesh=mesh),
            (0, 1),
        )
    )
    dense = jax.jit(
        jax.value_and_grad(lambda i, t: losses.contrastive(i, t, SCALE), (0, 1))
    )
    rows = sharding.batch_sharding(mesh)
    jax.block_until_ready(jax.jit(jnp.sin)(jnp.ones(8)))  # the runtime is there
    begin = memory()
    pair = [jax.device_put(x, rows) for x in embeddings(batch)]
    run = {"tiles": tiled, "dense": dense}[way]
    seconds = timed(lambda: jax.block_until_ready(run(*pair)), args.repeats)
    result = {"seconds": seconds, "mib": round(memory() - begin), "devices": mesh.size}
    if way == "dense":
        ours, theirs = jax.tree.leaves(tiled(*pair)), jax.tree.leaves(run(*pair))
        pairs = zip(ours, theirs, strict=True)
        pairs = [(np.asarray(x), np.asarray(y)) for x, y in pairs]
        result["max_difference"] = max(float(np.abs(x - y).max()) for x, y in pairs)
        result["relative_difference"] = max(  # of each array, to its largest entry
            float(np.abs(x - y).max() / np.abs(y).max()) for x, y in pairs
        )
    return result


def by_torch(batch: int, repeats: int) -> dict:
    """The dense loss in PyTorch; {} where it is absent."""
    try:
        import torch
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    begin = report.peak_rss_mb()
    pair = [torch.from_numpy(x).to(device) for x in embeddings(batch)]
    right = torch.arange(batch, device=device)

    def run() -> None:
        leaves = [x.detach().requires_grad_() for x in pair]
        logits = SCALE * leaves[0] @ leaves[1].T
        entropy = torch.nn.functional.cross_entropy
        ((entropy(logits, right) + entropy(logits.T, right)) / 2).backward()
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = timed(run, repeats)
    if device == "cuda":
        return {
            "seconds": seconds,
            "mib": round(torch.cuda.max_memory_allocated() / 2**20),
        }
    return {"seconds": seconds, "mib": round(report.peak_rss_mb() - begin)}


def embeddings(batch: int) -> list:
    """Two (B, 768) arrays of unit vectors, row i of one near row i of the other."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    image = rng.standard_normal((batch, WIDTH), np.float32)
    text = image + 3 * rng.standard_normal((batch, WIDTH), np.float32)
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]


def accelerated() -> bool:
    """Whether JAX finds anything but CPUs."""
    code = "import jax; print(jax.default_backend())"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip() != "cpu"


def memory() -> float:
    """MiB held at most so far: of this process, or on the first device."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 2**20
    return report.peak_rss_mb()


def timed(run: Callable[[], object], repeats: int) -> float:
    """Median seconds of a warm run."""
    run()
    return round(median(report.alternate({"run": run}, repeats)["run"]), 3)


if __name__ == "__main__":
    main()
