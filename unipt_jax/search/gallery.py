"""The best of a gallery: unit embeddings as they lie in a file in, the k best out."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from unipt_jax import rank_tiles, sharding

QUERIES = 1024  # at once
# Rows of a block. On CPUs few queries are fastest with blocks that stay in the cache,
# many with blocks that repay the work on each; elsewhere each block costs a launch.
CPU_ROWS = 2048, 16_384
ROWS = 65_536
SHARE = 0.5  # of a device's free memory that the rows may take


class Gallery:
    """Embeddings in reach of the devices, to be asked again and again.

    Each device has a stretch of the rows and finds its own k best, block by block, by
    products in float32; the best of those are the answer. On CPUs the rows are not
    copied where the devices can share them evenly: a mapped file stays one. Rows that
    are too many for the memory of the devices are brought there anew for each question.
    """

    def __init__(self, embeddings: np.ndarray, mesh: Mesh | None = None) -> None:
        """embeddings: (N, P) float16 or float32 rows of length 1, C-contiguous. mesh:
        devices of this process that share the rows; by default all that it has.

        Raises ValueError for an array of another kind.
        """
        if embeddings.ndim != 2 or 0 in embeddings.shape:
            raise ValueError(
                f"embeddings have shape {embeddings.shape}; give (rows, width), with at "
                "least one row"
            )
        if embeddings.dtype not in (np.float16, np.float32):
            raise ValueError(
                f"embeddings are {embeddings.dtype}; give float16 or float32"
            )
        self._mesh = mesh or sharding.local_mesh()
        self._embeddings = np.asarray(embeddings)
        self._stretch = min(_room(self._mesh, embeddings), len(embeddings))
        self._resident = None
        if self._stretch == len(embeddings):
            self._resident = _placed(self._embeddings, self._mesh)

    def __len__(self) -> int:
        return len(self._embeddings)

    def top_k(
        self, query: ArrayLike, k: int, *, approximate: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows of every query, best first; of equals the lower number.

        Args:
          query: (Q, P) float, rows of length 1.
          k: how many, 1 to N.
          approximate: by `lax.approx_max_k`, which on a TPU finds some 95 in 100 of
            them, sooner; on other devices it finds them all.

        Returns:
          scores (Q, k) float32, dot products in float32, and numbers (Q, k) int32.

        Raises:
          ValueError: shapes that do not fit, queries that are not finite, or a k
            outside 1 to N.
        """
        query = self._checked(query, k)
        starts = range(0, len(query), QUERIES)
        found: list[list] = [[] for _ in starts]
        for first, rows, size in self._stretches():
            for i, start in enumerate(starts):
                some = query[start : start + QUERIES]
                scores, numbers = self._ask(some, rows, size, min(k, size), approximate)
                found[i].append((scores, numbers + np.int32(first)))
            del rows  # or two stretches are in memory
        merged = [_merged(parts, k) for parts in found]
        return tuple(np.concatenate(x) for x in zip(*merged, strict=True))

    def _checked(self, query: ArrayLike, k: int) -> np.ndarray:
        query = np.asarray(query, np.float32)
        width = self._embeddings.shape[1]
        if query.ndim != 2 or query.shape[1] != width or not len(query):
            raise ValueError(
                f"queries have shape {query.shape}; give (queries, {width}), with at "
                "least one query"
            )
        if not np.isfinite(query).all():
            raise ValueError("a query is not finite; look at the model it comes from")
        if not 1 <= k <= len(self):
            raise ValueError(f"k {k} must be from 1 to the {len(self)} of the gallery")
        return query

    def _stretches(self) -> Iterator[tuple[int, jax.Array, int]]:
        """What is on the devices at once: first number, rows, how many."""
        if self._resident is not None:
            yield 0, self._resident, len(self)
            return
        for first in range(0, len(self), self._stretch):
            part = self._embeddings[first : first + self._stretch]
            yield first, _placed(part, self._mesh), len(part)

    def _ask(
        self, query: np.ndarray, rows: jax.Array, size: int, k: int, approximate: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        # Few sizes, so that few programs are compiled.
        padded = _power(len(query))
        more = min(max(16, _power(k)), size)
        on_cpu = self._mesh.devices.flat[0].platform == "cpu"
        best = _best(
            jax.device_put(
                rank_tiles.padded(query, padded), sharding.replicated(self._mesh)
            ),
            rows,
            np.int32(size),
            mesh=self._mesh,
            k=more,
            block=int(np.clip(16 * padded, *CPU_ROWS)) if on_cpu else ROWS,
            approximate=approximate,
        )
        scores, numbers = (np.asarray(x)[: len(query), :k] for x in best)
        return scores, numbers


def _power(number: int) -> int:
    """The least power of 2 that is no less."""
    return 1 << (number - 1).bit_length()


def _room(mesh: Mesh, embeddings: np.ndarray) -> int:
    """How many rows the devices hold together beside what else they hold."""
    stats = [device.memory_stats() for device in mesh.local_devices]
    if not all(stats) or mesh.devices.flat[0].platform == "cpu":
        return len(embeddings)
    free = min(one["bytes_limit"] - one["bytes_in_use"] for one in stats)
    row = embeddings.shape[1] * embeddings.itemsize
    return max(1, int(SHARE * free / row)) * mesh.size


def _placed(embeddings: np.ndarray, mesh: Mesh) -> jax.Array:
    """(N, P) -> as many rows on each device, zeros behind the last where it must be."""
    size, width = embeddings.shape
    total = -(-size // mesh.size) * mesh.size

    def part(index: tuple[slice, ...]) -> np.ndarray:
        begin, stop, _ = index[0].indices(total)
        rows = embeddings[begin:stop]  # a view: on a CPU the device uses it as it is
        missing = stop - begin - len(rows)
        return np.pad(rows, ((0, missing), (0, 0))) if missing else rows

    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((total, width), where, part)


def _merged(parts: list, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of several stretches, which stand in the order of their numbers."""
    if len(parts) == 1:
        return parts[0]
    scores, numbers = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return tuple(np.take_along_axis(x, best, axis=1) for x in (scores, numbers))


@functools.partial(jax.jit, static_argnames=("mesh", "k", "block", "approximate"))
def _best(
    query: jax.Array,
    rows: jax.Array,
    size: jax.Array,
    *,
    mesh: Mesh,
    k: int,
    block: int,
    approximate: bool,
) -> tuple[jax.Array, jax.Array]:
    """(Q, P), and (N, P) shared by the devices -> scores and numbers (Q, k).

    size: how many rows are no padding.
    """
    everywhere, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    share = len(rows) // mesh.size

    def own(query, rows, size):
        first = share * lax.axis_index(mesh.axis_names)
        nothing = (
            jnp.full((len(query), min(k, share)), -jnp.inf, jnp.float32),
            jnp.zeros((len(query), min(k, share)), jnp.int32),
        )
        nothing = lax.pcast(nothing, mesh.axis_names, to="varying")
        found = _better(nothing, query, rows, first, size, block, approximate)
        return tuple(x[None] for x in found)  # (1, Q, k): one of the devices

    scores, numbers = jax.shard_map(
        own, mesh=mesh, in_specs=(everywhere, split, everywhere), out_specs=split
    )(query, rows, size)
    # In the order of the devices, so that among equals the lower number stands first.
    scores, numbers = (
        jnp.moveaxis(x, 0, 1).reshape(len(query), -1) for x in (scores, numbers)
    )
    scores, place = lax.top_k(scores, k)
    return scores, jnp.take_along_axis(numbers, place, axis=1)


def _better(best, query, rows, first, size, block, approximate):
    """The k best of those so far and of one device's rows.

    best: scores and numbers (Q, k). rows: (R, P), of which `first` is the first one's
    number; from number `size` on they are padding.
    """
    block = min(block, len(rows))

    def step(i, best):
        # The last block begins so early that it is whole; what was seen is masked.
        start = jnp.minimum(i * block, len(rows) - block)
        chunk = lax.dynamic_slice_in_dim(rows, start, block)
        tile = jnp.matmul(
            query,
            chunk.astype(jnp.float32).T,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        place = start + jnp.arange(block)
        new = (place >= i * block) & (first + place < size)
        tile = jnp.where(new, tile, -jnp.inf)
        if approximate:
            some, place = lax.approx_max_k(tile, min(best[0].shape[1], block))
            return rank_tiles.join(*best, some, place + first + start)
        return rank_tiles.merge(*best, tile, first + start)

    return lax.fori_loop(0, -(-len(rows) // block), step, best)
