"""How much faster and smaller than a sort is our ranking, and are the figures equal?

    python -m benchmarks.rank
    python -m benchmarks.rank --gallery 1000000 --queries 10000 --identities 50000 \
        --ours-only

The first is at ICFG-PEDES's size: 19,848 captions and as many images of 1,000 persons.
The evaluators of the field (IRRA, RaSa, torchreid) hold the whole similarity matrix and
sort every row of it. The same embeddings go through ours and through that, each side in
a process of its own with as many threads as cores, turn by turn. The second is of a
size that no such matrix fits: Rank-k and the ten best.
"""

import argparse
import os
from statistics import median

import numpy as np

from benchmarks import report, sides

FIGURES = ("rank1", "rank5", "rank10", "map", "minp")
SIZES = ("queries", "gallery", "identities", "dim")
BLOCK = 16_384  # rows that are drawn at once


def main() -> None:
    parser = report.arguments(__doc__, repeats=3)
    parser.add_argument("--queries", type=int, default=19_848)
    parser.add_argument("--gallery", type=int, default=19_848)
    parser.add_argument("--identities", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument(
        "--ours-only", action="store_true", help="Rank-k and top-10, without a peer"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args)
        return
    load = os.getloadavg()[0]
    figures = measure_ours(args) if args.ours_only else compare(args)
    sizes = {size: getattr(args, size) for size in SIZES}
    figures |= sizes | {"repeats": args.repeats, "load_before": load}
    report.finish(figures, save=args.save)


def compare(args: argparse.Namespace) -> dict:
    """Ours and PyTorch's argsort in turn."""
    both = {name: start(name, args) for name in ("ours", "torch")}
    first = {name: side.run() for name, side in both.items()}  # with compilation
    turns = [
        {name: side.run()["seconds"] for name, side in both.items()}
        for _ in range(args.repeats)
    ]
    ours, torch = (median(turn[name] for turn in turns) for name in both)
    for side in both.values():
        side.end()
    result = first["ours"]["result"]
    return {
        "benchmark": "rank",
        "ratio": torch / ours,
        "ratio_worst_turn": min(turn["torch"] / turn["ours"] for turn in turns),
        "ours_seconds": ours,
        "torch_seconds": torch,
        "ours_first_seconds": first["ours"]["seconds"],
        "max_metric_diff": difference(result, first["torch"]["result"]),
        "ours_mb_above_data": first["ours"]["mb_above_data"],
        "torch_mb_above_data": first["torch"]["mb_above_data"],
        **{name: result[name] for name in (*FIGURES, "ties")},
    }


def measure_ours(args: argparse.Namespace) -> dict:
    """Rank-k, and the ten best, each in a process of its own."""
    figures = {"benchmark": "rank_million"}
    for name in ("ours", "top10"):
        side = start(name, args)
        answers = [side.run() for _ in range(args.repeats)]
        side.end()
        key = "rank" if name == "ours" else name
        figures[f"{key}_seconds"] = median(a["seconds"] for a in answers)
        figures[f"{key}_mb_above_data"] = max(a["mb_above_data"] for a in answers)
        result = answers[0]["result"]
        figures |= {
            k: result[k] for k in (*FIGURES, "ties", "top10_rank1") if k in result
        }
    return figures


def start(name: str, args: argparse.Namespace) -> sides.Side:
    """The process of one side, its embeddings made."""
    sizes = [f"--{size}={getattr(args, size)}" for size in SIZES]
    return sides.Side(name, "rank", ["--side", name, *sizes])


def serve(args: argparse.Namespace) -> None:
    """Evaluates once for every line on stdin, and answers on stdout."""
    sides.serve({"run": SIDES[args.side](*embeddings(args))})


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


def embeddings(args: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Query (Q, D) and gallery (N, D) embeddings with their ids: centre and noise.

    Their numbers are multiples of 2**-12 and their lengths 1 but for that rounding, so
    every product and partial sum is a multiple of 2**-24 below 1: float32 holds it, and
    any matrix product gives the same scores to the bit. Otherwise two near scores may
    change places between two libraries, and the figures would differ for that alone.
    """
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((args.identities, args.dim), dtype=np.float32)

    def rows(count: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
        ids = np.arange(count) % args.identities
        result = np.empty((count, args.dim), np.float32)
        for start in range(0, count, BLOCK):
            x = result[start : start + BLOCK]
            rng.standard_normal(out=x, dtype=np.float32)
            x *= noise
            x += centres[ids[start : start + BLOCK]]
            x *= 2**12 / np.linalg.norm(x, axis=1, keepdims=True)
            np.round(x, out=x)
            x *= 2**-12
        return result, ids

    query, query_ids = rows(args.queries, noise=4.0)
    gallery, gallery_ids = rows(args.gallery, noise=1.5)
    return query, gallery, query_ids, gallery_ids


def prepare_ours(query, gallery, query_ids, gallery_ids):
    from unipt_jax import ranking

    return lambda: ranking.evaluate(query, gallery, query_ids, gallery_ids)


def prepare_top10(query, gallery, query_ids, gallery_ids):
    """The share of queries whose best item, in percent, is theirs: Rank-1 once more."""
    from unipt_jax import ranking

    def best() -> dict[str, float]:
        _, indices = ranking.top_k(query, gallery, 10)
        hits = gallery_ids[indices] == query_ids[:, None]
        return {"top10_rank1": 100 * hits[:, 0].mean()}

    return best


def prepare_torch(query, gallery, query_ids, gallery_ids):
    """The evaluator of IRRA (utils/metrics.py, `rank`), step by step.

    Its two Python loops, over the queries for INP and over the gallery for the
    precisions, are whole-array operations here: this one is the faster.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
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


SIDES = {"ours": prepare_ours, "top10": prepare_top10, "torch": prepare_torch}


if __name__ == "__main__":
    main()
