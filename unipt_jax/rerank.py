"""Turns embeddings into scores re-ranked by the neighbours that two items share.

Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal
Encoding" (CVPR 2017). Queries and gallery together are the items; each is described by
the items that it is a neighbour of in both directions, and two items are near where
their descriptions overlap. Descriptions are sparse: nothing of (Q + N)^2 is held.
"""

import copy
import dataclasses

import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from unipt_jax import ranking
from unipt_jax.rank_figures import Ranked

ITEMS = 1024  # items that are described at once
SCORES = 2**21  # scores of a block of queries with the whole gallery, at most
ENTRIES = 2**21  # entries of two descriptions that meet at once, at most


def per_query(
    query: ArrayLike,
    gallery: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    mesh: Mesh | None = None,
    curve: int = 50,
) -> Ranked:
    """What `ranking.per_query` gives, after re-ranking; see `Reranker`.

    Raises:
      ValueError: as `ranking.per_query` and `Reranker` do.
    """
    reranker = Reranker(query, gallery, k1=k1, k2=k2, weight=weight, mesh=mesh)
    return reranker.per_query(query_ids, gallery_ids, curve=curve)


class Reranker:
    """Queries and gallery, described by their k-reciprocal neighbours.

    With d = 1 - dot product, and an item among its own nearest:
      N(p, k): the k + 1 nearest items of p; of equals the lower index, queries first;
      R(p, k): those g in N(p, k) with p in N(g, k)                          (eq. 3)
      R*(p): R(p, k1), and R(q, k1 / 2) of each q in it of which two thirds or more
        lie in R(p, k1)                                                      (eq. 5)
      V(p): exp(-d(p, g)) at each g of R*(p), 0 elsewhere                    (eq. 7)
        then the mean of V over the k2 nearest items of p                    (eq. 11)
      J(p, g): sum of min(V(p), V(g)) / sum of max(V(p), V(g))               (eq. 10)
      d*(p, g) = (1 - weight) (1 - J) + weight d                             (eq. 12)

    The paper's d is a squared distance; between rows of length 1 it is twice this one,
    which lies between 0 and 1 for items that are not opposed, as 1 - J does. k1 / 2 is
    rounded, half to even.

    Args:
      query: (Q, D) float, rows of length 1.
      gallery: (N, D) float, rows of length 1.
      k1: neighbours that may describe an item.
      k2: neighbours, with the item, over which descriptions are averaged; 1 is none.
      weight: of the original distance, 0 to 1: lambda in the paper.
      mesh: shares the search for neighbours among its devices.

    Raises:
      ValueError: embeddings that `ranking.per_query` refuses, k1 or k2 below 1, or a
        weight outside 0 to 1.
    """

    def __init__(
        self,
        query: ArrayLike,
        gallery: ArrayLike,
        *,
        k1: int = 20,
        k2: int = 6,
        weight: float = 0.3,
        mesh: Mesh | None = None,
    ):
        query, gallery = np.asarray(query), np.asarray(gallery)
        ranking.check_embeddings(query, gallery)
        ranking.check_positive(k1=k1, k2=k2)
        if not 0 <= weight <= 1:
            raise ValueError(f"weight {weight} must lie between 0 and 1")
        self.weight = weight
        self.items = np.concatenate([query, gallery]).astype(np.float32, copy=False)
        most = min(max(k1 + 1, k2), len(self.items))
        _, nearest = ranking.top_k(self.items, self.items, most, mesh=mesh)
        self.described = _averaged(_described(self.items, nearest, k1), nearest[:, :k2])
        self.sums = self.described.sums()
        self._take_roles(range(len(query)), range(len(query), len(self.items)))

    def swapped(self) -> "Reranker":
        """Queries and gallery exchanged, the same items: nothing is searched anew."""
        result = copy.copy(self)
        result._take_roles(self.gallery, self.queries)
        return result

    def _take_roles(self, queries: range, gallery: range) -> None:
        """Which items are the queries and which the gallery."""
        self.queries, self.gallery = queries, gallery
        part = self.described.part(gallery.start, gallery.stop)
        self.by_item = part.transposed(len(self.items))

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """1 - d* of the queries `rows` (B,) with the gallery -> (B, N) float32.

        Not d* itself: near 0, where most scores lie, float32 is finer than near 1.
        """
        rows = np.asarray(rows) + self.queries.start
        gallery = slice(self.gallery.start, self.gallery.stop)
        scores = self.items[rows] @ self.items[gallery].T
        scores *= self.weight
        shared = self._shared(rows)
        some = np.flatnonzero(shared)  # few
        row, item = np.divmod(some, len(self.gallery))
        total = self.sums[rows][row] + self.sums[gallery][item] - shared[some]
        scores.ravel()[some] += (1 - self.weight) * shared[some] / total
        return scores

    def per_query(
        self, query_ids: ArrayLike, gallery_ids: ArrayLike, *, curve: int = 50
    ) -> Ranked:
        """What `ranking.per_query` gives, after re-ranking."""
        for name, ids, rows in (
            ("query", query_ids, len(self.queries)),
            ("gallery", gallery_ids, len(self.gallery)),
        ):
            ranking.checked_ids(ids, rows, name)
        return ranking.per_query_of_scores(
            self.scores, query_ids, gallery_ids, block=self._block(), curve=curve
        )

    def top_k(self, rows: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best gallery items of the queries `rows` (B,), best first.

        Returns:
          scores 1 - d* (B, k) float32 and indices (B, k) int64 into the gallery; of
          equals the lower index.

        Raises:
          ValueError: k outside 1 to N.
        """
        rows, total = np.asarray(rows), len(self.gallery)
        if not 1 <= k <= total:
            raise ValueError(f"k {k} must be 1 to the gallery's size, {total}")
        scores, indices = (
            np.empty((len(rows), k), np.float32),
            np.empty((len(rows), k), int),
        )
        for start in range(0, len(rows), self._block()):
            at = slice(start, start + self._block())
            tile = self.scores(rows[at])
            indices[at] = np.argsort(-tile, axis=1, kind="stable")[:, :k]
            scores[at] = np.take_along_axis(tile, indices[at], axis=1)
        return scores, indices

    def _block(self) -> int:
        """Queries whose scores with the whole gallery are in memory at once."""
        return max(1, min(ITEMS, SCORES // len(self.gallery)))

    def _shared(self, rows: np.ndarray) -> np.ndarray:
        """(B * N,): the sum of min(V(p), V(g)), over the items that describe both.

        `rows` (B,) are items here.
        """
        row, item, value = self.described.entries(rows)
        lengths = np.diff(self.by_item.start)[item]
        ends = np.cumsum(lengths)
        shared = np.zeros(len(rows) * len(self.gallery))
        at = 0
        while at < len(item):
            before = ends[at - 1] if at else 0
            stop = max(at + 1, np.searchsorted(ends, before + ENTRIES, side="right"))
            which, other, height = self.by_item.entries(item[at:stop])
            which += at
            cell = row[which] * len(self.gallery) + other
            least = np.minimum(value[which], height)
            shared += np.bincount(cell, least, minlength=len(shared))
            at = stop
        return shared


@dataclasses.dataclass(frozen=True)
class Sparse:
    """Rows of a matrix that is mostly zero.

    start: (rows + 1,) where each row's entries start and end.
    column, value: (entries,) of each entry; a row's columns rise.
    """

    start: np.ndarray
    column: np.ndarray
    value: np.ndarray

    @classmethod
    def of_blocks(cls, blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]):
        """From the amounts of entries of rows, and their columns and values, joined."""
        amount, column, value = (np.concatenate(x) for x in zip(*blocks, strict=True))
        return cls(np.concatenate([[0], np.cumsum(amount)]), column, value)

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of those rows (B,): which of the B, column and value, of every entry."""
        amount = self.start[rows + 1] - self.start[rows]
        which = np.repeat(np.arange(len(rows)), amount)
        before = np.cumsum(amount) - amount
        at = np.arange(len(which)) + (self.start[rows] - before)[which]
        return which, self.column[at], self.value[at]

    def sums(self) -> np.ndarray:
        """(rows,) sum of each row."""
        rows = len(self.start) - 1
        of_row = np.repeat(np.arange(rows), np.diff(self.start))
        return np.bincount(of_row, self.value, minlength=rows)

    def part(self, first: int, stop: int) -> "Sparse":
        """The rows from first to stop."""
        at = slice(self.start[first], self.start[stop])
        start = self.start[first : stop + 1] - self.start[first]
        return Sparse(start, self.column[at], self.value[at])

    def transposed(self, columns: int) -> "Sparse":
        """The columns, so many, as rows."""
        order = np.argsort(self.column, kind="stable")
        of_row = np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))
        amount = np.bincount(self.column, minlength=columns)
        return Sparse(
            np.concatenate([[0], np.cumsum(amount)]), of_row[order], self.value[order]
        )


