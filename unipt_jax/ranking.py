"""Turns unit embeddings and identities into Rank-k, mAP, mINP and top-k, exactly.

A gallery item's rank is one more than the number of items that score higher, so
nothing is sorted: a block of queries meets a block of the gallery in one matrix
product (a tile), and each right answer's score is compared with the whole tile. The
device gives back two whole numbers a right answer; `rank_figures` makes figures of them.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from unipt_jax.rank_figures import FIGURES, Ranked, harmonic_numbers, summary

__all__ = ["FIGURES", "Ranked", "evaluate", "per_query", "summary", "top_k"]

QUERY_BLOCK = 256  # queries a device at once
GALLERY_BLOCK = 65_536  # gallery items at once: a float32 tile is 64 MiB at most


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
      query: (Q, D) float, rows of length 1.
      gallery: (N, D) float, rows of length 1.
      query_ids: (Q,) integers.
      gallery_ids: (N,) integers. A query may have any number of right answers.
      mesh: shares the queries among all its devices; the gallery is on each of them.
        Every process passes the same arrays and gets the same figures.
      block: queries a device at once.
      gallery_block: gallery items at once. A gallery larger than this is multiplied
        twice, so memory grows with block * gallery_block and not with Q * N.
      curve: places of the curve, at most; a gallery has no more than its size.

    Returns:
      Figures of the queries in the order given.

    Raises:
      ValueError: shapes or types that do not fit, or embeddings that are not finite.
    """
    query, gallery = np.asarray(query, np.float32), np.asarray(gallery, np.float32)
    _check_embeddings(query, gallery)
    query_ids = _checked_ids(query_ids, len(query), "query")
    gallery_ids = _checked_ids(gallery_ids, len(gallery), "gallery")
    _check_positive(block=block, gallery_block=gallery_block, curve=curve)

    by_id = np.argsort(gallery_ids, kind="stable")  # right answers lie side by side
    first = np.searchsorted(gallery_ids, query_ids, side="left", sorter=by_id)
    after = np.searchsorted(gallery_ids, query_ids, side="right", sorter=by_id)
    amount = after - first  # (Q,) right answers
    ranked = Ranked.unknown(amount, len(gallery), curve)
    # Queries with as many right answers share a block, so one id with very many
    # images widens the tables of its own queries only.
    matched = np.argsort(amount, kind="stable")[np.count_nonzero(amount == 0) :]
    if not len(matched):
        return ranked
    harmonic = harmonic_numbers(len(gallery))
    chunks = list(_chunks(gallery, gallery_block, mesh))
    rows = _rows(len(matched), block, mesh)
    for start in range(0, len(matched), rows):
        chosen = matched[start : start + rows]
        most = amount[chosen[-1]]
        column = np.minimum(np.arange(most), amount[chosen, None] - 1)
        right = by_id[first[chosen, None] + column]  # (B, R), its last one repeated
        above, level = _ranks(query[chosen], chunks, right, rows, mesh)
        ranked.fill(chosen, above, level, harmonic)
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
    query = np.asarray(query, np.float32)
    if not isinstance(gallery, jax.Array):
        gallery = np.asarray(gallery, np.float32)
    _check_embeddings(query, gallery)
    _check_positive(k=k, block=block)
    if k > len(gallery):
        raise ValueError(
            f"k {k} must be at most the gallery's size, {len(gallery)}; ask for fewer"
        )

    chunks = list(_chunks(gallery, block, mesh))
    rows = _rows(len(query), QUERY_BLOCK, mesh)
    found = []
    for start in range(0, len(query), rows):
        part = _place(_padded(query[start : start + rows], rows), mesh, "rows")
        nothing = np.full((rows, k), -np.inf, np.float32), np.zeros((rows, k), np.int32)
        best = [_place(x, mesh, "rows") for x in nothing]
        for offset, chunk, size in chunks:
            best = _merge(*best, _scores(part, chunk, size), np.int32(offset))
            jax.block_until_ready(best)  # or many tiles wait in memory
        found.append([_fetch(x, mesh)[: len(query) - start] for x in best])
    scores, indices = (np.concatenate(x) for x in zip(*found, strict=True))
    return scores, indices


# --- on the device -------------------------------------------------------------------
# A right answer's score must be the same number, to the bit, in both places where it
# is used: where it is read, and where everything is compared with it. A dot product
# computed in another way (gathered, or in a block of another shape) differs in the
# last bit, and the answer miscounts itself. So every score comes from `_scores`, an
# executable of its own that nothing can fuse with: one tile serves for both where the
# gallery is one chunk, else the same executable runs twice on the same operands. All
# chunks are of one shape, so that an item and its copy in another chunk score alike.


