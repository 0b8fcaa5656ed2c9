"""Claims on Rank-k, mAP, mINP and top-k, against numpy that sorts everything."""

import itertools

import jax
import numpy as np
import pytest

from unipt_jax import rank_tiles, ranking

RANKS = (1, 5, 10)
NAMES = ("rank1", "rank5", "rank10", "map", "minp")
# Figures are sums of a few fractions in float64, in percent.
EXACT = {"rtol": 0, "atol": 1e-9}


def unit_rows(rng, rows, width):
    x = rng.standard_normal((rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def mesh_of(devices, fsdp=1):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices")
    return jax.make_mesh(
        (devices // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )


def one_query(matches):
    """Rank-1, Rank-5, Rank-10, AP, INP of a row of booleans in their final order."""
    ranks = np.flatnonzero(matches) + 1
    precision = np.arange(1, len(ranks) + 1) / ranks
    return [
        *(float(ranks[0] <= k) for k in RANKS),
        precision.mean(),
        len(ranks) / ranks[-1],
    ]


def each_by_sorting(query, gallery, query_ids, gallery_ids, order="optimistic"):
    """(Q, 5) in percent, by a sort of the float64 scores and then of equals."""
    scores = query.astype(np.float64) @ gallery.astype(np.float64).T
    figures = np.full((len(query), len(NAMES)), np.nan)
    for i, identity in enumerate(query_ids):
        right = gallery_ids == identity
        if right.any():
            equals = ~right if order == "optimistic" else right
            figures[i] = one_query(right[np.lexsort((equals, -scores[i]))])
    return 100 * figures


def by_sorting(*data, **options):
    """Their means over the queries with a right answer."""
    return np.nanmean(each_by_sorting(*data, **options), axis=0)


def enumerated(query, gallery, query_ids, gallery_ids, value):
    """The mean of value(row) over the orders that keep scores sorted, of each query."""
    scores = query @ gallery.T
    means = []
    for row, identity in zip(scores, query_ids, strict=True):
        right = gallery_ids == identity
        groups = [
            itertools.permutations(right[row == score])
            for score in np.unique(row)[::-1]
        ]
        orders = itertools.product(*groups)
        means.append(np.mean([value(np.concatenate(o)) for o in orders], axis=0))
    return np.array(means)


def figures(result, suffix=""):
    return [result[name + suffix] for name in NAMES]


@pytest.fixture
def varied():
    """100 queries on 333 items: 0 to 12 right answers each, ids far apart."""
    rng = np.random.default_rng(0)
    amounts = np.concatenate([np.arange(13).repeat(3), np.full(33, 3)])
    gallery_ids = rng.permutation(np.arange(len(amounts)).repeat(amounts))
    query_ids = rng.integers(0, len(amounts), 100)
    far = 2**40  # ids stay on the host: 32 bits are not their limit
    return (
        unit_rows(rng, 100, 24),
        unit_rows(rng, len(gallery_ids), 24),
        query_ids * far - 7,
        gallery_ids * far - 7,
    )


def test_figures_equal_a_full_sort(varied):
    result = ranking.evaluate(*varied)
    np.testing.assert_allclose(figures(result), by_sorting(*varied), **EXACT)


def test_each_query_has_its_own_figures_in_the_order_given(varied):
    ranked = ranking.per_query(*varied, block=7)
    values = np.stack([ranked.figures[name] for name in NAMES], axis=1)
    np.testing.assert_allclose(values, each_by_sorting(*varied), **EXACT)
    amount = (varied[2][:, None] == varied[3]).sum(axis=1)
    np.testing.assert_array_equal(ranked.amount, amount)
    assert not ranked.tied.any() and ranked.gallery == len(varied[1])


def test_curve_is_rank_k_at_every_k(varied):
    query, gallery, query_ids, gallery_ids = varied
    ranked = ranking.per_query(*varied)
    assert ranked.curve.shape == (100, 50) and ranked.curve.dtype == np.float32
    order = np.argsort(-(query @ gallery.T), axis=1)
    hits = (gallery_ids[order] == query_ids[:, None]).cumsum(axis=1)[:, :50] > 0
    matched = ranked.amount > 0
    np.testing.assert_array_equal(ranked.curve[matched], hits[matched])
    assert np.isnan(ranked.curve[~matched]).all()
    short = ranking.per_query(*varied, curve=3).curve
    np.testing.assert_array_equal(short, ranked.curve[:, :3])
    assert ranking.per_query(
        query, gallery[:4], query_ids, gallery_ids[:4]
    ).curve.shape == (100, 4)


def test_figures_with_every_item_a_right_answer_are_100():
    rng = np.random.default_rng(6)
    ids = np.full(20, 5)
    result = ranking.evaluate(unit_rows(rng, 4, 8), unit_rows(rng, 20, 8), ids[:4], ids)
    assert figures(result) == [100.0] * 5


def test_a_query_without_a_right_answer_is_worth_zero_by_choice(varied):
    ranked = ranking.per_query(*varied)
    zero = ranking.summary(ranked, without_match="zero")
    left_out = ranking.summary(ranked)
    matched = 100 - left_out["without_match"]
    np.testing.assert_allclose(
        figures(zero), np.array(figures(left_out)) * matched / 100, **EXACT
    )
    assert zero["without_match"] == left_out["without_match"] > 0
    with pytest.raises(ValueError, match="without_match 'worst' must be one of left_o"):
        ranking.summary(ranked, without_match="worst")


def test_no_query_with_a_right_answer_has_no_mean_but_is_zero_by_choice():
    ranked = ranking.per_query(np.eye(3), np.eye(3), [7, 8, 9], [1, 2, 3])
    with pytest.raises(ValueError, match="none of the 3 queries has its id"):
        ranking.summary(ranked)
    assert figures(ranking.summary(ranked, without_match="zero")) == [0.0] * 5


def test_queries_without_a_right_answer_are_counted_and_left_out(varied):
    query, gallery, query_ids, gallery_ids = varied
    matched = np.isin(query_ids, gallery_ids)
    assert 0 < matched.sum() < len(matched)
    result = ranking.evaluate(*varied)
    alone = ranking.evaluate(query[matched], gallery, query_ids[matched], gallery_ids)
    assert result["queries"] == len(query)
    assert result["gallery"] == len(gallery)
    assert result["without_match"] == (~matched).sum()
    assert alone["without_match"] == 0
    assert figures(result) == figures(alone)


def test_result_holds_python_numbers(varied):
    result = ranking.evaluate(*varied)
    counts = ("queries", "gallery", "without_match", "ties")
    assert all(type(result[name]) is int for name in counts)
    others = [value for name, value in result.items() if name not in counts]
    assert all(type(value) is float for value in others) and len(others) == 15


def test_without_ties_all_orders_coincide(varied):
    result = ranking.evaluate(*varied)
    assert result["ties"] == 0
    assert figures(result) == figures(result, "_optimistic")
    assert figures(result) == figures(result, "_pessimistic")


@pytest.mark.parametrize("block", [1, 7, 32, 1000])
@pytest.mark.parametrize("gallery_block", [50, 100, 332, 333])
def test_blocks_do_not_change_the_figures(varied, block, gallery_block):
    result = ranking.evaluate(*varied, block=block, gallery_block=gallery_block)
    np.testing.assert_allclose(figures(result), by_sorting(*varied), **EXACT)
    assert result["ties"] == 0


@pytest.mark.parametrize("block", [7, 256])
def test_scores_of_any_kind_give_the_figures_of_a_sort(varied, block):
    query, gallery, query_ids, gallery_ids = varied
    exact = query.astype(np.float64) @ gallery.astype(np.float64).T
    ranked = ranking.per_query_of_scores(
        lambda rows: exact[rows], query_ids, gallery_ids, block=block
    )
    values = np.stack([ranked.figures[name] for name in NAMES], axis=1)
    np.testing.assert_allclose(values, each_by_sorting(*varied), **EXACT)


def test_a_device_holds_one_chunk_and_one_tile_and_multiplies_little_twice(monkeypatch):
    rng = np.random.default_rng(7)
    ids = rng.permutation(np.arange(1600) // 4)
    # Multiples of 2**-10: products are exact, and float32 orders them as float64 does.
    rows = [np.round(unit_rows(rng, n, 64) * 2**10) / 2**10 for n in (400, 1600)]
    data = *rows, np.arange(400), ids
    multiply, calls, held = rank_tiles.multiply, [], []
    before = sum(x.size for x in jax.live_arrays())

    def watched(query, chunk, size):
        calls.append(chunk.shape)
        held.append(sum(x.size for x in jax.live_arrays()) - before)
        return multiply(query, chunk, size)

    monkeypatch.setattr(rank_tiles, "multiply", watched)
    result = ranking.evaluate(*data, block=40, gallery_block=200)
    best = figures(result, "_optimistic")
    np.testing.assert_allclose(best, by_sorting(*data), **EXACT)
    assert set(calls) == {(200, 64)}
    # 10 blocks of queries meet 8 chunks; before it, each reads in one chunk or two.
    assert 80 + 10 <= len(calls) <= 80 + 20
    # One chunk and the queries to be multiplied; no tile is left from before.
    assert max(held) <= 200 * 64 + 40 * 64


def test_one_id_with_many_images():
    rng = np.random.default_rng(1)
    gallery_ids = rng.permutation(np.r_[np.zeros(700, int), np.arange(1, 101)])
    query_ids = np.r_[np.zeros(5, int), np.arange(1, 41)]
    data = unit_rows(rng, 45, 16), unit_rows(rng, 800, 16), query_ids, gallery_ids
    result = ranking.evaluate(*data, block=16)
    np.testing.assert_allclose(figures(result), by_sorting(*data), **EXACT)


@pytest.fixture
def tied():
    """Whole numbers: products are exact in any order, and a score has many equals."""
    rng = np.random.default_rng(2)
    return (
        rng.integers(-1, 2, (60, 4)).astype(np.float32),
        rng.integers(-1, 2, (150, 4)).astype(np.float32),
        rng.integers(0, 30, 60),
        rng.integers(0, 30, 150),
    )


@pytest.mark.parametrize("gallery_block", [40, 1000])
@pytest.mark.parametrize("order", ["optimistic", "pessimistic"])
def test_bounds_equal_sorts_with_right_answers_first_and_last(
    tied, order, gallery_block
):
    result = ranking.evaluate(*tied, gallery_block=gallery_block)
    np.testing.assert_allclose(
        figures(result, f"_{order}"), by_sorting(*tied, order), **EXACT
    )


def test_ties_count_the_queries_whose_figures_differ(tied):
    query, gallery, query_ids, gallery_ids = tied
    scores = query @ gallery.T
    expected = sum(
        bool(np.isin(row[gallery_ids == i], row[gallery_ids != i]).any())
        for row, i in zip(scores, query_ids, strict=True)
    )
    assert ranking.evaluate(*tied)["ties"] == expected > 30


@pytest.mark.parametrize("seed", range(6))
def test_expected_figures_equal_the_mean_over_every_order(seed):
    rng = np.random.default_rng(seed)
    data = (
        rng.integers(-1, 2, (6, 2)).astype(np.float32),
        rng.integers(-1, 2, (7, 2)).astype(np.float32),
        np.arange(6) % 3,
        rng.permutation([0, 0, 0, 1, 1, 2, 2]),
    )
    result = ranking.evaluate(*data)
    assert result["ties"] > 0
    expected = 100 * enumerated(*data, one_query).mean(axis=0)
    np.testing.assert_allclose(figures(result), expected, **EXACT)
    curve = enumerated(*data, lambda row: np.cumsum(row) > 0)
    np.testing.assert_allclose(ranking.per_query(*data).curve, curve, atol=1e-7)


def test_expected_rank5_and_rank10_of_a_collapsed_model():
    gallery_ids = np.arange(30) // 3
    result = ranking.evaluate(
        np.ones((10, 4)), np.ones((30, 4)), np.arange(10), gallery_ids
    )
    # k draws of 30, 3 of them right: 1 - C(27, k) / C(30, k).
    for k in RANKS:
        wrong = np.prod([(27 - i) / (30 - i) for i in range(k)])
        np.testing.assert_allclose(result[f"rank{k}"], 100 * (1 - wrong), **EXACT)
    assert result["rank1_optimistic"] == 100
    assert result["rank10_pessimistic"] == 0
    np.testing.assert_allclose(result["minp_pessimistic"], 10, **EXACT)


@pytest.mark.parametrize("gallery_block", [37, 1000])
@pytest.mark.parametrize("width", [3, 100, 2048])
def test_a_copy_under_another_id_ties_to_the_bit(width, gallery_block):
    rng = np.random.default_rng(3)
    images = unit_rows(rng, 75, width)
    gallery = np.concatenate([images, images])
    gallery_ids = np.arange(150)
    query, query_ids = unit_rows(rng, 40, width), np.arange(40)
    result = ranking.evaluate(
        query, gallery, query_ids, gallery_ids, gallery_block=gallery_block
    )
    assert result["ties"] == 40  # each right answer has one equal, its copy
    scores = query.astype(np.float64) @ images.T.astype(np.float64)
    rank = 1 + (scores > scores[query_ids, query_ids][:, None]).sum(axis=1)
    first, second = 2 * rank - 1, 2 * rank  # all better images stand there twice
    for name, ap in {
        "map_optimistic": 1 / first,
        "map_pessimistic": 1 / second,
        "map": (1 / first + 1 / second) / 2,
    }.items():
        np.testing.assert_allclose(result[name], 100 * ap.mean(), **EXACT)


@pytest.mark.parametrize("gallery_block", [101, 1000])
def test_a_right_answer_never_counts_itself(gallery_block):
    """Scores so near to each other that a last bit is the whole difference.

    Whatever the rounding, a lone best answer among far worse ones is at rank 1, and
    right answers alone have AP and INP of 1: a score that is read in one way and
    compared in another puts a right answer above or below itself.
    """
    rng = np.random.default_rng(4)
    base = unit_rows(rng, 1, 1536)
    near = base + 1e-8 * rng.standard_normal((300, 1536)).astype(np.float32)
    far = -unit_rows(rng, 1, 1536) - base
    gallery = np.concatenate([near, np.repeat(far, 20, axis=0)]).astype(np.float32)
    gallery_ids = np.r_[np.zeros(300, int), np.ones(20, int)]
    result = ranking.evaluate(
        near[:64], gallery, np.zeros(64, int), gallery_ids, gallery_block=gallery_block
    )
    for suffix in ("", "_optimistic", "_pessimistic"):
        assert figures(result, suffix) == [100.0] * 5
    assert result["ties"] == 0


@pytest.mark.parametrize("devices, fsdp", [(1, 1), (8, 1), (8, 2), (3, 1)])
@pytest.mark.parametrize("gallery_block", [100, 1000])
def test_figures_on_several_devices_equal_one(varied, devices, fsdp, gallery_block):
    options = {"block": 16, "gallery_block": gallery_block}
    alone = ranking.evaluate(*varied, **options)
    shared = ranking.evaluate(*varied, mesh=mesh_of(devices, fsdp), **options)
    assert shared == alone


def test_ties_on_8_devices_equal_one(tied):
    assert ranking.evaluate(*tied, mesh=mesh_of(8)) == ranking.evaluate(*tied)


def test_a_second_evaluation_compiles_nothing(varied):
    ranking.evaluate(*varied)
    kernels = (rank_tiles.multiply, rank_tiles.take, rank_tiles.count)
    before = [kernel._cache_size() for kernel in kernels]
    query, gallery, query_ids, gallery_ids = varied
    ranking.evaluate(query[::-1], gallery[::-1], query_ids[::-1], gallery_ids[::-1])
    assert [kernel._cache_size() for kernel in kernels] == before


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("block", [1, 40, 77, 1000])
@pytest.mark.parametrize("k", [1, 10, 150])
def test_top_k_equals_a_stable_sort(tied, k, block, devices):
    query, gallery, _, _ = tied
    mesh = None if devices == 1 else mesh_of(devices)
    scores, indices = ranking.top_k(query, gallery, k, block=block, mesh=mesh)
    exact = query @ gallery.T
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(exact, expected, axis=1))


def test_top_k_of_many_queries_and_of_a_gallery_on_a_device():
    rng = np.random.default_rng(5)
    query, gallery = unit_rows(rng, 300, 8), unit_rows(rng, 90, 8)
    expected = np.argsort(-query.astype(np.float64) @ gallery.T.astype(float), axis=1)
    for given in (gallery, jax.numpy.asarray(gallery)):
        _, indices = ranking.top_k(query, given, 5, block=40)
        np.testing.assert_array_equal(indices, expected[:, :5])


@pytest.mark.parametrize("k", [1, 10, 21])
@pytest.mark.parametrize("block", [700, 2000])
def test_top_k_of_a_wide_gallery_of_equals_takes_the_lower_indices(k, block):
    rng = np.random.default_rng(8)
    query = rng.integers(-1, 2, (9, 4)).astype(np.float32)
    gallery = rng.integers(-1, 2, (2000, 4)).astype(np.float32)
    gallery[::2] = gallery[0]
    expected = np.argsort(-(query @ gallery.T), axis=1, kind="stable")[:, :k]
    _, indices = ranking.top_k(query, gallery, k, block=block)
    np.testing.assert_array_equal(indices, expected)


def test_top_k_beyond_the_gallery_is_refused():
    with pytest.raises(ValueError, match="k 4 must be at most the gallery's size, 3"):
        ranking.top_k(np.eye(3), np.eye(3), 4)
    with pytest.raises(ValueError, match="k 0 must be at least 1"):
        ranking.top_k(np.eye(3), np.eye(3), 0)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"query": np.ones((2, 3, 1))}, r"query embeddings have shape \(2, 3, 1\)"),
        ({"gallery": np.ones((0, 3))}, r"gallery embeddings have shape \(0, 3\)"),
        ({"gallery": np.ones((3, 4))}, "query embeddings are 3 wide and gallery"),
        (
            {"query": [[np.nan] * 3, [1, 1, 1]]},
            "1 of 2 query embeddings are not finite",
        ),
        ({"gallery": np.full((3, 3), np.inf)}, "3 of 3 gallery embeddings are not"),
        ({"query_ids": [1, 2, 3]}, r"query ids have shape \(3,\)"),
        ({"gallery_ids": [1.0, 2.0, 3.0]}, "type float64; give one integer"),
        ({"query_ids": [8, 9]}, "none of the 2 queries has its id among the 3 gallery"),
        ({"block": 0}, "block 0 must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(change, sentence):
    good = {
        "query": np.eye(3)[:2],
        "gallery": np.eye(3),
        "query_ids": [1, 2],
        "gallery_ids": [1, 2, 3],
    }
    ranking.evaluate(**good)
    with pytest.raises(ValueError, match=sentence):
        ranking.evaluate(**good | change)


@pytest.mark.parametrize("together", [1, 40, 10_000])
def test_figures_do_not_depend_on_how_many_blocks_meet_the_gallery_at_once(
    together, monkeypatch
):
    rng = np.random.default_rng(5)
    query, gallery = (rng.normal(size=(n, 6)).astype(np.float32) for n in (37, 50))
    query_ids, gallery_ids = rng.integers(0, 6, 37), rng.integers(0, 6, 50)
    whole = ranking.per_query(query, gallery, query_ids, gallery_ids)
    held = []

    def compare(query, gallery, order, blocks, *rest):
        held.append(sum(some.score.size for some in blocks))
        return original(query, gallery, order, blocks, *rest)

    original = ranking.rank_tiles.compare
    monkeypatch.setattr(ranking.rank_tiles, "compare", compare)
    monkeypatch.setattr(ranking, "RIGHT_ANSWERS", together)
    parts = ranking.per_query(query, gallery, query_ids, gallery_ids, block=4)
    for name, values in whole.figures.items():
        np.testing.assert_array_equal(parts.figures[name], values)
    assert all(n <= max(together, 8 * 50) for n in held)  # a block has 8 rows here
    assert (len(held) > 1) == (together < 10_000)
