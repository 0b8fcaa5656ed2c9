"""Queries and a searcher in; what was found out: a table, results.json, results.html."""

import dataclasses
import os
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from unipt_jax.data import images
from unipt_jax.search import queries, scan
from unipt_jax.search.index import Index
from unipt_jax.search.queries import Query
from unipt_jax.search.remarks import ASKED_PHOTOGRAPH, CHANGED, PHOTOGRAPH, unread
from unipt_jax.search.scan import plain
from unipt_jax.search.searcher import Hit, Searcher
from unipt_jax.search.words import LEGEND, Words, signed

SHOWN = 50  # queries that the terminal and the page show; results.json has all
TOLD = 5  # words a query that the terminal shows


@dataclasses.dataclass(frozen=True)
class Found:
    """A crop that was found. notes: what a person should know of it."""

    hit: Hit
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A query and its crops, best first. words: of a sentence, where they are asked for.

    notes: what a person should know of how the query was read.
    """

    query: Query
    found: tuple[Found, ...]
    words: Words | None = None
    notes: tuple[str, ...] = ()


def answer(
    searcher: Searcher, asked: Sequence[Query], k: int, *, words: bool
) -> list[Answer]:
    """The k best crops of each query, or all where k is more, which a note says.

    words: look, too, which words of a sentence mattered. Raises UserError as
    `Searcher.by_text` does.
    """
    sentences = [query.text for query in asked if query.kind == "sentence"]
    pictures = [_opened(searcher, query) for query in asked if query.kind == "picture"]
    hits = {
        "sentence": iter(texts := searcher.by_text(sentences, k)),
        "picture": iter(searcher.by_picture(pictures, k)),
    }
    mattered = iter(searcher.words_of(sentences, texts) if words else ())
    out = []
    for query in asked:
        if query.kind == "sentence":
            notes, own = searcher.notes(query.text), next(mattered, None)
        else:
            photograph = scan.looks_like_a_photograph(query.height, query.width)
            notes, own = [ASKED_PHOTOGRAPH] * photograph, None
        if k > len(searcher.index):
            notes.append(f"the index has {len(searcher.index)} crops, fewer than k={k}")
        found = tuple(
            Found(hit, tuple(remarks(searcher.index, hit)))
            for hit in next(hits[query.kind])
        )
        out.append(Answer(query, found, own, tuple(notes)))
    return out


def _opened(searcher: Searcher, query: queries.Picture) -> Image.Image:
    """A picture just as an update reads those of the index."""
    encoder = searcher.encoder
    return Image.fromarray(images.decode(query.encoded, *encoder.size, encoder.fit))


def remarks(index: Index, hit: Hit) -> list[str]:
    """What a person should know of a crop that was found; its file is not opened."""
    said = [PHOTOGRAPH] * hit.photograph
    try:
        now = os.stat(index.file(hit.number))
    except OSError as error:
        return [*said, unread(error)]
    same = (now.st_size, now.st_mtime_ns) == (hit.crop.bytes, hit.crop.mtime_ns)
    return said if same else [*said, CHANGED]


def place(index: Index, hit: Hit) -> str:
    """Where a crop is from, as a person can open it: file and box."""
    return plain(os.path.join(index.folders[hit.crop.folder], hit.crop.label))


def record(index: Index, answers: Sequence[Answer]) -> dict[str, Any]:
    """What results.json holds."""
    return {
        "index": str(index.folder),
        "model": index.model.said,
        "entries": len(index),
        "queries": [_record(index, one) for one in answers],
    }


def _record(index: Index, one: Answer) -> dict[str, Any]:
    words, effect = [], np.zeros((0, len(one.found)))
    if one.words is not None:
        means = one.words.mean.tolist()
        words = [
            {"word": word, "effect": mean}
            for word, mean in zip(one.words.words, means, strict=True)
        ]
        effect = one.words.effect
    return {
        "query": one.query.text,
        "kind": one.query.kind,
        "notes": list(one.notes),
        "words": words,
        "results": [
            {
                "rank": found.hit.rank,
                "score": found.hit.score,
                "path": found.hit.crop.path,
                "folder": index.folders[found.hit.crop.folder],
                "box": found.hit.crop.box,
                "note": "; ".join(found.notes),
                "words": effect[:, i].tolist(),
            }
            for i, found in enumerate(one.found)
        ],
    }


def terminal(index: Index, answers: Sequence[Answer]) -> str:
    """A table for each of the first `SHOWN` queries; paths stand whole."""
    blocks = [_table(index, one) for one in answers[:SHOWN]]
    if any(one.words is not None for one in answers):
        blocks.append(LEGEND)
    if len(answers) > SHOWN:
        blocks.append(f"... and {len(answers) - SHOWN} more queries, in results.json")
    return "\n\n".join(blocks)


def _table(index: Index, one: Answer) -> str:
    lines = [plain(" ".join(one.query.text.split()))]
    lines += [f"  note: {plain(note)}" for note in one.notes]
    if one.words is not None:
        lines.append(f"  words: {plain(strongest(one.words))}")
    lines.append("  rank   score  path")
    for found in one.found:
        hit = found.hit
        note = f"  ({'; '.join(found.notes)})" if found.notes else ""
        lines.append(f"  {hit.rank:>4}  {hit.score:6.3f}  {place(index, hit)}{note}")
    return "\n".join(lines)


def strongest(words: Words) -> str:
    """The words that mattered most, strongest first, without the signs around them."""
    mean = words.mean
    order = np.argsort(-np.abs(mean), kind="stable")[:TOLD]
    bare = [word.strip(string.punctuation) or word for word in words.words]
    return ", ".join(f"{bare[i]} {signed(mean[i])}" for i in order)
