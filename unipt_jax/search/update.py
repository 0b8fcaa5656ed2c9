"""Makes an index of folders of pictures, or brings one up to date.

What is as it was is not opened; what was moved, copied or touched keeps its vector; the
rest is embedded. Killed at any moment, the same command goes on, and ends with the same
bytes.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from unipt_jax.data import shards
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError
from unipt_jax.search import boxes as csv
from unipt_jax.search import index as indexes
from unipt_jax.search import scan
from unipt_jax.search.index import Index, Model
from unipt_jax.search.parts import Parts
from unipt_jax.search.work import Item, Work

KEY = ("folder", "path", "asked")  # which entry is which


def update(
    encoder: Encoder,
    model: Model,
    folder: str | os.PathLike,
    *,
    images: Sequence[str],
    boxes: str = "",
    dtype: str = "",
    batch_size: int,
    threads: int = 8,
    content: bool = False,
    overwrite: bool = False,
) -> Index:
    """The index in `folder`, of all pictures that are below `images` now.

    encoder: what embeds; model: what the index says of it. boxes: a CSV; with it, the
    boxes that it gives are indexed, and no other picture. dtype: of embeddings that are
    kept, "" for the index's own, or float16 for one that is made; they are unit vectors
    in float32, rounded and not made longer again: float16 moves a cosine by less than
    0.0005 (by 0.00007 at most in trials with a width of 256 or more). batch_size: pictures on all devices at a time. threads: that read.
    content: every file is read, even if its size and time are as they were. overwrite:
    no vector of the index that is there is kept, nor asked what made it.
    Raises UserError where nothing can be read, where the index is of another model, or
    of boxes and none are given, and while another update of it is running; Stopped after
    a SIGTERM.
    """
    place = indexes.local(folder)
    if place.exists() and not place.is_dir():
        raise UserError(
            f"{scan.plain(str(place))} is a file; give a folder for the index, or a new name"
        )
    names = scan.folders(images)
    found = scan.scan(names)
    items = [Item(file, None) for file in found.files]
    if boxes:
        items = _in_boxes(found, names, boxes)
        boxes = os.path.abspath(os.path.expanduser(boxes))
    place.mkdir(parents=True, exist_ok=True)
    refusal = f"another process is bringing the index {place} up to date; wait for it"
    with shards.alone(place, refusal):
        old = None
        if indexes.exists(place) and not overwrite:
            old = check_same(indexes.read(place), model, boxes, dtype)
        dtype = dtype or (str(old.embeddings.dtype) if old else indexes.DTYPES[0])
        key = dict(fingerprint=model.fingerprint, width=model.width, dtype=dtype)
        parts = Parts(place, old, folders=names, **key)
        work = Work(encoder, parts, names, batch_size, threads, dtype)
        for (number, path), reason in found.skipped.items():
            work.skip(number, scan.shown(path), reason)
        numbers = work.run(items, content)
        index = _write(place, old, work, numbers, model=model, boxes=boxes)
        _report(index, old, work)
        return index


def check_same(old: Index, model: Model, boxes: str, dtype: str) -> Index:
    """The index itself. Raises UserError if its vectors are another model's, with what
    that differs in, or of another dtype, or if all its persons would drop out."""
    if old.model.fingerprint != model.fingerprint:
        before, now = old.model.parts, model.parts
        raise UserError(
            f"the index {old.folder} was made by {old.model.said}, and this is "
            f"{model.said}: they differ in {differences(before, now)}, and their vectors "
            "cannot be compared; use another --workdir, or --config.overwrite=True to "
            "make the index anew"
        )
    if old.boxes and not boxes:
        raise UserError(
            f"the index {old.folder} is of persons in the boxes of "
            f"{scan.plain(old.boxes)}, and no boxes are given: give that file, wherever "
            "it is now, with --config.boxes=FILE, or --config.overwrite=True to index "
            "whole pictures in their place"
        )
    if dtype and old.embeddings.dtype != dtype:
        raise UserError(
            f"the index {old.folder} holds {old.embeddings.dtype}, not {dtype}; give "
            f"--config.dtype={old.embeddings.dtype}, or --config.overwrite=True to make "
            "it anew"
        )
    return old


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In what two models' `Encoder.identity` differ, for people."""
    out = []
    for name in sorted(before.keys() | now.keys()):
        values = before.get(name, "unknown"), now.get(name, "unknown")
        if values[0] != values[1]:
            brief = max(map(len, values)) <= 32
            out.append(f"{name} ({values[0]} and {values[1]})" if brief else name)
    return " and ".join(out) or "their weights"


