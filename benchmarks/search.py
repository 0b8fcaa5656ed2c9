"""How fast does our gallery answer, beside FAISS, and does it find the same?

    python -m benchmarks.search

The ten best of 1,000,000 x 768 for batches of 1,000 queries and for single ones, warm:
ours with float16 rows in a mapped file, as an index has them, and with float32 rows;
and faiss's `IndexFlatIP`, which is exact and holds float32. Each side in a process of
its own with as many threads as cores, in turn. What they find is compared with numpy's
float32 products of everything with everything.
"""

import argparse
import importlib.metadata
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from benchmarks import report, sides

K = 10
SINGLE = 20  # queries one by one, of which each turn takes the median
BLOCK = 16_384  # rows that are drawn, or compared with everything, at once
SIZES = ("queries", "gallery", "identities", "dim")


def main() -> None:
    parser = report.arguments(__doc__, repeats=5)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--gallery", type=int, default=1_000_000)
    parser.add_argument("--identities", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(args)
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        args.data = pathlib.Path(folder)
        report.progress("drawing embeddings, and comparing everything with everything")
        truth = draw(args)
        figures = compare(args, *truth)
    sizes = {size: getattr(args, size) for size in SIZES}
    figures |= sizes | {"k": K, "repeats": args.repeats, "load_before": load}
    report.finish(figures, save=args.save)


def draw(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Writes embeddings, a centre a person and noise; scores and numbers of the best.

    In `args.data`: queries.npy, float32.npy and float16.npy (rows of the gallery).
    Returns (Q, k) of both, by numpy in float32.
    """
    rng = np.random.default_rng(0)
    shape = args.identities, args.dim
    centres = rng.standard_normal(shape, dtype=np.float32)

    def rows(begin: int, stop: int, noise: float) -> np.ndarray:
        x = rng.standard_normal((stop - begin, args.dim), dtype=np.float32) * noise
        x += centres[np.arange(begin, stop) % args.identities]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    queries = rows(0, args.queries, noise=4.0)
    np.save(args.data / "queries.npy", queries)
    scores = np.full((args.queries, K), -np.inf, np.float32)
    numbers = np.zeros((args.queries, K), np.int64)
    shape = args.gallery, args.dim
    files = {
        kind: np.lib.format.open_memmap(args.data / f"{kind}.npy", "w+", kind, shape)
        for kind in ("float32", "float16")
    }
    for begin in range(0, args.gallery, BLOCK):
        stop = min(begin + BLOCK, args.gallery)
        part = rows(begin, stop, noise=1.5)
        for file in files.values():
            file[begin:stop] = part
        every = np.concatenate([scores, queries @ part.T], axis=1)
        known = np.broadcast_to(np.arange(begin, stop), (args.queries, stop - begin))
        known = np.concatenate([numbers, known], axis=1)
        best = np.argsort(-every, axis=1, kind="stable")[:, :K]
        scores, numbers = (np.take_along_axis(x, best, axis=1) for x in (every, known))
    return scores, numbers


def compare(args: argparse.Namespace, scores: np.ndarray, numbers: np.ndarray) -> dict:
    """All sides in turn: seconds, what they found, memory."""
    flags = [f"--{size}={getattr(args, size)}" for size in SIZES]
    flags += [f"--data={args.data}"]
    every = {
        name: sides.Side(name, "search", ["--side", name, *flags]) for name in SIDES
    }
    found = {name: side.run("batch") for name, side in every.items()}
    first = {name: side.run("single") for name, side in every.items()}
    batches, singles = {name: [] for name in every}, {name: [] for name in every}
    for _ in range(args.repeats):
        for name, side in every.items():
            batches[name].append(side.run("batch")["seconds"])
            singles[name].append(side.run("single")["result"])
    version = importlib.metadata.version("faiss-cpu")
    figures: dict = {"benchmark": "search", "faiss_version": version}
    for name, side in every.items():
        answer = np.load(args.data / f"{name}.found.npz")
        memory = max(found[name]["mb_above_data"], first[name]["mb_above_data"])
        figures[name] = {
            "batch_seconds": median(batches[name]),
            "single_seconds": median(singles[name]),
            "recall": recall(answer["numbers"], numbers),
            "first_same": float((answer["numbers"][:, 0] == numbers[:, 0]).mean()),
            "max_score_diff": float(np.abs(answer["scores"] - scores).max()),
            "data_mb": side.ready["data_mb"],
            "mb_above_data": memory,
        }
        side.end()
    for kind in ("batch", "single"):
        took = {name: figures[name][f"{kind}_seconds"] for name in every}
        for name in ("float16", "float32"):
            figures[f"ratio_{kind}_{name}"] = took["faiss"] / took[name]
    return figures


def recall(found: np.ndarray, right: np.ndarray) -> float:
    """The share of the right numbers (Q, k) that were found."""
    pairs = zip(found.tolist(), right.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def serve(args: argparse.Namespace) -> None:
    """One side: answers batches and single queries when told to."""
    queries = np.load(args.data / "queries.npy")
    search, data_mb = SIDES[args.side](args)

    def batch() -> None:
        scores, numbers = search(queries)
        file = args.data / f"{args.side}.found.npz"
        if not file.exists():
            np.savez(file, scores=scores, numbers=numbers)

    def single() -> float:
        seconds = []
        for i in range(min(SINGLE, len(queries))):
            start = time.perf_counter()
            search(queries[i : i + 1])
            seconds.append(time.perf_counter() - start)
        return median(seconds)

    sides.serve({"batch": batch, "single": single}, data_mb=data_mb)


def _ours(kind: str, args: argparse.Namespace) -> tuple[Callable, float]:
    from unipt_jax import host

    host.keep_memory()
    from unipt_jax.search.gallery import Gallery

    rows = np.load(args.data / f"{kind}.npy", mmap_mode="r")
    gallery = Gallery(rows)
    gallery.top_k(np.zeros((1, args.dim), np.float32), K)  # all of the file is read
    return lambda query: gallery.top_k(query, K), rows.nbytes / 2**20


def prepare_float16(args: argparse.Namespace) -> tuple[Callable, float]:
    """Ours with rows as an index has them."""
    return _ours("float16", args)


def prepare_float32(args: argparse.Namespace) -> tuple[Callable, float]:
    """Ours with rows as faiss has them."""
    return _ours("float32", args)


def prepare_faiss(args: argparse.Namespace) -> tuple[Callable, float]:
    """FAISS's exact index by inner product."""
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    index = faiss.IndexFlatIP(args.dim)
    rows = np.load(args.data / "float32.npy", mmap_mode="r")
    for begin in range(0, len(rows), BLOCK):
        index.add(np.ascontiguousarray(rows[begin : begin + BLOCK]))
    return lambda query: index.search(query, K), rows.nbytes / 2**20


SIDES = {"float16": prepare_float16, "float32": prepare_float32, "faiss": prepare_faiss}


if __name__ == "__main__":
    main()
