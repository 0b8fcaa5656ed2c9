"""How much faster and smaller than a sort is our ranking, and are the figures equal?

    python -m benchmarks.rank --queries 12000 --gallery 12000

Peers (IRRA, RaSa, torchreid) hold the whole similarity matrix and sort every row of it.
The same embeddings go through ours and through that, on the same threads, in turn.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median

import numpy as np

from benchmarks import report

IMAGES_OF_ONE = 3  # an identity's images, as in CUHK-PEDES: 3,074 of 1,000
FIGURES = ("rank1", "rank5", "rank10", "map", "minp")


def main() -> None:
    parser = report.arguments(__doc__, repeats=3)
    parser.add_argument("--queries", type=int, default=12_000)
    parser.add_argument("--gallery", type=int, default=12_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument(
        "--threads", type=int, default=2, help="of PyTorch; XLA uses all"
    )
    parser.add_argument("--memory", choices=EVALUATORS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(json.dumps(memory(args)))
    else:
        report.finish(compare(args), save=args.save)


def compare(args: argparse.Namespace) -> dict:
    """Memory of each in a process of its own, then times of both in this one."""
    memories = {}
    for name in EVALUATORS:
        report.progress(f"measuring the memory of {name} in a process of its own")
        command = [sys.executable, "-m", "benchmarks.rank", "--memory", name]
        for flag in ("queries", "gallery", "dim", "threads"):
            command += [f"--{flag}", str(getattr(args, flag))]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        memories |= json.loads(answer.stdout.splitlines()[-1])

    report.progress(
        f"ranking {args.queries} queries among {args.gallery} images, {args.dim} wide, "
        f"ours and PyTorch's argsort in turn, {args.repeats} times each"
    )
    data = embeddings(args)
    first, results, functions = {}, {}, {}
    for name, prepare in EVALUATORS.items():
        functions[name] = prepare(*data, threads=args.threads)
        start = time.perf_counter()
        results[name] = functions[name]()
        first[name] = time.perf_counter() - start
        report.progress(f"first run of {name}: {first[name]:.3f} s")
    seconds = report.alternate(functions, args.repeats)

    ours, torch = median(seconds["ours"]), median(seconds["torch"])
    return {
        "benchmark": "rank",
        "ratio": torch / ours,
        "ours_seconds": ours,
        "torch_seconds": torch,
        "ours_first_seconds": first["ours"],  # with compilation
        "max_metric_diff": difference(results["ours"], results["torch"]),
        **memories,
        **{name: results["ours"][name] for name in (*FIGURES, "ties")},
        "queries": args.queries,
        "gallery": args.gallery,
        "dim": args.dim,
        "repeats": args.repeats,
        "threads": args.threads,
    }


def difference(ours: dict[str, float], torch: dict[str, float]) -> float:
    """The most by which a figure of PyTorch's lies outside our bounds, as a fraction.

    Its sort leaves equals in an order that is chance, so any value between the bounds
    is right; without ties the two bounds are one number.
    """
    outside = [
        max(ours[f"{f}_pessimistic"] - torch[f], torch[f] - ours[f"{f}_optimistic"], 0)
        for f in FIGURES
    ]
    return max(outside) / 100


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak resident MiB of this process, and what of it the evaluation added."""
    run = EVALUATORS[args.memory](*embeddings(args), threads=args.threads)
    before = report.peak_rss_mb()  # imports and data
    run()
    peak = report.peak_rss_mb()
    return {
        f"peak_mb_{args.memory}": peak,
        f"peak_mb_{args.memory}_above_data": peak - before,
    }


def embeddings(args: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Query (Q, D) and gallery (N, D) embeddings with their ids: centre and noise.

    Their numbers are multiples of 2**-12 and their lengths 1 but for that rounding, so
    every product and partial sum is a multiple of 2**-24 below 1: float32 holds it, and
    any matrix product gives the same scores to the bit. Otherwise two near scores may
    change places between two libraries, and the figures would differ for that alone.
    """
    rng = np.random.default_rng(0)

    def rows(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
        ids = np.arange(count) % args.gallery // IMAGES_OF_ONE
        x = rng.standard_normal((count, args.dim), dtype=np.float32)
        x = centres[ids] + noise * x
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return np.round(x * 2**12) / 2**12, ids

    identities = -(-args.gallery // IMAGES_OF_ONE)
    centres = rng.standard_normal((identities, args.dim), dtype=np.float32)
    query, query_ids = rows(args.queries, noise=4.0)
    gallery, gallery_ids = rows(args.gallery, noise=1.5)
    return query, gallery, query_ids, gallery_ids


def prepare_ours(query, gallery, query_ids, gallery_ids, *, threads):
    from unipt_jax import ranking

    return lambda: ranking.evaluate(query, gallery, query_ids, gallery_ids)


def prepare_torch(query, gallery, query_ids, gallery_ids, *, threads):
    """The evaluator of IRRA (utils/metrics.py, `rank`), step by step.

    Its two Python loops, over the queries for INP and over the gallery for the
    precisions, are whole-array operations here: this one is the faster.
    """
    import torch

    torch.set_num_threads(threads)
    query, gallery = torch.from_numpy(query), torch.from_numpy(gallery)
    query_ids, gallery_ids = torch.from_numpy(query_ids), torch.from_numpy(gallery_ids)

    def evaluate() -> dict[str, float]:
        similarity = query @ gallery.t()  # (Q, N)
        indices = torch.argsort(similarity, dim=1, descending=True)
        matches = gallery_ids[indices].eq(query_ids[:, None])
        hits = matches.cumsum(1)
        cmc = (hits[:, :10] > 0).double().mean(0)
        relevant = matches.sum(1)
        rank = torch.arange(1, len(gallery) + 1)
        last = (matches * rank).amax(1)
        precision = hits / rank * matches
        ap = precision.sum(1) / relevant
        values = (cmc[0], cmc[4], cmc[9], ap.double().mean())
        values += ((relevant / last).double().mean(),)
        return {f: 100 * v.item() for f, v in zip(FIGURES, values, strict=True)}

    return evaluate


EVALUATORS = {"ours": prepare_ours, "torch": prepare_torch}


if __name__ == "__main__":
    main()