def _in_boxes(found: scan.Found, folders: Sequence[str], boxes: str) -> list[Item]:
    """What to index, in the order of the index; prints how many pictures have no box."""
    asked = csv.read(boxes, folders, found)
    for key in [key for key in found.skipped if key not in asked]:
        del found.skipped[key]
    items = [
        Item(file, box)
        for file in found.files
        for box in sorted(asked.get((file.folder, file.path), ()))
    ]
    named = {(item.file.folder, item.file.path) for item in items}
    if left_out := len(found.files) - len(named):
        are = "picture is" if left_out == 1 else "pictures are"
        print(f"{left_out} {are} left out, which {scan.plain(boxes)} does not name")
    return items


def _write(place, old: Index | None, work: Work, numbers, **fields) -> Index:
    """Writes the index of these rows; only what changed, where all its rows are there.

    fields: as in `indexes.write`.
    """
    skipped = sorted(work.skipped)
    if not len(numbers):
        path, reason = skipped[0]
        work.parts.clear()
        raise UserError(
            f"none of {len(skipped)} pictures can be read ({scan.plain(path)}: {reason})"
            "; nothing is indexed, and an index that was there stays as it was"
        )
    fields |= dict(folders=work.folders, skipped=skipped)
    entries = work.parts.entries(numbers)
    if old is not None and old.entries.equals(entries):
        index = indexes.restate(old, **fields)
    else:
        rows = work.parts.vectors(numbers)
        fields |= dict(entries=entries, rows=rows, dtype=work.dtype)
        index = indexes.write(place, **fields)
    work.parts.clear()
    return index


def _report(index: Index, old: Index | None, work: Work) -> None:
    """Prints what was done."""
    counts = work.counts
    place = scan.plain(scan.shown(os.fsencode(index.folder)))
    what = "entry" if len(index) == 1 else "entries"
    done = counts["earlier"]
    earlier = f"done before it was stopped {done}, " if done else ""
    print(
        f"index {place}: {len(index)} {what}: {earlier}kept {counts['kept']}, embedded "
        f"{counts['embedded']}, taken over {counts['taken over']}, dropped "
        f"{_dropped(index, old)}, skipped {index.skipped}"
        + (f" (see {place}/{indexes.SKIPPED})" if index.skipped else "")
    )
    for folder in old.folders if old else ():
        if folder not in index.folders:
            print(
                f"note: {scan.plain(folder)} is not among --config.images any more, and "
                "its pictures are no longer in the index; name all folders each time"
            )
    shapes = (index.entries.column(name).to_numpy() for name in ("height", "width"))
    large = np.flatnonzero(scan.looks_like_a_photograph(*shapes))
    if len(large):
        crop = index[int(large[0])]
        print(
            f"note: {len(large)} of {len(index)} {what} not shaped like a crop of one "
            f"person, such as {scan.plain(crop.label)} of {crop.width}x{crop.height}; a picture "
            "of several persons, or of a scene, gets one vector for all of it and will "
            "answer badly: cut the persons out, or give their boxes with "
            f"--config.boxes=FILE, a CSV with {','.join(csv.COLUMNS)}"
        )


def _dropped(index: Index, old: Index | None) -> int:
    """How many paths and boxes of the index as it was are not there any more: those of
    what was moved, too, whose vectors were taken over."""
    if old is None or index.generation == old.generation:
        return 0

    def keys(of: Index) -> set[tuple]:
        columns = (of.entries.column(name).to_pylist() for name in KEY)
        return {(of.folders[f], *rest) for f, *rest in zip(*columns, strict=True)}

    return len(keys(old) - keys(index))
