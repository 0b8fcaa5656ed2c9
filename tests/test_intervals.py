"""Claims on bootstrap intervals, against a loop that draws one by one."""

import statistics

import numpy as np
import pytest

from unipt_jax import intervals


def by_loop(values, groups, draws, seed, level):
    """Draw identities, join their queries, take the mean; then the two percentiles."""
    rng = np.random.default_rng(seed)
    identities = np.unique(groups[~np.isnan(values)])
    means = []
    for _ in range(draws):
        drawn = identities[rng.integers(len(identities), size=len(identities))]
        queries = np.concatenate([values[groups == identity] for identity in drawn])
        means.append(np.nanmean(queries))
    tail = 100 * (1 - level) / 2
    return np.percentile(means, [tail, 100 - tail])


@pytest.fixture
def queries():
    """23 identities of 1 to 6 queries; some have no figures, one identity has none."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.arange(23).repeat(rng.integers(1, 7, 23))) * 2**40
    left_out = (rng.random(len(groups)) < 0.2) | (groups == groups[0])
    figures = {
        "map": np.where(left_out, np.nan, 100 * rng.random(len(groups))),
        "rank1": np.where(left_out, np.nan, 100.0 * (rng.random(len(groups)) < 0.5)),
    }
    return figures, groups


@pytest.mark.parametrize("level, seed", [(0.95, 0), (0.5, 3)])
@pytest.mark.parametrize("drawn", [1, 100, 2**22])
def test_intervals_equal_a_loop_over_draws(queries, level, seed, drawn, monkeypatch):
    monkeypatch.setattr(intervals, "DRAWN", drawn)  # blocks of any size draw alike
    figures, groups = queries
    result = intervals.bootstrap(figures, groups, draws=200, seed=seed, level=level)
    assert list(result) == ["map", "rank1"]
    for name, values in figures.items():
        expected = by_loop(values, groups, 200, seed, level)
        np.testing.assert_allclose(result[name], expected, rtol=1e-12)


def test_width_is_that_of_the_normal_law():
    """1,000 identities of 5 equal queries: the mean of 1,000 draws of deviation 1."""
    values = np.random.default_rng(1).standard_normal(1000)
    values = (values - values.mean()) / values.std()
    low, high = intervals.bootstrap(
        {"x": values.repeat(5)}, np.arange(1000).repeat(5), draws=4000
    )["x"]
    # Ends of 4,000 draws lie within 0.002 of the normal's in most of all seeds.
    np.testing.assert_allclose(
        [low, high], 1.96 / np.sqrt(1000) * np.r_[-1, 1], atol=5e-3
    )


def test_two_identities_have_the_binomial_law():
    """Means 0 (1/4), 50 (1/2), 100 (1/4): the middle 40% is one point, 60% is all."""
    values, groups = {"x": np.array([0.0, 100.0])}, np.array([0, 1])
    assert intervals.bootstrap(values, groups, level=0.4)["x"] == (50.0, 50.0)
    assert intervals.bootstrap(values, groups, level=0.6)["x"] == (0.0, 100.0)


def test_an_interval_of_one_identity_is_its_mean():
    values = np.array([1.0, 2.0, 6.0, np.nan])
    assert intervals.bootstrap({"x": values}, np.full(4, 9)) == {"x": (3.0, 3.0)}


def test_a_figure_known_for_few_identities_is_drawn_where_it_is_known():
    values = {"all": np.arange(4.0), "one": np.array([np.nan, np.nan, np.nan, 7.0])}
    result = intervals.bootstrap(values, np.arange(4))
    assert result["one"] == (7.0, 7.0)
    assert (
        result["all"]
        == intervals.bootstrap({"all": np.arange(4.0)}, np.arange(4))["all"]
    )


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"groups": []}, r"groups have shape \(0,\); give one identity for each query"),
        ({"groups": [[1, 2]]}, r"groups have shape \(1, 2\)"),
        ({"values": {"map": [1.0]}}, r"map has shape \(1,\); give one value for each"),
        ({"values": {"map": [np.nan] * 2}}, "map must hold finite numbers, and NaN"),
        ({"values": {"map": [1.0, np.inf]}}, "map must hold finite numbers"),
        ({"values": {}}, "no figures"),
        ({"draws": 0}, "draws 0 must be at least 1"),
        ({"level": 95}, "level 95 must lie between 0 and 1, for example 0.95"),
    ],
)
def test_what_has_no_interval_is_refused_in_a_sentence(change, sentence):
    good = {"values": {"map": [1.0, 2.0]}, "groups": [1, 2]}
    intervals.bootstrap(**good)
    with pytest.raises(ValueError, match=sentence):
        intervals.bootstrap(**good | change)


def test_spread_is_the_mean_and_the_deviation_of_a_sample():
    runs = [71.25, 70.5, 72.875]
    mean, deviation = intervals.spread(runs)
    assert mean == pytest.approx(statistics.fmean(runs), rel=1e-15)
    assert deviation == pytest.approx(statistics.stdev(runs), rel=1e-14)


@pytest.mark.parametrize("runs", [[], [70.0], [70.0, np.nan]])
def test_a_spread_of_less_than_two_numbers_is_refused(runs):
    with pytest.raises(ValueError, match="a spread needs two finite numbers or more"):
        intervals.spread(runs)
