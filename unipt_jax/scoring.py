"""Embeddings of a set in, figures out: both directions, intervals, slices, curves."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from unipt_jax import intervals, ranking, rerank, slices
from unipt_jax.errors import UserError
from unipt_jax.examples import Scores
from unipt_jax.ranking import Ranked
from unipt_jax.retrieval import RetrievalSet

LEVEL = 0.95  # of the intervals
FEW = 10  # persons; with fewer, a slice's figures are hardly more than anecdotes


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How figures are counted.

    without_match: what a query without a right answer is worth, "left_out" or "zero".
    bootstrap: draws of the intervals, 0 for none. seed: of those draws.
    k1, k2, weight: of re-ranking by k-reciprocal neighbours among images; k1 = 0 ranks
    by similarity alone.
    """

    without_match: str = "left_out"
    bootstrap: int = 1000
    seed: int = 0
    k1: int = 0
    k2: int = 3
    weight: float = 0.5

    def __post_init__(self) -> None:
        """Raises UserError for values that mean nothing."""
        if self.without_match not in ("left_out", "zero"):
            raise UserError(
                f"without_match '{self.without_match}' is not one of left_out, zero"
            )
        if self.bootstrap < 0:
            raise UserError(
                f"bootstrap={self.bootstrap} must be a number of draws such as 1000, "
                "or 0 for no intervals"
            )
        if self.k1 < 0 or (self.k1 and self.k2 < 1):
            raise UserError(
                f"rerank.k1={self.k1} and rerank.k2={self.k2} must be at least 1 "
                "(rerank.k1=8, rerank.k2=3 are good), or rerank.k1=0 for no re-ranking"
            )
        if not 0 <= self.weight <= 1:
            raise UserError(
                f"rerank.weight={self.weight} must lie between 0 (neighbours alone) "
                "and 1 (similarity alone)"
            )

    @property
    def reranking(self) -> str:
        """What the re-ranking is called in every output; "" where there is none."""
        if not self.k1:
            return ""
        numbers = f"k1 {self.k1}, k2 {self.k2}, weight {self.weight:g}"
        return f"k-reciprocal among images, {numbers}"


@dataclasses.dataclass(frozen=True)
class Scored:
    """One model on one set: each query's figures in both directions.

    model: the encoder's name. selected_on: what its checkpoint was chosen on, "" where
    that is unknown. plain: the same two before re-ranking, where there is one.
    """

    model: str
    selected_on: str
    to_image: Ranked
    to_text: Ranked
    plain: tuple[Ranked, Ranked] | None = None


def score(
    model: str,
    selected_on: str,
    data: RetrievalSet,
    queries: np.ndarray,
    gallery: np.ndarray,
    protocol: Protocol,
    *,
    mesh: Mesh | None = None,
) -> tuple[Scored, Scores]:
    """Ranks the images (N, P) for each caption (Q, P), and the captions for each image.

    Also returns what ranks the images for captions: numbers of captions (B,) -> scores
    (B, N), after re-ranking where there is one. Raises UserError where embeddings are not finite.
    """
    for name, rows in (("captions", queries), ("images", gallery)):
        broken = int((~np.isfinite(rows).all(axis=1)).sum())
        if broken:
            raise UserError(
                f"{model} gives embeddings that are not finite for {broken} of "
                f"{len(rows)} {name} of {data.name}; its training diverged: evaluate "
                "an earlier checkpoint"
            )
    texts, images = (queries, data.query_ids), (gallery, data.person_ids)
    pairs = (texts, images), (images, texts)
    plain = tuple(
        ranking.per_query(a, b, a_ids, b_ids, mesh=mesh)
        for (a, a_ids), (b, b_ids) in pairs
    )
    if not protocol.k1:
        return Scored(
            model, selected_on, *plain
        ), lambda rows: queries[rows] @ gallery.T
    options = dict(k1=protocol.k1, k2=protocol.k2, weight=protocol.weight, mesh=mesh)
    reranker = rerank.Reranker(queries, gallery, **options)
    scored = Scored(
        model,
        selected_on,
        *reranker.per_query(data.query_ids, data.person_ids),
        plain=plain,
    )
    return scored, reranker.to_image


