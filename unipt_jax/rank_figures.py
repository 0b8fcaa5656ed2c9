"""Turns counts of gallery items above each right answer into figures of every query.

What enters are whole numbers from `ranking`; what leaves is float64, and none of it
needs a device. Where a wrong answer scores the same as a right one, the figures are
means over all orders among equals, and bounds.

Sources: IRRA, utils/metrics.py, and torchreid, metrics/rank.py, for Rank-k and AP; Ye
et al., "Deep Learning for Person Re-identification: A Survey and Outlook" (AGW), for
mINP; McSherry and Najork, "Computing Information Retrieval Performance Measures
Efficiently in the Presence of Tied Scores", for the means over orders.
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

RANKS = (1, 5, 10)
FIGURES = (*(f"rank{k}" for k in RANKS), "map", "minp")
ORDERS = ("", "_optimistic", "_pessimistic")  # the mean over all, and the bounds
NAMES = tuple(figure + order for order in ORDERS for figure in FIGURES)
WITHOUT_MATCH = ("left_out", "zero")


@dataclasses.dataclass(frozen=True)
class Answers:
    """Where the right answers are once both sides are ordered by identity.

    order: (N,) the gallery's items, those of one identity side by side.
    first: (Q,) place in `order` of a query's first right answer; more follow it.
    amount: (Q,) how many there are.
    matched: (Q',) the queries that have one, in the same order of identities. Those
      with as many right answers are neighbours, so one identity with very many images
      widens the tables of its own queries only.
    """

    order: np.ndarray
    first: np.ndarray
    amount: np.ndarray
    matched: np.ndarray


def pair(query_ids: np.ndarray, gallery_ids: np.ndarray) -> Answers:
    """The right answers of every query (Q,) in the gallery (N,): those of its id."""
    ids, of_item, amounts = np.unique(
        gallery_ids, return_inverse=True, return_counts=True
    )
    by_amount = np.argsort(amounts, kind="stable")
    start = np.zeros(len(ids), np.int64)
    start[by_amount[1:]] = np.cumsum(amounts[by_amount])[:-1]

    slot = np.minimum(np.searchsorted(ids, query_ids), len(ids) - 1)
    found = ids[slot] == query_ids
    first = np.where(found, start[slot], 0)
    queries = np.argsort(first, kind="stable")
    return Answers(
        order=np.argsort(start[of_item], kind="stable"),
        first=first,
        amount=np.where(found, amounts[slot], 0),
        matched=queries[found[queries]],
    )


@dataclasses.dataclass(frozen=True)
class Ranked:
    """What each of Q queries' ranking of the gallery is worth.

    figures: `rank1 rank5 rank10 map minp`, and each with `_optimistic` and with
      `_pessimistic` behind -> (Q,) float64 in percent; NaN for a query without a
      right answer.
    amount: (Q,) int64, right answers in the gallery.
    tied: (Q,) bool, whether the figures depend on the order among equals.
    curve: (Q, K) float32, the chance that a right answer is among the first k, for
      k = 1..K; NaN for a query without a right answer.
    gallery: items in the gallery.
    """

    figures: Mapping[str, np.ndarray]
    amount: np.ndarray
    tied: np.ndarray
    curve: np.ndarray
    gallery: int

    @classmethod
    def unknown(cls, amount: np.ndarray, gallery: int, curve: int) -> "Ranked":
        """Nothing known but the amounts (Q,); `fill` writes into it."""
        queries = len(amount)
        return cls(
            figures={name: np.full(queries, np.nan) for name in NAMES},
            amount=amount.astype(np.int64),
            tied=np.zeros(queries, bool),
            curve=np.full((queries, min(curve, gallery)), np.nan, np.float32),
            gallery=gallery,
        )

    def fill(
        self,
        rows: np.ndarray,
        above: np.ndarray,
        level: np.ndarray,
    ) -> None:
        """Write the figures of the queries `rows` (B,) from counts.

        Args:
          rows: (B,) indices of queries that have a right answer.
          above, level: (B, R) gallery items above each right answer, and not below
            it; the columns behind a query's amount are ignored.
        """
        depth = max(*RANKS, self.curve.shape[1])
        values, tied, curve = _query_figures(
            above, level, self.amount[rows], _harmonic_numbers(self.gallery), depth
        )
        for name, value in zip(NAMES, 100 * values.reshape(-1, len(rows)), strict=True):
            self.figures[name][rows] = value
        self.tied[rows] = tied
        self.curve[rows] = curve[:, : self.curve.shape[1]]


def summary(
    ranked: Ranked, *, without_match: str = "left_out"
) -> dict[str, float | int]:
    """The means over the queries, and counts.

    Args:
      ranked: figures of every query.
      without_match: what a query without a right answer is worth: "left_out" of every
        mean, or "zero".

    Returns:
      In percent: `rank1 rank5 rank10 map minp`, and each with `_optimistic` and with
      `_pessimistic` behind. Counts: `queries` (all of them), `gallery`,
      `without_match`, `ties` (queries whose figures depend on the order among equals).

    Raises:
      ValueError: another `without_match`, or "left_out" and no query has a right
        answer.
    """
    if without_match not in WITHOUT_MATCH:
        raise ValueError(
            f"without_match {without_match!r} must be one of {', '.join(WITHOUT_MATCH)}"
        )
    matched = ranked.amount > 0
    if without_match == "left_out" and not matched.any():
        raise ValueError(
            f"none of the {len(matched)} queries has its id among the {ranked.gallery} "
            "gallery ids; number the identities of both sides alike"
        )
    counted = matched if without_match == "left_out" else slice(None)
    means = {
        name: float(np.where(matched, values, 0.0)[counted].mean())
        for name, values in ranked.figures.items()
    }
    return means | {
        "queries": len(matched),
        "gallery": ranked.gallery,
        "without_match": int(np.count_nonzero(~matched)),
        "ties": int(np.count_nonzero(ranked.tied)),
    }


@functools.lru_cache(maxsize=1)
def _harmonic_numbers(count: int) -> np.ndarray:
    """(count + 1,) float64: 1 + 1/2 + ... + 1/n at n."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, count + 1))])


def _query_figures(
    above: np.ndarray,
    level: np.ndarray,
    amount: np.ndarray,
    harmonic: np.ndarray,
    depth: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of right answers -> figures of queries, and whether ties matter to them.

    A right answer's equals are `level - above` items: itself, other right answers and
    wrong ones. They take the ranks above + 1 to level, in an order that is chance.

    Args:
      above, level: (B, R) gallery items above each right answer, and not below it.
      amount: (B,) right answers; the columns behind them are ignored.
      harmonic: (N + 1,) the n-th harmonic number at n.
      depth: places of the curve, no fewer than RANKS ask for.

    Returns:
      (orders, figures, B) fractions, as ORDERS by Rank-k of RANKS, AP, INP; (B,) bool;
      (B, depth) chance that a right answer is among the first k = 1..depth.
    """
    place = np.arange(above.shape[1])
    valid = place < amount[:, None]
    beyond = len(harmonic)  # sorts behind all counts
    above = np.sort(np.where(valid, above, beyond), axis=1)
    level = np.sort(np.where(valid, level, beyond), axis=1)

    better, until = _runs_of_equals(above)
    equals = np.where(valid, level - above, 1)
    right = np.where(valid, until - better, 1)
    wrong = equals - right  # (B, R) wrong answers that score the same

    above = np.where(valid, above, 0)
    rank = above + 1 + place - better  # right answers first
    first, last = (place + 1) / rank, (place + 1) / (rank + wrong)
    mean = _expected_precision(above, equals, right, better, harmonic)
    precision = np.stack([np.where(wrong == 0, first, mean), first, last])
    ap = np.sum(precision, axis=2, where=valid) / amount

    best = above[:, :1]
    k = np.arange(1, depth + 1)
    curve = _hits(best, equals[:, :1], wrong[:, :1], depth)
    hits = np.stack([curve, best < k, best + wrong[:, :1] < k])  # (orders, B, depth)
    hits = hits[:, :, np.array(RANKS) - 1].swapaxes(1, 2)

    last = (np.arange(len(amount)), amount - 1)
    above, equals, right = above[last], equals[last], right[last]
    inp = np.tile(amount / (above + right), (len(ORDERS), 1))
    mixed = wrong[last] > 0
    inp[0, mixed] = amount[mixed] * _expected_inverse_of_last_rank(
        above[mixed], equals[mixed], right[mixed]
    )
    inp[2] = amount / (above + equals)
    values = np.concatenate([hits, ap[:, None], inp[:, None]], axis=1)
    return values, np.any(wrong > 0, axis=1), curve


def _runs_of_equals(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each entry of sorted rows (B, R): where its run of equals starts and ends.

    For right answers these are the better ones, and with its equals itself.
    """
    place = np.arange(rows.shape[1])
    changes = rows[:, 1:] != rows[:, :-1]
    edge = np.ones((len(rows), 1), bool)
    starts, ends = np.hstack([edge, changes]), np.hstack([changes, edge])
    start = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    end = np.where(ends, place + 1, rows.shape[1])
    return start, np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]


def _expected_precision(
    above: np.ndarray,
    equals: np.ndarray,
    right: np.ndarray,
    better: np.ndarray,
    harmonic: np.ndarray,
) -> np.ndarray:
    """Mean precision at a right answer, over the orders of its equals.

    With a = above, e = equals, the answer stands at each p of 1..e alike, and of the
    p - 1 equals before it (p - 1) (right - 1) / (e - 1) are right in the mean:
    the mean over p of (better + 1 + (p - 1) (right - 1) / (e - 1)) / (a + p).
    """
    inverse = harmonic[above + equals] - harmonic[above]  # sum of 1 / (a + p)
    slope = (right - 1) / np.maximum(equals - 1, 1)
    rising = equals - (above + 1) * inverse  # sum of (p - 1) / (a + p)
    return ((better + 1) * inverse + slope * rising) / equals


def _hits(
    above: np.ndarray, equals: np.ndarray, wrong: np.ndarray, depth: int
) -> np.ndarray:
    """(B, 1) each -> (B, depth): chance that a right answer has a rank up to k.

    All three are of the best right answers. The k - above places that are left hold
    only wrong equals with the chance that so many draws without replacement are all
    wrong.
    """
    drawn = np.arange(depth) - above  # before the draw for place k = 1..depth
    chance = np.maximum(wrong - drawn, 0) / np.maximum(equals - drawn, 1)
    return 1 - np.cumprod(np.where(drawn < 0, 1.0, chance), axis=1)


def _expected_inverse_of_last_rank(
    above: np.ndarray, equals: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """(B,) mean of 1 / rank of the last right answer, over the orders of its equals.

    The last of r = right among e = equals stands at p with the chance
    C(p - 1, r - 1) / C(e, r): r / e at p = e, and from p to p - 1 it changes by the
    factor (p - r) / (p - 1).
    """
    cases, which = np.unique([above, equals, right], axis=1, return_inverse=True)
    mean = np.empty(cases.shape[1])
    for i, (a, e, r) in enumerate(cases.T):
        places = np.arange(e, r - 1, -1)  # e down to r
        factors = (places[:-1] - r) / (places[:-1] - 1)
        chance = r / e * np.cumprod(np.concatenate([[1.0], factors]))
        mean[i] = np.sum(chance / (a + places))
    return mean[which.reshape(-1)]
