"""Claims on re-ranking, against the docstring's equations with sets and full matrices."""

import functools

import jax
import numpy as np
import pytest

from unipt_jax import ranking, rerank

pairs = functools.partial(zip, strict=True)


def by_equations(captions, images, k1=8, k2=3, weight=0.5):
    """1 - d* in float64, one item at a time: (Q, N), and (N, Q)."""
    sides = [np.float64(x) for x in (captions, images)]
    to_image, alike = sides[0] @ sides[1].T, sides[1] @ sides[1].T

    def nearest(scores, k):
        return np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()

    def mutual(near, back):
        return [{g for g in near[p] if p in back[g]} for p in range(len(near))]

    half = nearest(alike, round(k1 / 2) + 1)
    half = mutual(half, half)

    def described(scores, near, back):
        rows = np.zeros(scores.shape)
        for p, core in enumerate(mutual(near, back)):
            members = set(core)
            for g in core:
                if 3 * len(core & half[g]) >= 2 * len(half[g]):
                    members |= half[g]
            best, last = scores[p, near[p][0]], scores[p, near[p][-1]]
            for g in members:
                far = (best - scores[p, g]) / max(best - last, 1e-5)
                rows[p, g] = np.exp(-2 * far)
            rows[p] /= rows[p].sum() if members else 1
        return rows

    near, back = nearest(to_image, k1), nearest(to_image.T, k1)
    near_image = nearest(alike, k1 + 1)
    own, other = (
        described(to_image, near, back),
        described(alike, near_image, near_image),
    )
    some = nearest(to_image, k2 - 1)
    a = np.stack([np.vstack([x, other[i]]).mean(0) for x, i in pairs(own, some)])
    b = np.stack([other[i].mean(axis=0) for i in nearest(alike, k2)])
    least, most = (f(a[:, None], b[None]).sum(axis=2) for f in (np.minimum, np.maximum))
    jaccard = least / np.where(most > 0, most, 1)

    def final(scores, jaccard):
        low, high = scores.min(axis=1)[:, None], scores.max(axis=1)[:, None]
        d = (high - scores) / np.where(high > low, high - low, 1)
        d[(high == low)[:, 0]] = 1
        return 1 - ((1 - weight) * (1 - jaccard) + weight * d)

    return final(to_image, jaccard), final(to_image.T, jaccard.T)


def apart(captions, images, persons, width=16, seed=0):
    """Unit rows around persons, captions apart from images, and who they are of.

    In steps of 2**-10: products in float32 are exact.
    """
    rng = np.random.default_rng(seed)
    ids = [np.arange(n) % persons for n in (captions, images)]
    centres = rng.standard_normal((persons, width))
    rows = [centres[i] + 0.8 * rng.standard_normal((len(i), width)) for i in ids]
    rows = [np.hstack([x, np.full((len(x), 1), s)]) for x, s in pairs(rows, (4, -4))]
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
    return *(np.float32(np.round(x * 2**10) / 2**10) for x in rows), *ids


def tied(captions, images, seed=1):
    """Rows of (+-1/2) ** 4: few scores, many equals, many copies."""
    rng = np.random.default_rng(seed)
    rows = (rng.integers(0, 2, (n, 4)) - np.float32(0.5) for n in (captions, images))
    return *rows, np.arange(captions) % 7, np.arange(images) % 7


@pytest.mark.parametrize(
    "data, options",
    [
        (apart(20, 50, 9), {}),
        (apart(20, 50, 9), {"k1": 1, "k2": 1}),
        (apart(40, 12, 6), {"k1": 20, "k2": 12, "weight": 0.8}),
        (tied(20, 50), {"k1": 5, "k2": 2, "weight": 0.0}),
        (tied(20, 50), {"k1": 500, "k2": 500}),
        (apart(6, 1, 1), {}),
        (apart(1, 30, 5), {}),
    ],
)
def test_scores_equal_the_equations_both_ways(data, options):
    captions, images, _, _ = data
    reranker = rerank.Reranker(captions, images, **options)
    expected = by_equations(captions, images, **options)
    # The scores are float32.
    atol = dict(rtol=0, atol=3e-7)
    every = np.arange(len(captions)), np.arange(len(images))
    np.testing.assert_allclose(reranker.to_image(every[0]), expected[0], **atol)
    np.testing.assert_allclose(reranker.to_text(every[1]), expected[1], **atol)


