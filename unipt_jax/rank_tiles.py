"""Multiplies queries with the gallery tile by tile, on the devices; reads the tiles.

Whole arrays enter from the host; a tile is the scores of a block of queries with a
chunk of the gallery; counts, scores and indices of the block leave.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from unipt_jax.rank_figures import Answers, Ranked

TOGETHER = 4  # right answers that meet the tile in one pass over it
GROUP = 32  # neighbours of which the highest score is looked at first

# A right answer's score must be the same number, to the bit, in both places where it
# is used: where it is read, and where everything is compared with it. A dot product
# computed in another way (gathered, or in a block of another shape) differs in the
# last bit, and the answer miscounts itself. So every score comes from `multiply`, an
# executable of its own that nothing can fuse with: one tile serves for both where the
# gallery is one chunk, else the same executable runs twice on the same operands. All
# chunks are of one shape, so that an item and its copy in another chunk score alike.
# Chunks are placed one after the other and every block of queries meets each, so that
# no more than one chunk and one tile are on a device, whatever the gallery.


@jax.jit
def multiply(
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
def take(
    tile: jax.Array, right: jax.Array, offset: ArrayLike, score: jax.Array
) -> jax.Array:
    """`score` (B, R), with those read whose index in `right` (B, R) is in this tile."""
    local = right - offset
    inside = (local >= 0) & (local < tile.shape[1])
    read = jnp.take_along_axis(tile, local, axis=1, mode="clip")
    return jnp.where(inside, read, score)


@jax.jit
def count(
    tile: jax.Array, score: jax.Array, most: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """How many of the tile (B, M) are above, and how many not below, `score` (B, R).

    Only the first `most` columns of `score` are counted: R is padded to few sizes, so
    that few are compiled, and the padding costs nothing.
    """

    def step(group, counts):
        at = group * TOGETHER
        some = lax.dynamic_slice_in_dim(score, at, TOGETHER, axis=1)
        one_by_one = jnp.split(some, TOGETHER, axis=1)  # each (B, 1)
        above = [(tile > one).astype(jnp.int32) for one in one_by_one]
        level = [(tile >= one).astype(jnp.int32) for one in one_by_one]
        # All sums in one pass over the tile: 20 times as fast here as one by one.
        sums = lax.reduce(
            (*above, *level),
            (jnp.int32(0),) * (2 * TOGETHER),
            lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
            dimensions=(1,),
        )
        new = jnp.stack(sums[:TOGETHER], axis=1), jnp.stack(sums[TOGETHER:], axis=1)
        return tuple(
            lax.dynamic_update_slice_in_dim(old, part, at, axis=1)
            for old, part in zip(counts, new, strict=True)
        )

    zeros = jnp.zeros(score.shape, jnp.int32)
    return lax.fori_loop(0, (most + TOGETHER - 1) // TOGETHER, step, (zeros, zeros))


@jax.jit
def merge(
    scores: jax.Array, indices: jax.Array, tile: jax.Array, offset: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The k best of (B, k) scores and indices, best first, and of the tile (B, M)."""
    new, place = _best(tile, min(scores.shape[1], tile.shape[1]))
    return join(scores, indices, new, place + offset)


