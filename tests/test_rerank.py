"""Claims on re-ranking, against the paper's equations with sets and full matrices."""

import jax
import numpy as np
import pytest

from unipt_jax import ranking, rerank


def by_equations(query, gallery, k1=20, k2=6, weight=0.3):
    """1 - d* (Q, N) in float64: Zhong et al., equations 3, 5, 7, 10, 11 and 12."""
    items = np.concatenate([query, gallery]).astype(np.float64)
    distance = 1 - items @ items.T
    order = np.argsort(distance, axis=1, kind="stable")
    total = len(items)

    def reciprocal(k):
        near = [set(row[: k + 1]) for row in order.tolist()]
        return [{g for g in near[p] if p in near[g]} for p in range(total)]

    cores, halves = reciprocal(k1), reciprocal(round(k1 / 2))
    weights = np.zeros((total, total))
    for p in range(total):
        members = set(cores[p])
        for q in cores[p]:
            if 3 * len(cores[p] & halves[q]) >= 2 * len(halves[q]):
                members |= halves[q]
        for g in members:
            weights[p, g] = np.exp(-distance[p, g])
    weights = np.stack([weights[order[p, :k2]].mean(axis=0) for p in range(total)])

    a, b = weights[: len(query), None], weights[None, len(query) :]
    least, most = np.minimum(a, b).sum(axis=2), np.maximum(a, b).sum(axis=2)
    jaccard = np.where(most > 0, least / np.where(most > 0, most, 1), 0)
    d = distance[: len(query), len(query) :]
    return 1 - ((1 - weight) * (1 - jaccard) + weight * d)


def clustered(queries, images, persons, width=16, seed=0):
    """Unit rows around persons, in steps of 2**-10: float32 products are exact."""
    rng = np.random.default_rng(seed)
    ids = np.arange(queries) % persons, rng.permutation(np.arange(images) % persons)
    centres = rng.standard_normal((persons, width))
    rows = [centres[i] + 0.7 * rng.standard_normal((len(i), width)) for i in ids]
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
    return *(np.float32(np.round(x * 2**10) / 2**10) for x in rows), *ids


def tied(queries, images, seed=1):
    """Rows of (+-1/2) ** 4: few scores, many equals, many copies."""
    rng = np.random.default_rng(seed)
    rows = (
        rng.integers(0, 2, (n, 4)).astype(np.float32) - 0.5 for n in (queries, images)
    )
    return *rows, np.arange(queries) % 7, np.arange(images) % 7


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k1": 1, "k2": 1},
        {"k1": 5, "k2": 3, "weight": 0.0},
        {"k1": 7, "k2": 12, "weight": 0.8},
        {"k1": 500, "k2": 500},
    ],
)
@pytest.mark.parametrize("data", [clustered(20, 50, 9), tied(20, 45)])
def test_scores_equal_the_equations(data, options):
    query, gallery, _, _ = data
    scores = rerank.Reranker(query, gallery, **options).scores(np.arange(20))
    # The scores are float32, and so are the products in the weights.
    np.testing.assert_allclose(
        scores, by_equations(query, gallery, **options), rtol=0, atol=3e-7
    )


def test_figures_equal_a_sort_of_the_equations_scores():
    data = clustered(40, 90, 12)
    query, gallery, query_ids, gallery_ids = data
    ranked = rerank.per_query(*data)
    order = np.argsort(-by_equations(query, gallery), axis=1)
    right = gallery_ids[order] == query_ids[:, None]
    rank = np.arange(1, 91)
    ap = (right * right.cumsum(axis=1) / rank).sum(axis=1) / right.sum(axis=1)
    inp = right.sum(axis=1) / (right * rank).max(axis=1)
    assert not ranked.tied.any()
    for name, values in {"rank1": right[:, 0], "map": ap, "minp": inp}.items():
        np.testing.assert_allclose(ranked.figures[name], 100 * values, atol=1e-9)
    assert ranked.figures["map"].mean() > ranking.evaluate(*data)["map"] + 1


def test_only_the_original_distance_leaves_the_figures_as_they_were():
    data = clustered(40, 90, 12)
    ranked, plain = rerank.per_query(*data, weight=1.0), ranking.per_query(*data)
    for name, values in plain.figures.items():
        np.testing.assert_array_equal(ranked.figures[name], values)


def test_blocks_do_not_change_the_scores(monkeypatch):
    query, gallery, query_ids, gallery_ids = tied(30, 60)
    whole = rerank.Reranker(query, gallery)
    expected = whole.scores(np.arange(30)), whole.per_query(query_ids, gallery_ids)
    monkeypatch.setattr(rerank, "ITEMS", 7)
    monkeypatch.setattr(rerank, "SCORES", 60 * 4)
    monkeypatch.setattr(rerank, "ENTRIES", 50)
    parts = rerank.Reranker(query, gallery)
    np.testing.assert_allclose(parts.scores(np.arange(30)), expected[0], atol=1e-7)
    figures = parts.per_query(query_ids, gallery_ids).figures
    for name, values in expected[1].figures.items():
        np.testing.assert_allclose(figures[name], values, rtol=1e-12)


def test_swapped_sides_have_the_scores_of_a_search_anew():
    query, gallery, _, _ = clustered(20, 50, 9)
    swapped = rerank.Reranker(query, gallery).swapped()
    expected = by_equations(gallery, query)
    np.testing.assert_allclose(swapped.scores(np.arange(50)), expected, atol=3e-7)
    _, indices = swapped.top_k([49], 1)
    assert indices == [[expected[49].argmax()]]


def test_scores_on_8_devices_equal_one():
    query, gallery, _, _ = clustered(20, 50, 9)
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8])
    rows = np.arange(20)
    alone, shared = (
        rerank.Reranker(query, gallery, mesh=m).scores(rows) for m in (None, mesh)
    )
    np.testing.assert_array_equal(shared, alone)


def test_top_k_is_a_stable_sort_of_the_scores(monkeypatch):
    query, gallery, _, _ = tied(20, 45)
    reranker = rerank.Reranker(query, gallery)
    rows = np.array([17, 3, 3, 8])
    tile = reranker.scores(rows)
    monkeypatch.setattr(rerank, "SCORES", 45 * 3)
    scores, indices = reranker.top_k(rows, 10)
    expected = np.lexsort((np.broadcast_to(np.arange(45), tile.shape), -tile))[:, :10]
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(tile, expected, axis=1))
    with pytest.raises(ValueError, match="k 46 must be 1 to the gallery's size, 45"):
        reranker.top_k(rows, 46)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"k1": 0}, "k1 0 must be at least 1"),
        ({"k2": 0}, "k2 0 must be at least 1"),
        ({"weight": 1.5}, "weight 1.5 must lie between 0 and 1"),
        ({"gallery": np.ones((3, 4))}, "query embeddings are 3 wide and gallery"),
        ({"query": np.full((2, 3), np.nan)}, "2 of 2 query embeddings are not finite"),
        ({"query_ids": [1]}, r"query ids have shape \(1,\)"),
        ({"gallery_ids": [1, 2]}, r"gallery ids have shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(change, sentence):
    good = {
        "query": np.eye(3)[:2],
        "gallery": np.eye(3),
        "query_ids": [1, 2],
        "gallery_ids": [1, 2, 3],
    }
    rerank.per_query(**good)
    with pytest.raises(ValueError, match=sentence):
        rerank.per_query(**good | change)