def test_figures_equal_a_sort_of_the_equations_scores_and_are_better():
    data = apart(60, 48, 12)
    ways = [data, [data[i] for i in (1, 0, 3, 2)]]
    found = rerank.Reranker(*data[:2]).per_query(*data[2:])
    for way, ranked, scores in pairs(ways, found, by_equations(*data[:2])):
        _, _, query_ids, gallery_ids = way
        order = np.argsort(-scores, axis=1)
        right = gallery_ids[order] == query_ids[:, None]
        rank = np.arange(1, right.shape[1] + 1)
        ap = (right * right.cumsum(axis=1) / rank).sum(axis=1) / right.sum(axis=1)
        inp = right.sum(axis=1) / (right * rank).max(axis=1)
        assert not ranked.tied.any()
        for name, values in {"rank1": right[:, 0], "map": ap, "minp": inp}.items():
            np.testing.assert_allclose(ranked.figures[name], 100 * values, atol=1e-9)
        assert ranked.figures["map"].mean() > ranking.evaluate(*way)["map"] + 1


def test_only_the_similarity_leaves_the_figures_as_they_were():
    captions, images, ids, image_ids = apart(60, 48, 12)
    found = rerank.Reranker(captions, images, weight=1.0).per_query(ids, image_ids)
    plain = (
        ranking.per_query(captions, images, ids, image_ids),
        ranking.per_query(images, captions, image_ids, ids),
    )
    for ranked, expected in pairs(found, plain):
        for name, values in expected.figures.items():
            np.testing.assert_array_equal(ranked.figures[name], values)


def test_how_far_captions_lie_from_images_does_not_matter():
    captions, images, _, _ = apart(20, 50, 9)
    scores = rerank.Reranker(captions, images).to_image(np.arange(20))
    # One more dimension shifts all similarities of captions with images by 1/4, and
    # all between images by 1: neighbours and ranges stay.
    captions = np.hstack([captions, np.full((20, 1), 0.25, np.float32)])
    images = np.hstack([images, np.ones((50, 1), np.float32)])
    moved = rerank.Reranker(captions, images).to_image(np.arange(20))
    np.testing.assert_allclose(moved, scores, rtol=0, atol=3e-7)


def test_blocks_do_not_change_the_scores(monkeypatch):
    captions, images, ids, image_ids = tied(20, 50)
    whole = rerank.Reranker(captions, images)
    rows = np.arange(20)
    expected = whole.to_image(rows), whole.to_text(rows)
    figures = whole.per_query(ids, image_ids)
    monkeypatch.setattr(rerank, "ITEMS", 7)
    monkeypatch.setattr(rerank, "SCORES", 50 * 4)
    monkeypatch.setattr(rerank, "ENTRIES", 50)
    monkeypatch.setattr(rerank, "PAIRS", 9**2 * 5 * 4)
    parts = rerank.Reranker(captions, images)
    np.testing.assert_allclose(parts.to_image(rows), expected[0], atol=1e-7)
    np.testing.assert_allclose(parts.to_text(rows), expected[1], atol=1e-7)
    for one, other in pairs(parts.per_query(ids, image_ids), figures):
        for name, values in other.figures.items():
            np.testing.assert_allclose(one.figures[name], values, rtol=1e-12)


def test_scores_on_8_devices_equal_one():
    captions, images, _, _ = apart(20, 50, 9)
    mesh = jax.make_mesh((8,), ("data",), devices=jax.devices()[:8])
    alone, shared = (rerank.Reranker(captions, images, mesh=m) for m in (None, mesh))
    rows = np.arange(20)
    np.testing.assert_array_equal(shared.to_image(rows), alone.to_image(rows))
    np.testing.assert_array_equal(shared.to_text(rows), alone.to_text(rows))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"k1": 0}, "k1 0 must be at least 1"),
        ({"k2": 0}, "k2 0 must be at least 1"),
        ({"weight": 1.5}, "weight 1.5 must lie between 0 and 1"),
        ({"images": np.ones((3, 4))}, "query embeddings are 3 wide and gallery"),
        ({"captions": np.full((2, 3), np.nan)}, "2 of 2 query embeddings are not"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(change, sentence):
    good = {"captions": np.eye(3)[:2], "images": np.eye(3)}
    with pytest.raises(ValueError, match=sentence):
        rerank.Reranker(**good | change)


def test_ids_of_another_number_are_refused_in_a_sentence():
    reranker = rerank.Reranker(np.eye(3)[:2], np.eye(3))
    with pytest.raises(ValueError, match=r"caption ids have shape \(1,\)"):
        reranker.per_query([1], [1, 2, 3])
    with pytest.raises(ValueError, match=r"image ids have shape \(2,\)"):
        reranker.per_query([1, 2], [1, 2])
