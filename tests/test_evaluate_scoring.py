"""Figures of a set against numpy: both directions, runs, slices, intervals, examples."""

import json

import helpers
import numpy as np
import pytest

from unipt_jax import examples, intervals, rerank, scoring, slices
from unipt_jax.errors import UserError
from unipt_jax.retrieval import RetrievalSet
from unipt_jax.scoring import Protocol

FAST = Protocol(bootstrap=0)
WORDS = ["red", "blue", "hat", "bag", "man", "woman", "shoes", "striped"]


def make_set(person_ids, query_image, rng):
    """A set without pictures: its figures need none."""
    person_ids, query_image = np.array(person_ids), np.array(query_image)
    queries = [" ".join(rng.choice(WORDS, rng.integers(2, 30))) for _ in query_image]
    return RetrievalSet(
        name="x/test",
        folder="data/x",
        split="test",
        records=[None] * len(person_ids),
        queries=tuple(queries),
        query_image=query_image,
        person_ids=person_ids,
    )


def unit(rng, rows, width=6):
    x = rng.standard_normal((rows, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def data():
    """40 captions of 24 images of 9 persons; person 7 has no caption."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.arange(9), rng.integers(0, 9, 15)])
    return make_set(ids, rng.choice(np.flatnonzero(ids != 7), 40), rng)


@pytest.fixture(scope="module")
def embeddings(data):
    """Of two runs: captions and images, near those of their person."""
    rng = np.random.default_rng(1)
    centre = unit(rng, 9)

    def near(ids, noise):
        x = centre[ids] + noise * rng.standard_normal((len(ids), 6))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    return [(near(data.query_ids, n), near(data.person_ids, n)) for n in (0.4, 1.0)]


def by_sorting(query, gallery, query_ids, gallery_ids):
    """Per query Rank-1, 5, 10, AP, INP in percent, and the first hit; NaN without."""
    rows, firsts = [], []
    for vector, own in zip(query, query_ids, strict=True):
        order = np.argsort(-(gallery @ vector), kind="stable")
        ranks = 1 + np.flatnonzero(gallery_ids[order] == own)
        if not len(ranks):
            rows.append([np.nan] * 5)
            firsts.append(np.inf)
            continue
        hits = [float(ranks[0] <= k) for k in (1, 5, 10)]
        precision = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        rows.append([*hits, precision, len(ranks) / ranks[-1]])
        firsts.append(ranks[0])
    return 100 * np.array(rows), np.array(firsts)


NAMES = ("rank1", "rank5", "rank10", "map", "minp")


def to_image(data, embedded):
    return by_sorting(*embedded, data.query_ids, data.person_ids)


def to_text(data, embedded):
    return by_sorting(*embedded[::-1], data.person_ids, data.query_ids)


def scored(data, embedded, protocol=FAST, mesh=None):
    return scoring.score("m", "val", data, *embedded, protocol, mesh=mesh)[0]


def entry(data, runs, protocol=FAST, mesh=None):
    found = [scored(data, run, protocol, mesh) for run in runs]
    return scoring.entry("mine", found, data, protocol)


def figures(row):
    return [row[name] for name in NAMES]


@pytest.mark.parametrize("devices", [0, 1, 8])
def test_both_directions_equal_sorting(data, embeddings, devices):
    mesh = helpers.mesh_of(devices) if devices else None
    found = entry(data, embeddings[:1], mesh=mesh)
    values, _ = to_image(data, embeddings[0])
    np.testing.assert_allclose(figures(found), values.mean(axis=0), rtol=1e-12)
    values, _ = to_text(data, embeddings[0])
    back = found["image_to_text"]
    np.testing.assert_allclose(figures(back), np.nanmean(values, axis=0), rtol=1e-12)
    assert (found["queries"], found["gallery"]) == (40, 24)
    assert (back["queries"], back["gallery"]) == (24, 40)


def test_curves_are_the_share_of_first_hits_up_to_each_rank(data, embeddings):
    found = entry(data, embeddings[:1])
    _, firsts = to_image(data, embeddings[0])
    expected = [100 * np.mean(firsts <= k) for k in range(1, 25)]
    np.testing.assert_allclose(found["cmc"], expected, atol=1e-4)  # as it is rounded
    _, firsts = to_text(data, embeddings[0])
    firsts = firsts[np.isfinite(firsts)]
    expected = [100 * np.mean(firsts <= k) for k in range(1, 41)]
    np.testing.assert_allclose(found["image_to_text"]["cmc"], expected, atol=1e-4)


def test_images_whose_person_has_no_caption_are_counted_and_left_out_or_zero(
    data, embeddings
):
    without = int((data.person_ids == 7).sum())
    values, _ = to_text(data, embeddings[0])
    assert without == np.isnan(values[:, 0]).sum() > 0
    for policy, expected in (
        ("left_out", np.nanmean(values, axis=0)),
        ("zero", np.nan_to_num(values).mean(axis=0)),
    ):
        protocol = Protocol(bootstrap=50, without_match=policy)
        found = entry(data, embeddings[:1], protocol)["image_to_text"]
        assert found["without_match"] == without and found["queries"] == 24
        np.testing.assert_allclose(figures(found), expected, rtol=1e-12)
        assert found["cmc"][0] == pytest.approx(found["rank1"], abs=1e-4)
        low, high = found["intervals"]["map"]
        assert low < found["map"] < high


def test_several_runs_are_their_mean_and_spread(data, embeddings):
    found = entry(data, embeddings)
    single = np.array([to_image(data, run)[0].mean(axis=0) for run in embeddings])
    np.testing.assert_allclose(figures(found), single.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(figures(found["mean"]), single.mean(axis=0))
    deviation = np.abs(single[0] - single[1]) / np.sqrt(2)  # n - 1 below the sum
    np.testing.assert_allclose(figures(found["std"]), deviation)
    assert found["model"] == "2 runs" and len(found["runs"]) == 2
    for run, values in zip(found["runs"], single, strict=True):
        np.testing.assert_allclose(figures(run), values)
        assert run["model"] == "m" and run["selected_on"] == "val"
    assert set(found["image_to_text"]["std"]) == set(NAMES)


def test_a_single_run_has_no_spread(data, embeddings):
    found = entry(data, embeddings[:1])
    assert not {"runs", "mean", "std"} & set(found) and found["model"] == "m"


def test_slices_are_means_of_their_own_queries(data, embeddings):
    found = entry(data, embeddings)
    values = np.mean([to_image(data, run)[0] for run in embeddings], axis=0)
    parts = slices.of_queries(data.queries, data.query_ids, data.person_ids)
    assert len(found["slices"]) == len(parts) > 10
    for row, part in zip(found["slices"], parts, strict=True):
        own = values[part.members]
        assert (row["group"], row["slice"]) == (part.group, part.name)
        assert row["queries"] == len(own)
        assert row["persons"] == len(set(data.query_ids[part.members]))
        assert row["rank1"] == pytest.approx(own[:, 0].mean())
        assert row["map"] == pytest.approx(own[:, 3].mean())
        assert "intervals" not in row  # no draws were asked for


def test_intervals_are_of_the_persons_of_the_queries(data, embeddings):
    protocol = Protocol(bootstrap=200, seed=3)
    found = entry(data, embeddings, protocol)
    values = np.mean([to_image(data, run)[0] for run in embeddings], axis=0)
    draws = dict(draws=200, seed=3, level=0.95)
    expected = intervals.bootstrap({"map": values[:, 3]}, data.query_ids, **draws)
    np.testing.assert_allclose(found["intervals"]["map"], expected["map"])
    assert set(found["intervals"]) == set(NAMES)
    row = found["slices"][0]
    inside = np.array([len(query.split()) <= 12 for query in data.queries])
    own = {"rank1": values[inside, 0]}
    expected = intervals.bootstrap(own, data.query_ids[inside], **draws)
    np.testing.assert_allclose(row["intervals"]["rank1"], expected["rank1"])


def test_without_draws_there_are_no_intervals(data, embeddings):
    found = entry(data, embeddings[:1])
    assert "intervals" not in found and "intervals" not in found["image_to_text"]


def test_re_ranking_is_named_and_the_figures_before_it_stay(data, embeddings):
    protocol = Protocol(bootstrap=0, k1=5, k2=2, weight=0.3)
    found, plain = entry(data, embeddings, protocol), entry(data, embeddings)
    assert (
        found["protocol"]["rerank"]
        == "k-reciprocal among images, k1 5, k2 2, weight 0.3"
    )
    assert plain["protocol"]["rerank"] == "" and "without_rerank" not in plain
    before = found["without_rerank"]
    assert figures(before) == figures(plain) != figures(found)
    assert figures(before["image_to_text"]) == figures(plain["image_to_text"])
    options = dict(k1=5, k2=2, weight=0.3)
    ids = data.query_ids, data.person_ids
    runs = [rerank.Reranker(*run, **options).per_query(*ids) for run in embeddings]
    for i, way in enumerate((found, found["image_to_text"])):
        expected = np.mean([np.nanmean(run[i].figures["map"]) for run in runs])
        assert way["map"] == pytest.approx(expected)


def test_an_entry_is_json_and_says_of_what_it_is(data, embeddings):
    found = entry(data, embeddings[:1], Protocol(bootstrap=20))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["system"], found["set"], found["model"]) == ("mine", "x/test", "m")
    assert found["selected_on"] == "val" and found["selected_here"] is False


@pytest.mark.parametrize("side", [0, 1])
def test_embeddings_that_are_not_finite_are_one_sentence(data, embeddings, side):
    broken = [x.copy() for x in embeddings[0]]
    broken[side][3, 2] = np.nan
    with pytest.raises(UserError, match="not finite for 1 of .* an earlier checkpoint"):
        scored(data, broken)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(without_match="drop"), "'drop' is not one of left_out, zero"),
        (dict(bootstrap=-1), "bootstrap=-1 must be"),
        (dict(k1=-1), "rerank.k1=-1"),
        (dict(k1=20, k2=0), "rerank.k2=0 must be at least 1"),
        (dict(weight=1.5), "rerank.weight=1.5 must lie between 0"),
    ],
)
def test_a_protocol_that_means_nothing_is_one_sentence(fields, words):
    with pytest.raises(UserError) as caught:
        Protocol(**fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# --- examples ------------------------------------------------------------------------


def look(data, embedded, count=4, protocol=FAST):
    found, scores = scoring.score("m", "", data, *embedded, protocol)
    some = dict(count=count, seed=0)
    return examples.find(data, found.to_image, scores, *embedded, **some)


def test_best_and_worst_are_by_average_precision_one_a_person(data, embeddings):
    values = to_image(data, embeddings[0])[0][:, 3]
    kinds = look(data, embeddings[0]).kinds
    persons = np.unique(data.query_ids)
    of_person = [values[data.query_ids == person] for person in persons]
    for kind, extremes in (
        ("best", sorted((x.max() for x in of_person), reverse=True)),
        ("worst", sorted(x.min() for x in of_person)),
    ):
        numbers = [one.query for one in kinds[kind]]
        np.testing.assert_allclose(values[numbers], extremes[:4])
        assert len(set(data.query_ids[numbers])) == 4


def test_random_queries_follow_from_the_seed_and_are_different_ones(data, embeddings):
    numbers = [[one.query for one in look(data, embeddings[0], 7).kinds["random"]]]
    numbers.append([one.query for one in look(data, embeddings[0], 7).kinds["random"]])
    assert numbers[0] == numbers[1] == sorted(set(numbers[0])) and len(numbers[0]) == 7


@pytest.mark.parametrize("protocol", [FAST, Protocol(bootstrap=0, k1=5, k2=2)])
def test_shown_images_are_the_best_and_the_first_right_one(data, embeddings, protocol):
    queries, gallery = embeddings[1]
    similarity = queries @ gallery.T
    if protocol.k1:
        reranker = rerank.Reranker(queries, gallery, k1=5, k2=2)
        similarity = reranker.to_image(np.arange(40))
    kinds = look(data, embeddings[1], 40, protocol).kinds
    assert len(kinds["random"]) == 40 and len(kinds["worst"]) == 8  # persons
    beyond = 0
    for one in kinds["random"]:
        scores = similarity[one.query]
        order = np.argsort(-scores, kind="stable")
        assert one.images.tolist() == order[:10].tolist()
        np.testing.assert_allclose(one.scores, scores[order[:10]], atol=1e-6)
        right = data.person_ids[order] == data.query_ids[one.query]
        assert one.rank == 1 + right.tolist().index(True)
        assert one.first == order[one.rank - 1]
        assert one.first_score == pytest.approx(scores[one.first], abs=1e-6)
        beyond += one.rank > 10
    assert (
        beyond
    )  # else the case of a right answer that is not among the ten is not met


def test_none_are_shown_where_none_are_asked_for(data, embeddings):
    assert look(data, embeddings[0], 0).kinds == {"random": (), "best": (), "worst": ()}


def test_histograms_hold_each_answer_of_each_query_once(data, embeddings):
    found = look(data, embeddings[0])
    scores = embeddings[0][0] @ embeddings[0][1].T
    match = data.query_ids[:, None] == data.person_ids
    edges = np.linspace(-1, 1, 401)
    for shares, values in ((found.right, scores[match]), (found.wrong, scores[~match])):
        counts, _ = np.histogram(values, edges)
        # A score on an edge may fall to either side.
        np.testing.assert_allclose(
            shares, counts / counts.sum(), atol=1.1 / counts.sum()
        )
        assert shares.sum() == pytest.approx(1)