def _described(items: np.ndarray, nearest: np.ndarray, k1: int) -> Sparse:
    """V before averaging, (U, U): the weights of R*(p) in row p."""
    total = len(items)
    near = nearest[:, : k1 + 1]
    half = nearest[:, : round(k1 / 2) + 1]
    mutual, mutual_half = _mutual(near), _mutual(half)
    blocks = []
    for start in range(0, total, ITEMS):
        row = np.arange(start, min(start + ITEMS, total))
        own = np.where(mutual[row], near[row], -1)  # (P, K), R(p, k1) or -1
        theirs = np.where(mutual_half[near[row]], half[near[row]], -2)  # (P, K, H)
        inside = (theirs[..., None] == own[:, None, None, :]).any(axis=-1)
        size = (theirs >= 0).sum(axis=-1)
        joins = mutual[row] & (3 * inside.sum(axis=-1) >= 2 * size)  # (P, K)
        theirs = np.where(joins[..., None], theirs, -2).reshape(len(row), -1)
        members = np.concatenate([own, theirs], axis=1)
        which, at = np.nonzero(members >= 0)
        which, column = np.divmod(np.unique(which * total + members[which, at]), total)
        amount = np.bincount(which, minlength=len(row))
        blocks.append((amount, column, _weights(items, row, column, amount)))
    return Sparse.of_blocks(blocks)