@jax.jit
def _scores(
    query: jax.Array, chunk: jax.Array, size: ArrayLike | None = None
) -> jax.Array:
    """(B, D), (M, D) -> the tile (B, M); -inf behind the first `size` columns."""
    tile = jnp.matmul(
        query,
        chunk.T,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    if size is None:
        return tile
    return jnp.where(jnp.arange(len(chunk)) < size, tile, -jnp.inf)


@jax.jit
def _take(
    tile: jax.Array, right: jax.Array, offset: ArrayLike, score: jax.Array
) -> jax.Array:
    """`score` (B, R), with those read whose index in `right` (B, R) is in this tile."""
    local = right - offset
    inside = (local >= 0) & (local < tile.shape[1])
    read = jnp.take_along_axis(tile, local, axis=1, mode="clip")
    return jnp.where(inside, read, score)


@jax.jit
def _count(
    tile: jax.Array, score: jax.Array, most: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """How many of the tile (B, M) are above, and how many not below, `score` (B, R).

    Only the first `most` columns of `score` are counted: R is padded to few sizes, so
    that few are compiled, and the padding costs nothing.
    """

    def step(column, counts):
        one = lax.dynamic_slice_in_dim(score, column, 1, axis=1)  # (B, 1)
        # Both sums in one pass over the tile: 10 times faster here than two reductions.
        sums = lax.reduce(
            ((tile > one).astype(jnp.int32), (tile >= one).astype(jnp.int32)),
            (jnp.int32(0), jnp.int32(0)),
            lambda a, b: (a[0] + b[0], a[1] + b[1]),
            dimensions=(1,),
        )
        return tuple(
            lax.dynamic_update_slice_in_dim(count, new[:, None], column, axis=1)
            for count, new in zip(counts, sums, strict=True)
        )

    zeros = jnp.zeros(score.shape, jnp.int32)
    return lax.fori_loop(0, most, step, (zeros, zeros))


@jax.jit
def _merge(
    scores: jax.Array, indices: jax.Array, tile: jax.Array, offset: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The k best of (B, k) scores and indices, best first, and of the tile (B, M)."""
    k = scores.shape[1]
    new, place = lax.top_k(tile, min(k, tile.shape[1]))
    # The old ones are of lower indices and stand first, so they win among equals.
    indices = jnp.concatenate([indices, place + offset], axis=1)
    scores, place = lax.top_k(jnp.concatenate([scores, new], axis=1), k)
    return scores, jnp.take_along_axis(indices, place, axis=1)


def _ranks(
    query: np.ndarray,
    chunks: list[tuple[int, jax.Array, np.int32 | None]],
    right: np.ndarray,
    rows: int,
    mesh: Mesh | None,
) -> tuple[np.ndarray, np.ndarray]:
    """For each right answer, the gallery items above it and those not below it.

    query (B, D) and right (B, R), indices into the gallery -> two of (B, R) int64.
    """
    size, most = right.shape
    width = 16
    while width < most:
        width *= 16
    query = _place(_padded(query, rows), mesh, "rows")
    table = np.zeros((rows, width), np.int32)
    table[:size, :most] = right
    table = _place(table, mesh, "rows")
    score = _place(np.zeros((rows, width), np.float32), mesh, "rows")

    for offset, chunk, valid in chunks:
        tile = _scores(query, chunk, valid)
        score = _take(tile, table, np.int32(offset), score)
        score.block_until_ready()  # or many tiles wait in memory
    above, level = np.zeros((2, size, most), np.int64)
    for _, chunk, valid in chunks:
        if len(chunks) > 1:
            tile = _scores(query, chunk, valid)
        higher, not_lower = _count(tile, score, np.int32(most))
        above += _fetch(higher, mesh)[:size, :most]
        level += _fetch(not_lower, mesh)[:size, :most]
    return above, level


def _chunks(
    gallery: np.ndarray | jax.Array, block: int, mesh: Mesh | None
) -> Iterator[tuple[int, jax.Array, np.int32 | None]]:
    """The gallery on the devices in chunks of one shape: offset, (M, D), size.

    The size is how many rows are no padding, or None where there is one chunk only.
    """
    total = len(gallery)
    rows = -(-total // -(-total // block))
    for start in range(0, total, rows):
        part, size = gallery, None
        if rows < total:
            part = gallery[start : start + rows]
            size = np.int32(len(part))
        if len(part) < rows:
            pad = jnp.pad if isinstance(part, jax.Array) else np.pad
            part = pad(part, ((0, rows - len(part)), (0, 0)))
        yield start, _place(part.astype(np.float32, copy=False), mesh, "whole"), size


def _rows(queries: int, block: int, mesh: Mesh | None) -> int:
    """Rows of a block over all devices: as many on each, few sizes to compile."""
    devices = 1 if mesh is None else mesh.size
    share = -(-queries // devices)
    return devices * min(block, -(-share // 8) * 8)


def _padded(part: np.ndarray, rows: int) -> np.ndarray:
    """(B, D) -> (rows, D) float32, filled up with zeros."""
    result = np.zeros((rows, part.shape[1]), np.float32)
    result[: len(part)] = part
    return result


def _place(value: np.ndarray | jax.Array, mesh: Mesh | None, where: str) -> jax.Array:
    """On the devices, what every process has: "whole" on each, or its "rows" shared."""
    if mesh is None:
        return jnp.asarray(value)
    spec = PartitionSpec(mesh.axis_names) if where == "rows" else PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    if isinstance(value, jax.Array):
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda at: value[at])


def _fetch(value: jax.Array, mesh: Mesh | None) -> np.ndarray:
    """The whole of `value` on the host, of every process."""
    if mesh is not None:
        value = jax.device_put(value, NamedSharding(mesh, PartitionSpec()))
    return np.asarray(value)


# --- what enters ---------------------------------------------------------------------


def _check_embeddings(
    query: np.ndarray | jax.Array, gallery: np.ndarray | jax.Array
) -> None:
    for name, rows in (("query", query), ("gallery", gallery)):
        if rows.ndim != 2 or 0 in rows.shape:
            raise ValueError(
                f"{name} embeddings have shape {rows.shape}; give (rows, width), with "
                "at least one row"
            )
        finite = (jnp if isinstance(rows, jax.Array) else np).isfinite(rows)
        broken = int((~finite.all(axis=1)).sum())
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


def _checked_ids(ids: ArrayLike, rows: int, name: str) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.shape != (rows,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"{name} ids have shape {ids.shape} and type {ids.dtype}; give one integer "
            f"for each of the {rows} embeddings"
        )
    return ids


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} {number} must be at least 1")
