"""CUHK-PEDES, ICFG-PEDES and RSTPReid: persons with identities, splits and captions.

In: the folder that someone has, with the annotation file that they have. Out: a survey.
"""

import dataclasses
import os
from collections.abc import Mapping

from data_prep import annotations
from data_prep.entries import Counts, Entry, Published, Survey, in_order, placed
from data_prep.raw import Raw
from unipt_jax.errors import UserError

_SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A data set: its annotation files by name, the best first, and what it holds."""

    name: str
    files: tuple[str, ...]
    published: Published


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "cuhk_pedes",
            ("reid_raw.json", "caption_all.json"),
            Published(
                {
                    "train": Counts(34054, 11003, 68126),
                    "val": Counts(3078, 1000, 6158),
                    "test": Counts(3074, 1000, 6156),
                },
                captions=(80412,),
                first_id=1,
            ),
        ),
        Kind(
            "icfg_pedes",
            ("ICFG-PEDES.json", "ICFG_PEDES.json"),
            Published(
                {
                    "train": Counts(34674, 3102, 34674),
                    "test": Counts(19848, 1000, 19848),
                },
                # A reader that others published counts 34,673 paths in train's 34,674
                # entries: one image is named twice.
                images=(54521,),
                captions=(54521,),
            ),
        ),
        Kind(
            "rstp_reid",
            ("data_captions.json",),
            Published(
                {
                    "train": Counts(18505, 3701, 37010),
                    "val": Counts(1000, 200, 2000),
                    "test": Counts(1000, 200, 2000),
                }
            ),
        ),
    )
}


def read(
    kind: Kind, folder: str | os.PathLike, *, annotation: str = "", splits: str = ""
) -> Survey:
    """The survey of a data set below `folder`.

    annotation: the file, where it has another name. splits: a file that says which
    image is in which split, for annotations that do not; see `read_splits`.
    Raises UserError where there is no annotation, for its first bad entry, and where
    the splits are not known.
    """
    raw = Raw(folder)
    file = annotation or annotation_file(raw, kind.files, kind.name)
    found, unsplit = [], []
    for item in annotations.entries(file, file):
        split = ""
        if "split" in item.values:
            split = item.one_of("split", *_SPLITS)
        entry = Entry(
            image_id=item.path("file_path", "img_path"),
            place=None,
            split=split,
            where=item.where,
            person_id=item.number("id"),
            captions=item.captions("captions"),
        )
        if not split:
            unsplit.append(item)
        found.append(entry)
    if not found:
        raise UserError(f"{file} has no entries; fetch it again")
    sources, notes = [file], []
    if splits:
        by_path = read_splits(splits)
        found = [_given(entry, by_path, splits) for entry in found]
        sources.append(splits)
    elif len(unsplit) == len(found):
        found = _derived(found, kind, file)
        notes.append(
            f"{os.path.basename(file)} has no splits: taken from the published ranges "
            "of identities, since identities and counts are exactly those"
        )
    elif unsplit:
        raise unsplit[0].wrong("split", f"one of {', '.join(_SPLITS)}")
    entries = placed(raw, in_order(found))
    if twice := len(found) - len(entries):
        notes.append(
            f"{twice:,} of the annotation's {len(found):,} entries name an image again: "
            "their captions were joined"
        )
    return Survey(kind.name, raw, entries, sources, kind.published, notes)


def annotation_file(raw: Raw, names: tuple[str, ...], data_set: str) -> str:
    """The path of the first of these files that is there, the nearest of that name."""
    for name in names:
        if found := raw.named(name):
            return f"{raw.name}/{found[0]}"
    others = [path for path in raw.named(suffix=".json") if path]
    instead = f" (there is {', '.join(others[:3])})" if others else ""
    raise UserError(
        f"no annotation of {data_set} in {raw.name}: expected {' or '.join(names)}, "
        f"there or up to two folders below{instead}; put it there, or name it with "
        "--annotations FILE"
    )


def _derived(found: list[Entry], kind: Kind, file: str) -> list[Entry]:
    """Splits by the published ranges of identities, if all is as published."""
    published, begin, split_of = kind.published, kind.published.first_id, {}
    for split, counts in published.splits.items():
        split_of |= dict.fromkeys(range(begin, begin + counts.identities), split)
        begin += counts.identities
    ids = {entry.person_id for entry in found}
    split = [
        dataclasses.replace(entry, split=split_of.get(entry.person_id, ""))
        for entry in found
    ]
    differ = ""
    if ids != split_of.keys():
        differ = (
            f"its {len(ids):,} identities, {min(ids)} to {max(ids)}, are not the "
            f"published {min(split_of)} to {max(split_of)}"
        )
    else:
        for name, counts in published.splits.items():
            images = sum(entry.split == name for entry in split)
            if images != counts.images:
                differ = (
                    f"{name} would have {images:,} images where {counts.images:,} are "
                    "published"
                )
    if differ:
        best = kind.files[0]
        raise UserError(
            f"{file} does not say which split an image is in, and the published ranges "
            f"of identities cannot be trusted with it ({differ}); give the splits with "
            f"--splits FILE: the data set's {best}, or JSON that gives the split of "
            "each file_path"
        )
    return split


def read_splits(file: str) -> Mapping[str, str]:
    """Path -> split, from a list of entries with file_path (or img_path) and split,
    from {path: split}, or from {split: [paths]}.

    Raises UserError for the first entry that is none of these, and for the first image
    that is in two splits.
    """
    out: dict[str, str] = {}

    def add(path: str, item: annotations.Annotation, split: str) -> None:
        if out.setdefault(path, split) != split:
            raise UserError(
                f"{item.where}: {path} is in {split}, but in {out[path]} further up; "
                "an image is in one split: correct the file"
            )

    for key, value in annotations.items(file, file):
        if isinstance(key, int):
            if not isinstance(value, dict):
                value = {"entry": value}
            item = annotations.Annotation(f"{file} entry {key}", value)
            path = item.path("file_path", "img_path")
            add(path, item, item.one_of("split", *_SPLITS))
        elif key in _SPLITS and isinstance(value, list):
            for path in value:
                item = annotations.Annotation(f"{file} '{key}'", {"file_path": path})
                add(item.path("file_path"), item, key)
        else:
            values = {"file_path": key, "split": value}
            item = annotations.Annotation(f"{file} '{key[:80]}'", values)
            add(item.path("file_path"), item, item.one_of("split", *_SPLITS))
    return out


def _given(entry: Entry, by_path: Mapping[str, str], file: str) -> Entry:
    split = by_path.get(entry.image_id)
    if split is None:
        raise UserError(
            f"{file} has no split for {entry.image_id} ({entry.where}); it must name "
            "every image of the annotation: give the full list"
        )
    if entry.split and entry.split != split:
        raise UserError(
            f"{file} says that {entry.image_id} is in {split}, {entry.where} says "
            f"{entry.split}; leave --splits out, or correct it"
        )
    return dataclasses.replace(entry, split=split)