def _mutual(nearest: np.ndarray) -> np.ndarray:
    """(U, K) neighbours -> (U, K) bool: whether each is one in both directions."""
    result = np.empty(nearest.shape, bool)
    for start in range(0, len(nearest), ITEMS):
        near = nearest[start : start + ITEMS]
        one = np.arange(start, start + len(near))[:, None, None]
        result[start : start + ITEMS] = (nearest[near] == one).any(axis=-1)
    return result


def _weights(
    items: np.ndarray, row: np.ndarray, column: np.ndarray, amount: np.ndarray
) -> np.ndarray:
    """exp(-d) of each item in `row` with so many of `column`, joined."""
    ends = np.cumsum(amount)
    scores = [
        items[column[end - size : end]] @ items[one]
        for one, size, end in zip(row, amount, ends, strict=True)
    ]
    return np.exp(np.concatenate(scores).astype(np.float64) - 1)


def _averaged(described: Sparse, nearest: np.ndarray) -> Sparse:
    """The mean of the rows `nearest` (U, k2) in each row."""
    total, k2 = nearest.shape
    blocks = []
    for start in range(0, total, ITEMS):
        near = nearest[start : start + ITEMS]
        which, column, value = described.entries(near.ravel())
        cell, place = np.unique(which // k2 * total + column, return_inverse=True)
        row, column = np.divmod(cell, total)
        amount = np.bincount(row, minlength=len(near))
        blocks.append((amount, column, np.bincount(place, value) / k2))
    return Sparse.of_blocks(blocks)
