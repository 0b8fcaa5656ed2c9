"""Turns unit embeddings and identities into Rank-k, mAP, mINP and top-k, exactly.

A gallery item's rank is one more than the number of items that score higher, so
nothing is sorted: a block of queries meets a block of the gallery in one matrix
product (a tile), and each right answer's score is compared with the whole tile. The
device (`rank_tiles`) gives back two whole numbers a right answer, and `rank_figures`
makes figures of them.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from unipt_jax import rank_tiles
from unipt_jax.rank_figures import FIGURES, Answers, Ranked, pair, summary

__all__ = [
    "FIGURES",
    "Ranked",
    "evaluate",
    "per_query",
    "per_query_of_scores",
    "summary",
    "top_k",
]

QUERY_BLOCK = 256  # queries a device at once
GALLERY_BLOCK = 32_768  # gallery items at once: a float32 tile is 32 MiB at most
RIGHT_ANSWERS = 2**24  # in the tables of a group of blocks, at 12 bytes each


def evaluate(
    query: ArrayLike,
    gallery: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    *,
    mesh: Mesh | None = None,
    block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> dict[str, float | int]:
    """Retrieval figures over all queries: `summary` of `per_query`, which see."""
    ranked = per_query(
        query,
        gallery,
        query_ids,
        gallery_ids,
        mesh=mesh,
        block=block,
        gallery_block=gallery_block,
        curve=1,
    )
    return summary(ranked)


def per_query(
    query: ArrayLike,
    gallery: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    *,
    mesh: Mesh | None = None,
    block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
    curve: int = 50,
) -> Ranked:
    """Retrieval figures of each query against the whole gallery.

    An item is a right answer where its id equals the query's; similarity is the dot
    product in float32. For a query with n right answers at ranks r_1 < ... < r_n,
    Rank-k is whether r_1 <= k, AP the mean of i / r_i (precision at each right answer,
    averaged: no trapezoid), INP n / r_n.

    Where a wrong answer scores the same, to the bit, as a right one, the ranks depend
    on the order among equals. `rank1 rank5 rank10 map minp` are then the exact means
    over all such orders; `*_optimistic` has right answers first and `*_pessimistic`
    wrong ones first: no order lies outside these two. Without ties the three coincide.

    Text to image has captions as queries; image to text is the same with sides swapped.

    Args:
      query, gallery: (Q, D) and (N, D) float, rows of length 1.
      query_ids: (Q,) integers.
      gallery_ids: (N,) integers. A query may have any number of right answers.
      mesh: shares the queries among all its devices; the gallery is on each of them.
        Every process passes the same arrays and gets the same figures.
      block: queries a device at once.
      gallery_block: gallery items at once: memory grows with block * (gallery_block +
        right answers of a query), and not with Q * N. A larger gallery is met twice: to
        read the scores of right answers, where they lie, and to compare.
      curve: places of the curve, at most; a gallery has no more than its size.

    Returns:
      Figures of the queries in the order given.

    Raises:
      ValueError: shapes or types that do not fit, or embeddings that are not finite.
    """
    query, gallery = np.asarray(query), np.asarray(gallery)
    check_embeddings(query, gallery)
    query_ids = checked_ids(query_ids, len(query), "query")
    gallery_ids = checked_ids(gallery_ids, len(gallery), "gallery")
    check_positive(block=block, gallery_block=gallery_block, curve=curve)
    answers = pair(query_ids, gallery_ids)
    ranked = Ranked.unknown(answers.amount, len(gallery), curve)
    rows = rank_tiles.rows_of_block(len(answers.matched), block, mesh)
    for starts in _groups(answers, rows):
        blocks = [
            rank_tiles.Block(answers, answers.matched[start : start + rows], rows, mesh)
            for start in starts
        ]
        rank_tiles.compare(query, gallery, answers.order, blocks, gallery_block, mesh)
        for some in blocks:
            some.fill(ranked)
    return ranked


def _groups(answers: Answers, rows: int) -> Iterator[list[int]]:
    """Where blocks of queries begin, as many together as meet the gallery at once.

    A group's tables of right answers hold `RIGHT_ANSWERS` at most, or one block's.
    """
    group, held = [], 0
    for start in range(0, len(answers.matched), rows):
        amount = answers.amount[answers.matched[start : start + rows]]
        right = len(amount) * int(amount.max())
        if group and held + right > RIGHT_ANSWERS:
            yield group
            group, held = [], 0
        group, held = [*group, start], held + right
    if group:
        yield group


def per_query_of_scores(
    scores: Callable[[np.ndarray], ArrayLike],
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    *,
    block: int = QUERY_BLOCK,
    curve: int = 50,
) -> Ranked:
    """What `per_query` gives, from scores that are no dot products.

    Args:
      scores: the indices (B,) of some queries -> their scores (B, N), of which higher
        is better, compared in float32. Each query with a right answer is asked once.
      query_ids: (Q,) integers.
      gallery_ids: (N,) integers.
      block: the most queries to ask at once: memory grows with block * N.
      curve: as in `per_query`.

    Returns:
      Figures of the queries in the order given.

    Raises:
      ValueError: ids that are no row of integers.
    """
    query_ids = checked_ids(query_ids, np.size(query_ids), "query")
    gallery_ids = checked_ids(gallery_ids, np.size(gallery_ids), "gallery")
    check_positive(block=block, curve=curve)
    answers = pair(query_ids, gallery_ids)
    ranked = Ranked.unknown(answers.amount, len(gallery_ids), curve)
    rows = rank_tiles.rows_of_block(len(answers.matched), block, None)
    for start in range(0, len(answers.matched), rows):
        queries = answers.matched[start : start + rows]
        some = rank_tiles.Block(answers, queries, rows, None)
        tile = np.zeros((rows, len(gallery_ids)), np.float32)
        part = np.asarray(scores(queries), np.float32)
        np.take(part, answers.order, axis=1, out=tile[: len(part)], mode="clip")
        tile = jnp.asarray(tile)
        some.read(tile, 0)
        some.count(tile)
        some.fill(ranked)
    return ranked


def top_k(
    query: ArrayLike,
    gallery: ArrayLike,
    k: int,
    *,
    block: int = GALLERY_BLOCK,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best gallery items of every query, best first; of equals the lower index.

    Args:
      query: (Q, D) float, rows of length 1.
      gallery: (N, D) float, rows of length 1. A `jax.Array` stays on its device.
      k: how many, 1 to N.
      block: gallery items at once.
      mesh: shares the queries among all its devices; the gallery is on each of them.

    Returns:
      scores (Q, k) float32 and indices (Q, k) int32 into the gallery.

    Raises:
      ValueError: shapes that do not fit, embeddings that are not finite, or k outside
        1 to N.
    """
    query = np.asarray(query)
    if not isinstance(gallery, jax.Array):
        gallery = np.asarray(gallery)
    check_embeddings(query, gallery)
    check_positive(k=k, block=block)
    if k > len(gallery):
        raise ValueError(
            f"k {k} must be at most the gallery's size, {len(gallery)}; ask for fewer"
        )

    rows = rank_tiles.rows_of_block(len(query), QUERY_BLOCK, mesh)
    nothing = np.full((rows, k), -np.inf, np.float32), np.zeros((rows, k), np.int32)
    starts = range(0, len(query), rows)
    best = [[rank_tiles.place(x, mesh, "rows") for x in nothing] for _ in starts]
    for offset, chunk, size in rank_tiles.chunks(gallery, block, mesh):
        for i, start in enumerate(starts):
            part = rank_tiles.place(
                rank_tiles.padded(query[start : start + rows], rows), mesh, "rows"
            )
            tile = rank_tiles.multiply(part, chunk, size)
            best[i] = jax.block_until_ready(
                rank_tiles.merge(*best[i], tile, np.int32(offset))
            )
            del tile  # or two are in memory
        del chunk  # as well
    found = [[rank_tiles.fetch(x, mesh) for x in both] for both in best]
    scores, indices = (
        np.concatenate(x)[: len(query)] for x in zip(*found, strict=True)
    )
    return scores, indices


