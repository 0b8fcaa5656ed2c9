"""How right captions are, where the truth is known: evidence and facts in, accuracy out."""

import collections
from collections.abc import Mapping
from typing import Any

from unipt_jax.captions.lexicon import Lexicon


class Score:
    """Counts, fact by fact, what captions said of images and what was true.

    A phrase states facts ("upper_colour" is "red"); each is compared with the fact of the
    same name that is known of the person. A fact that is not known is not counted.
    """

    def __init__(self, words: Lexicon) -> None:
        self._facts = {
            (name, phrase.value): dict(phrase.facts)
            for name, attribute in words.attributes.items()
            for phrase in attribute.phrases
        }
        self._names = tuple(words.attributes)
        # fact -> truth -> what was said -> how often
        self._counts: dict[str, dict[str, collections.Counter]] = {}
        self._whole: dict[str, list[int]] = {}

    def add(
        self, evidence: Mapping[str, Mapping[str, Any]], truth: Mapping[str, str]
    ) -> None:
        """One image."""
        for name in self._names:
            facts = self._facts[name, evidence[name]["value"]]
            known = {fact: said for fact, said in facts.items() if fact in truth}
            for fact, said in known.items():
                rows = self._counts.setdefault(fact, {})
                rows.setdefault(truth[fact], collections.Counter())[said] += 1
            if known:
                right = all(truth[fact] == said for fact, said in known.items())
                counts = self._whole.setdefault(name, [0, 0])
                counts[0] += right
                counts[1] += 1

    def figures(self) -> dict[str, Any]:
        """In percent: for each fact its accuracy, its balanced accuracy (the mean over
        the true values), and what always saying the commonest value would give of both;
        for each attribute whether the whole phrase is right; and the mean over those.

        Things that an image may lack have "found" too: the accuracy and the balanced
        accuracy of whether it is there at all.
        """
        facts = {}
        for fact, rows in self._counts.items():
            facts[fact] = _accuracy(rows)
            if "" in rows and len(rows) > 1:
                facts[fact]["found"] = _accuracy(_there(rows))
        whole = {name: _percent(*counts) for name, counts in self._whole.items()}
        mean = round(sum(whole.values()) / max(len(whole), 1), 2)
        return {"facts": facts, "whole": whole, "mean": mean}


def _there(rows: Mapping[str, collections.Counter]) -> dict[str, collections.Counter]:
    """The counts of a thing, with all its kinds taken as one."""
    out: dict[str, collections.Counter] = {}
    for truth, said in rows.items():
        counter = out.setdefault("there" if truth else "", collections.Counter())
        for value, count in said.items():
            counter["there" if value else ""] += count
    return out


def _percent(part: float, whole: float) -> float:
    return round(100 * part / max(whole, 1), 2)


def _accuracy(rows: Mapping[str, collections.Counter]) -> dict[str, Any]:
    totals = {truth: sum(said.values()) for truth, said in rows.items()}
    recalls = [said[truth] / totals[truth] for truth, said in rows.items()]
    images = sum(totals.values())
    return {
        "accuracy": _percent(sum(said[truth] for truth, said in rows.items()), images),
        "balanced": _percent(sum(recalls), len(recalls)),
        "majority": _percent(max(totals.values()), images),
        "majority_balanced": _percent(1, len(recalls)),
        "images": images,
    }


def rows(figures: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The figures as rows of a table: fact, accuracy, what the commonest value gives of
    it, balanced accuracy, what the commonest value gives of that."""
    keys = ("accuracy", "majority", "balanced", "majority_balanced")
    out = []
    for fact, row in figures["facts"].items():
        out.append((fact, *(f"{row[key]:.1f}" for key in keys)))
        if "found" in row:
            cells = (f"{row['found'][key]:.1f}" for key in keys)
            out.append((f"{fact}, there at all", *cells))
    for name in figures["whole"]:
        if name not in figures["facts"]:
            out.append((f"{name}, whole", f"{figures['whole'][name]:.1f}", *("",) * 3))
    return [*out, ("mean of the attributes", f"{figures['mean']:.1f}", *("",) * 3)]


def table(figures: Mapping[str, Any]) -> str:
    """The figures as a table for a terminal."""
    heads = ("fact", "accuracy", "majority", "balanced", "majority")
    lines = [heads, *rows(figures)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
