"""Turns figures of queries into bootstrap intervals, and figures of runs into a spread.

Queries of one person are no independent draws: the same images answer all of them. So
identities are resampled, and all queries of a drawn identity come with it.

Source: Davison and Hinkley, "Bootstrap Methods and their Application" (1997): the
percentile interval (5.2.1), and clusters drawn whole (3.8).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

DRAWN = 2**22  # identities drawn at once: 32 MiB of indices, and as much of counts


def bootstrap(
    values: Mapping[str, ArrayLike],
    groups: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the means over queries, by resampling identities.

    Each draw takes as many identities as there are, with replacement; its statistic is
    the mean over all queries of the identities drawn, one drawn twice counting twice.
    The draws are the same for every figure, and follow from the seed alone.

    Args:
      values: by name, the (Q,) figures of the queries, in any unit; a NaN (a query
        without a right answer) is left out of the mean.
      groups: (Q,) identities of the queries.
      draws: how many times to resample.
      seed: of the draws.
      level: share of the draws inside the interval, between 0 and 1.

    Returns:
      By name, the low and the high end, in the unit of the values.

    Raises:
      ValueError: no figures, shapes that do not fit, a figure without a number, an infinite value,
        no draws, or a level that is no share.
    """
    groups = np.asarray(groups)
    if groups.ndim != 1 or not len(groups):
        raise ValueError(
            f"groups have shape {groups.shape}; give one identity for each query"
        )
    if draws < 1:
        raise ValueError(f"draws {draws} must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, for example 0.95")
    if not values:
        raise ValueError("no figures to resample; give at least one by name")
    table = np.stack([_checked(name, values[name], len(groups)) for name in values])
    known = ~np.isnan(table)  # (F, Q)
    usable = known.any(axis=0)  # else identities that say nothing would be drawn
    identities, of_query = np.unique(groups[usable], return_inverse=True)
    sums, counts = (
        np.stack([np.bincount(of_query, row, len(identities)) for row in rows], axis=1)
        for rows in (np.where(known, table, 0.0)[:, usable], known[:, usable])
    )  # (I, F) each

    rng = np.random.default_rng(seed)
    rows = max(1, DRAWN // len(identities))
    means = []
    for start in range(0, draws, rows):
        drawn = _times_drawn(rng, min(rows, draws - start), len(identities))
        total = drawn @ counts
        mean = np.full(total.shape, np.nan)  # where a draw has no query of that figure
        means.append(np.divide(drawn @ sums, total, out=mean, where=total > 0))
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.nanquantile(np.concatenate(means), ends, axis=0).tolist()
    return dict(zip(values, zip(low, high, strict=True), strict=True))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1 below the sum) of a figure of several runs.

    Raises:
      ValueError: fewer than two values, or one that is no finite number.
    """
    runs = np.asarray(values, np.float64)
    if runs.ndim != 1 or len(runs) < 2 or not np.isfinite(runs).all():
        raise ValueError(
            f"a spread needs two finite numbers or more; got {runs.tolist()}"
        )
    return float(runs.mean()), float(runs.std(ddof=1))


def _times_drawn(rng: np.random.Generator, draws: int, identities: int) -> np.ndarray:
    """(draws, I) float64: how often each draw of I identities took each of them."""
    drawn = rng.integers(identities, size=(draws, identities))
    drawn += identities * np.arange(draws)[:, None]
    times = np.bincount(drawn.ravel(), minlength=draws * identities)
    return times.reshape(draws, identities).astype(np.float64)


def _checked(name: str, values: ArrayLike, queries: int) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != (queries,):
        raise ValueError(
            f"{name} has shape {values.shape}; give one value for each of the "
            f"{queries} queries in groups"
        )
    if np.isinf(values).any() or np.isnan(values).all():
        raise ValueError(
            f"{name} must hold finite numbers, and NaN only for queries to leave out"
        )
    return values