def entry(
    system: str,
    scored: Sequence[Scored],
    data: RetrievalSet,
    protocol: Protocol,
    *,
    selected_here: bool = False,
) -> dict[str, Any]:
    """What evaluation.json says of a system on a set: JSON values alone.

    scored: one for each run of the system. selected_here: whether a checkpoint was
    chosen by its figures on this very set. With several the figures are means over the
    runs, and so are each query's before the intervals and the slices are computed:
    those speak of other persons, `std` of other seeds.
    """
    to_image = [one.to_image for one in scored]
    result = _direction(to_image, data.query_ids, protocol)
    back = [one.to_text for one in scored]
    result["image_to_text"] = _direction(back, data.person_ids, protocol)
    if protocol.k1:
        plain = zip(*(one.plain for one in scored), strict=True)
        before = [_means(ranked, protocol) for ranked in plain]
        result["without_rerank"] = before[0] | {"image_to_text": before[1]}
    if len(scored) > 1:
        result["runs"] = [
            {"model": one.model, "selected_on": one.selected_on}
            | _means([one.to_image], protocol)
            | {"image_to_text": _means([one.to_text], protocol)}
            for one in scored
        ]
    result["slices"] = _slices(to_image, data, protocol)
    chosen = {one.selected_on for one in scored}
    return {
        "system": system,
        "set": data.name,
        "model": scored[0].model if len(scored) == 1 else f"{len(scored)} runs",
        "selected_on": ", ".join(sorted(chosen)),
        "selected_here": selected_here,
        "protocol": {
            "without_match": protocol.without_match,
            "bootstrap": protocol.bootstrap,
            "level": LEVEL,
            "rerank": protocol.reranking,
        },
    } | result


def _direction(
    ranked: Sequence[Ranked], groups: np.ndarray, protocol: Protocol
) -> dict[str, Any]:
    """One direction's figures, with intervals, spread over runs, and the curve."""
    result: dict[str, Any] = _means(ranked, protocol)
    values, counted = _values(ranked, protocol)
    if protocol.bootstrap:
        result["intervals"] = _intervals(values, groups[counted], protocol)
    if len(ranked) > 1:
        single = [_means([one], protocol) for one in ranked]
        spread = {
            name: intervals.spread([one[name] for one in single])
            for name in ranking.FIGURES
        }
        result["mean"] = {name: float(mean) for name, (mean, _) in spread.items()}
        result["std"] = {name: float(std) for name, (_, std) in spread.items()}
    curves = [np.nan_to_num(one.curve)[counted].mean(axis=0) for one in ranked]
    result["cmc"] = [round(float(x), 4) for x in 100 * np.mean(curves, axis=0)]
    return result


def _means(ranked: Sequence[Ranked], protocol: Protocol) -> dict[str, Any]:
    """The figures of `ranking.summary`, means over runs, and its counts."""
    found = [
        ranking.summary(one, without_match=protocol.without_match) for one in ranked
    ]
    if len(found) == 1:
        return found[0]
    counts = ("queries", "gallery", "without_match", "ties")
    result = {name: np.mean([one[name] for one in found]).item() for name in found[0]}
    return result | {name: max(one[name] for one in found) for name in counts}


def _values(
    ranked: Sequence[Ranked], protocol: Protocol
) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """Figure -> (C,) of the queries that count, means over runs; (Q,) bool which do."""
    counted = ranked[0].amount > 0
    if protocol.without_match == "zero":
        counted = np.ones_like(counted)
    return {
        name: np.mean([np.nan_to_num(one.figures[name]) for one in ranked], axis=0)[
            counted
        ]
        for name in ranking.FIGURES
    }, counted


def _intervals(
    values: Mapping[str, np.ndarray], groups: np.ndarray, protocol: Protocol
) -> dict[str, list[float]]:
    options = dict(draws=protocol.bootstrap, seed=protocol.seed, level=LEVEL)
    found = intervals.bootstrap(values, groups, **options)
    return {name: [float(low), float(high)] for name, (low, high) in found.items()}


def _slices(
    ranked: Sequence[Ranked], data: RetrievalSet, protocol: Protocol
) -> list[dict[str, Any]]:
    """Rank-1 and mAP of the slices of the captions that count."""
    values, counted = _values(ranked, protocol)
    rows = []
    for part in slices.of_queries(data.queries, data.query_ids, data.person_ids):
        inside = part.members[counted]
        if not inside.any():
            continue
        own = {name: values[name][inside] for name in ("rank1", "map")}
        persons = data.query_ids[counted][inside]
        row = {"group": part.group, "slice": part.name, "queries": int(inside.sum())}
        row["persons"] = len(np.unique(persons))
        row |= {name: float(one.mean()) for name, one in own.items()}
        if protocol.bootstrap:
            row["intervals"] = _intervals(own, persons, protocol)
        rows.append(row)
    return rows
