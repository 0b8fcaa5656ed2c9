"""Kinds of queries: sentences and identities in, which query is in which slice out."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import yaml

# Where slices begin; each ends where the next one does, the last one nowhere.
LENGTHS = (1, 13, 19, 25, 33, 46)
IMAGES = (1, 2, 3, 5, 10, 20)
WORD = re.compile(r"[a-z]+(?:['’-][a-z]+)*")


@dataclasses.dataclass(frozen=True)
class Slice:
    """Some of the queries: what they have in common, and (Q,) bool which they are."""

    group: str
    name: str
    members: np.ndarray


def of_queries(
    queries: Sequence[str], query_ids: np.ndarray, gallery_ids: np.ndarray
) -> list[Slice]:
    """The slices by length, by the person's gallery images and by words.

    queries: Q sentences. query_ids: (Q,) and gallery_ids: (N,) person ids.
    A slice without any query is left out, and so is one that has all of them.
    """
    lengths = np.array([len(query.split()) for query in queries])
    known, count = np.unique(gallery_ids, return_counts=True)
    place = np.minimum(np.searchsorted(known, query_ids), len(known) - 1)
    images = np.where(known[place] == query_ids, count[place], 0)
    found = [
        *_ranges("words in the query", lengths, LENGTHS),
        *_ranges("the person's gallery images", images, IMAGES),
        *_by_words(queries),
    ]
    return [part for part in found if 0 < part.members.sum() < len(queries)]


def _ranges(group: str, values: np.ndarray, starts: Sequence[int]) -> list[Slice]:
    ends = [start - 1 for start in starts[1:]]
    parts = []
    for start, end in zip(starts, [*ends, None], strict=True):
        inside = values >= start
        name = f"{start} or more"
        if end is not None:
            inside &= values <= end
            name = str(start) if start == end else f"{start} to {end}"
        parts.append(Slice(group, name, inside))
    return parts


def _by_words(queries: Sequence[str]) -> list[Slice]:
    words = [_words(query) for query in queries]
    parts = []
    for group, slices in lexicon().items():
        inside = {
            name: np.array([not own.isdisjoint(wanted) for own in words])
            for name, wanted in slices.items()
        }
        parts += [Slice(group, *item) for item in inside.items()]
        without = ~np.logical_or.reduce(list(inside.values()))
        parts.append(Slice(group, "none of these", without))
    return parts


def _words(text: str) -> set[str]:
    """The words of a sentence, and the parts of those with a hyphen."""
    found = set(WORD.findall(text.lower()))
    return found | {part for word in found for part in re.split("['’-]", word)}


@functools.cache
def lexicon() -> Mapping[str, Mapping[str, frozenset[str]]]:
    """Group -> slice -> its words, those with -s and -es behind them among them."""
    text = pathlib.Path(__file__).with_name("slices.yaml").read_text("utf-8")
    return {
        group: {
            name: frozenset(word + end for word in words for end in ("", "s", "es"))
            for name, words in slices.items()
        }
        for group, slices in yaml.safe_load(text).items()
    }
