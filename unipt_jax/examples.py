"""Embeddings of a set in, what a person looks at out: queries with what they found."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from unipt_jax.ranking import Ranked
from unipt_jax.retrieval import RetrievalSet

Scores = Callable[[np.ndarray], np.ndarray]
SHOWN = 10  # images a query
SAMPLE = 256  # queries whose scores are drawn
BLOCK = 16  # of them at once: memory
BINS = 400  # from -1 to 1


@dataclasses.dataclass(frozen=True)
class Example:
    """A query's best images, and where its first right answer stands.

    query: its number. images, scores: (k,) gallery numbers and their scores, best
    first. first: the gallery number of the best right answer, first_score its score,
    rank the place where it stands, from 1.
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
    scores: Scores,
    queries: np.ndarray,
    gallery: np.ndarray,
    *,
    count: int,
    seed: int,
) -> Examples:
    """Chooses `count` queries of each kind, and looks up what is shown of them.

    ranked: the queries' figures. scores: those by which images are ranked: numbers of
    queries (B,) -> (B, N). queries (Q, P) and gallery (N, P): unit embeddings. Best and
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
            kind: tuple(_look(data, number, scores) for number in numbers)
            for kind, numbers in chosen.items()
        },
        right,
        wrong,
    )


def _one_a_person(order: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """The first query of each person, in the order given, the first `count` of them."""
    _, first = np.unique(ids[order], return_index=True)
    return order[np.sort(first)[:count]]


def _look(data: RetrievalSet, number: int, scores: Scores) -> Example:
    score = scores(np.array([number]))[0]  # (N,)
    order = np.argsort(-score, kind="stable")
    right = data.person_ids[order] == data.query_ids[number]
    rank = int(np.argmax(right))  # from 0
    best = order[:SHOWN]
    return Example(
        query=int(number),
        images=best,
        scores=score[best],
        first=int(order[rank]),
        first_score=float(score[order[rank]]),
        rank=rank + 1,
    )


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
