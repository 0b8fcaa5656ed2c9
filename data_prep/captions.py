"""Captions alone, for images that are prepared already: a survey and a record set in, a
caption record set out, index-aligned with the records."""

import collections
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from data_prep import prepare
from data_prep.entries import PRETRAIN, Survey
from data_prep.raw import shortened, tails
from unipt_jax.data import shards
from unipt_jax.data.records import (
    CaptionRecord,
    PersonRecord,
    Records,
    fields,
    splits,
)
from unipt_jax.errors import UserError

_SHARD = 1 << 16  # captions of so many images in a file


def match(image_ids: Sequence[str], paths: Sequence[str]) -> list[int | None]:
    """For each image id the number of the path that is the same image, or None.

    Folders that only one of the two begins with do not count: `part1.tar/x/1.jpg` is
    `x/1.jpg`, and so the other way round. What would match two images matches none.
    """
    exact = {path: number for number, path in enumerate(paths)}
    ends: dict[str, int | None] = {}  # None: of several
    out: list[int | None] = [exact.get(image_id) for image_id in image_ids]
    same = set(out)
    for place, image_id in enumerate(image_ids):
        if out[place] is None:
            found = (exact[tail] for tail in tails(image_id) if tail in exact)
            number = next(found, None)
            out[place] = None if number in same else number
    if not any(number is not None for number in out):
        for number, path in enumerate(paths):
            for tail in itertools.islice(tails(path), 1, None):
                ends[tail] = None if tail in ends else number
        out = [ends.get(image_id) for image_id in image_ids]
    taken = collections.Counter(number for number in out if number is not None)
    return [n if n is not None and taken[n] == 1 else None for n in out]


def _check(folder: str | os.PathLike) -> None:
    """Raises UserError where there are no images to pre-train on."""
    there = splits(folder)
    if "image" not in fields(folder):
        what = "holds captions, not images"
    elif not there.get(PRETRAIN):
        what = f"has no images to pre-train on, only {there}"
    else:
        return
    raise UserError(
        f"--records {folder} {what}; give the records of a set that has them"
    )


def write(
    survey: Survey,
    folder: str | os.PathLike,
    out: str | os.PathLike,
    metadata: Mapping[str, Any],
) -> None:
    """Writes the captions of `survey` for the records in `folder`, all or nothing.

    Raises UserError where no image of the two is the same, or there are no captions.
    """
    if not any(any(entry.captions) for entry in survey.entries):
        raise UserError(
            f"{survey.name} in {survey.raw.name} has no captions; leave --records out, "
            "or give a set that has some"
        )
    _check(folder)
    records = Records(folder, PRETRAIN, PersonRecord)
    bar = tqdm(range(len(records)), desc="reading image ids", unit=" records")
    image_ids = [records[index].image_id for index in bar]
    numbers = match(image_ids, [entry.image_id for entry in survey.entries])
    found = sum(number is not None for number in numbers)
    if not found:
        raise UserError(
            f"no image of {folder} is in the captions, or several are for each: it has "
            f"'{shortened(image_ids[0])}', they have "
            f"'{shortened(survey.entries[0].image_id)}'; prepare the images whose "
            "captions these are"
        )
    print(
        f"{found:,} of {len(image_ids):,} images of {folder} have captions; "
        f"{len(survey.entries) - found:,} captioned images are not in it"
    )
    told = {"records": os.fspath(folder), "captioned": found}
    out = epath.Path(out)
    partial = prepare.partial_of(out)
    if (partial / "plan.json").exists():
        raise UserError(
            f"{partial} was left by a build of images; remove it, or give another --out"
        )
    with prepare.alone(partial, out):
        (partial / "set").rmtree(missing_ok=True)
        if out.exists():
            raise UserError(f"{out} has been written by another process meanwhile")
        _write(survey, partial / "set", image_ids, numbers, told | metadata)
        (partial / "set").rename(out)
        partial.rmtree()


def _write(survey: Survey, folder: epath.Path, image_ids, numbers, metadata) -> None:
    count = -(-len(image_ids) // _SHARD)
    files = shards.ShardedSet(folder, CaptionRecord, PRETRAIN, count)
    for shard in range(count):
        some = range(shard * _SHARD, min((shard + 1) * _SHARD, len(image_ids)))
        rows = tqdm(some, desc=f"writing captions {shard + 1}/{count}", unit=" records")
        files.write(
            shard,
            (_record(survey, image_ids[index], numbers[index]) for index in rows),
        )
    files.finish(metadata)


def _record(survey: Survey, image_id: str, number: int | None) -> CaptionRecord:
    if number is None:
        return CaptionRecord(image_id, ())
    entry = survey.entries[number]
    captions = tuple(caption for caption in entry.captions if caption)
    return CaptionRecord(image_id, captions, {"file_path": entry.image_id})