def join(
    scores: jax.Array, indices: jax.Array, new: jax.Array, place: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The k best of (B, k) scores and indices and of new ones (B, K) behind them."""
    # The old ones are of lower indices and stand first, so they win among equals.
    indices = jnp.concatenate([indices, place], axis=1)
    scores, place = lax.top_k(jnp.concatenate([scores, new], axis=1), scores.shape[1])
    return scores, jnp.take_along_axis(indices, place, axis=1)


def _best(tile: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of rows (B, M), 4 times as fast where k is far below M.

    The k best lie in the k groups of neighbours with the highest maxima: of any other
    group's items, each has k maxima before it (among equals, the lower index first).
    """
    rows, width = tile.shape
    groups = width // GROUP
    if 2 * k * GROUP > width:
        return lax.top_k(tile, k)
    cut = groups * GROUP
    highest = tile[:, :cut].reshape(rows, groups, GROUP).max(axis=2)
    chosen = jnp.sort(lax.top_k(highest, k)[1], axis=1)[:, :, None]
    inside = (chosen * GROUP + jnp.arange(GROUP)).reshape(rows, k * GROUP)
    rest = jnp.broadcast_to(jnp.arange(cut, width), (rows, width - cut))
    columns = jnp.concatenate([inside, rest], axis=1)  # rising, so equals keep order
    scores, place = lax.top_k(jnp.take_along_axis(tile, columns, axis=1), k)
    return scores, jnp.take_along_axis(columns, place, axis=1)


class Block:
    """Some queries with as many rows as any block, and the counts they have so far."""

    def __init__(
        self, answers: Answers, queries: np.ndarray, rows: int, mesh: Mesh | None
    ):
        self.queries, self.rows, self.mesh = queries, rows, mesh
        self.first, self.amount = answers.first[queries], answers.amount[queries]
        self.most = int(self.amount.max())
        size = (len(queries), self.most)
        self.score = np.zeros(size, np.float32)
        self.above, self.level = np.zeros(size, np.int32), np.zeros(size, np.int32)

    def place(self, query: np.ndarray) -> jax.Array:
        """(Q, D) -> this block's (B, D) on the devices."""
        return place(padded(query[self.queries], self.rows), self.mesh, "rows")

    def meets(self, offset: int, size: int) -> bool:
        """Whether a right answer may lie in the chunk of that place and size."""
        first, last = self.first.min(), (self.first + self.amount).max() - 1
        return bool(first < offset + size and last >= offset)

    def read(self, tile: jax.Array, offset: int) -> None:
        """Read the scores of the right answers in the tile (B, M)."""
        column = np.minimum(np.arange(self.most), self.amount[:, None] - 1)
        right = self.first[:, None] + column  # (B, R), the last one repeated
        score = take(
            tile,
            self._table(right, np.int32),
            np.int32(offset),
            self._table(self.score),
        )
        self.score = self._trimmed(score)

    def count(self, tile: jax.Array) -> None:
        """Compare every right answer, all read before, with the tile (B, M)."""
        above, level = count(tile, self._table(self.score), np.int32(self.most))
        self.above += self._trimmed(above)
        self.level += self._trimmed(level)

    def _table(self, values: np.ndarray, dtype: type = np.float32) -> jax.Array:
        """(B, R) -> one of few sizes, on the devices."""
        width = 16
        while width < self.most:
            width *= 16
        table = np.zeros((self.rows, width), dtype)
        table[: len(values), : self.most] = values
        return place(table, self.mesh, "rows")

    def _trimmed(self, table: jax.Array) -> np.ndarray:
        """(B, R) on the host; a copy, as a view would keep the table on its device."""
        return fetch(table, self.mesh)[: len(self.queries), : self.most].copy()

    def fill(self, ranked: Ranked) -> None:
        """Write the figures of these queries."""
        ranked.fill(self.queries, self.above, self.level)


def compare(
    query: np.ndarray,
    gallery: np.ndarray,
    order: np.ndarray,
    blocks: list[Block],
    gallery_block: int,
    mesh: Mesh | None,
) -> None:
    """Compare all right answers of the blocks with all of the gallery, in that order.

    In the order of identities the right answers of a block lie in one chunk, or few:
    where there are several chunks, only those are multiplied a second time.
    """
    one_chunk = len(gallery) <= gallery_block
    if not one_chunk:
        for offset, chunk, size in chunks(gallery, gallery_block, mesh, order):
            for block in blocks:
                if block.meets(offset, len(chunk)):
                    tile = multiply(block.place(query), chunk, size)
                    block.read(tile, offset)
                    del tile  # or two are in memory
            del chunk  # as well
    for offset, chunk, size in chunks(gallery, gallery_block, mesh, order):
        for block in blocks:
            tile = multiply(block.place(query), chunk, size)
            if one_chunk:
                block.read(tile, offset)
            block.count(tile)
            del tile
        del chunk


def chunks(
    gallery: np.ndarray | jax.Array,
    block: int,
    mesh: Mesh | None,
    order: np.ndarray | None = None,
) -> Iterator[tuple[int, jax.Array, np.int32 | None]]:
    """The gallery, in that order, in chunks of one shape: offset, (M, D), size.

    A chunk is placed on the devices when its turn comes. The size is how many rows are
    no padding, or None where there is one chunk only.
    """
    total = len(gallery)
    rows = -(-total // -(-total // block))
    for start in range(0, total, rows):
        stop = min(start + rows, total)
        part = gallery[start:stop] if order is None else gallery[order[start:stop]]
        part = part.astype(np.float32, copy=False)
        if len(part) < rows:
            pad = jnp.pad if isinstance(part, jax.Array) else np.pad
            part = pad(part, ((0, rows - len(part)), (0, 0)))
        part = place(part, mesh, "whole")
        yield start, part, None if rows == total else np.int32(stop - start)
        del part  # or two chunks are in memory


def rows_of_block(queries: int, block: int, mesh: Mesh | None) -> int:
    """Rows of a block over all devices: as many on each, few sizes to compile."""
    devices = 1 if mesh is None else mesh.size
    share = max(-(-queries // devices), 1)
    return devices * min(block, -(-share // 8) * 8)


def padded(part: np.ndarray, rows: int) -> np.ndarray:
    """(B, D) -> (rows, D) float32, filled up with zeros."""
    result = np.zeros((rows, part.shape[1]), np.float32)
    result[: len(part)] = part
    return result


def place(value: np.ndarray | jax.Array, mesh: Mesh | None, where: str) -> jax.Array:
    """On the devices, what every process has: "whole" on each, or its "rows" shared."""
    if mesh is None:
        return jnp.asarray(value)
    spec = PartitionSpec(mesh.axis_names) if where == "rows" else PartitionSpec()
    sharding = NamedSharding(mesh, spec)
    if isinstance(value, jax.Array):
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda at: value[at])


def fetch(value: jax.Array, mesh: Mesh | None) -> np.ndarray:
    """The whole of `value` on the host, of every process."""
    if mesh is not None:
        value = jax.device_put(value, NamedSharding(mesh, PartitionSpec()))
    return np.asarray(value)
