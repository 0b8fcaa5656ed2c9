"""Embeddings of a set in, what a person looks at out: queries with what they found."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from unipt_jax import ranking
from unipt_jax.ranking import Ranked
from unipt_jax.retrieval import RetrievalSet

SHOWN = 10  # images a query
SAMPLE = 256  # queries whose scores are drawn
BLOCK = 16  # of them at once: memory
BINS = 400  # from -1 to 1


@dataclasses.dataclass(frozen=True)
class Example:
    """A query's best images, and where its first right answer stands.

    query: its number. images, scores: (k,) gallery numbers and similarities, best
    first. first: the gallery number of the best right answer, first_score its
    similarity, rank the place where it stands, from 1.
    """

    query: int
    images: np.ndarray
    scores: np.ndarray
    first: int
    first_score: float
    rank: int


@dataclasses.dataclass(frozen=True)
class Examples:
    """kinds: random, best and worst queries. right, wrong: (BINS,) shares of the right
    and of the wrong answers by similarity, of a sample of the queries."""

    kinds: Mapping[str, tuple[Example, ...]]
    right: np.ndarray
    wrong: np.ndarray


def find(
    data: RetrievalSet,
    ranked: Ranked,
    queries: np.ndarray,
    gallery: np.ndarray,
    *,
    count: int,
    seed: int,
) -> Examples:
    """Chooses `count` queries of each kind, and looks up what is shown of them.

    ranked: the figures of queries (Q, P) in the gallery (N, P) by similarity. Best and
    worst are by average precision, one query a person; a query without a right answer
    is never shown.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(ranked.amount > 0))
    by_precision = order[np.argsort(ranked.figures["map"][order], kind="stable")]
    chosen = {
        "random": np.sort(order[:count]),
        "best": _one_a_person(by_precision[::-1], data.query_ids, count),
        "worst": _one_a_person(by_precision, data.query_ids, count),
    }
    right, wrong = _histograms(data, order[:SAMPLE], queries, gallery)
    return Examples(
        {
            kind: _look(data, numbers, queries, gallery)
            for kind, numbers in chosen.items()
        },
        right,
        wrong,
    )


def _one_a_person(order: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """The first query of each person, in the order given, the first `count` of them."""
    _, first = np.unique(ids[order], return_index=True)
    return order[np.sort(first)[:count]]


def _look(
    data: RetrievalSet, numbers: np.ndarray, queries: np.ndarray, gallery: np.ndarray
) -> tuple[Example, ...]:
    if not len(numbers):
        return ()
    scores, images = ranking.top_k(queries[numbers], gallery, min(SHOWN, len(gallery)))
    found = []
    for number, score, image in zip(numbers, scores, images, strict=True):
        right = data.person_ids == data.query_ids[number]
        places = np.flatnonzero(right[image])
        if len(places):
            place = places[0]
            first, first_score, rank = image[place], score[place], place + 1
        else:
            similarity = gallery @ queries[number]
            first = np.flatnonzero(right)[np.argmax(similarity[right])]
            first_score = similarity[first]
            rank = max(len(image), np.sum(similarity > first_score)) + 1
        found.append(
            Example(
                int(number), image, score, int(first), float(first_score), int(rank)
            )
        )
    return tuple(found)


def _histograms(
    data: RetrievalSet, sample: np.ndarray, queries: np.ndarray, gallery: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Shares (BINS,) of the sample's right and wrong answers by similarity."""
    right, wrong = np.zeros((2, BINS))
    for begin in range(0, len(sample), BLOCK):
        numbers = sample[begin : begin + BLOCK]
        scores = queries[numbers] @ gallery.T
        match = data.query_ids[numbers, None] == data.person_ids
        for counts, values in ((right, scores[match]), (wrong, scores[~match])):
            inside = np.clip(values, -1, 1)  # rounding may go beyond
            counts += np.histogram(inside, BINS, (-1.0, 1.0))[0]
    return right / max(right.sum(), 1), wrong / max(wrong.sum(), 1)