# --- what enters ---------------------------------------------------------------------


def check_embeddings(
    query: np.ndarray | jax.Array, gallery: np.ndarray | jax.Array
) -> None:
    """ValueError where (Q, D) and (N, D) are no such arrays of finite numbers."""
    for name, rows in (("query", query), ("gallery", gallery)):
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(
                f"{name} embeddings have shape {rows.shape}; give (rows, width), with "
                "at least one row"
            )
        numpy = jnp if isinstance(rows, jax.Array) else np
        parts = (rows[i : i + 8192] for i in range(0, len(rows), 8192))
        parts = (x.astype(np.float32, copy=False) for x in parts)
        broken = sum(int((~numpy.isfinite(x).all(axis=1)).sum()) for x in parts)
        if broken:
            raise ValueError(
                f"{broken} of {len(rows)} {name} embeddings are not finite; look for "
                "a training that diverged or an overflow in low precision"
            )
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query embeddings are {query.shape[1]} wide and gallery embeddings "
            f"{gallery.shape[1]}; embed both with the same model"
        )


def checked_ids(ids: ArrayLike, rows: int, name: str) -> np.ndarray:
    """The ids as an array; ValueError where they are no (rows,) integers."""
    ids = np.asarray(ids)
    if ids.shape != (rows,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{name} ids have shape {ids.shape} and type {ids.dtype}; give one integer "
            f"for each of the {rows} embeddings"
        )
    return ids


def check_positive(**numbers: int) -> None:
    """ValueError where a number, given by name, is below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} {number} must be at least 1")
