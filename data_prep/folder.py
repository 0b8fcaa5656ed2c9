"""A folder of pictures with captions.csv in, a set of person records out.

captions.csv: a header `path,caption[,person_id,split]`, then a row for each caption; a
picture with several captions has several rows.
"""

import collections
import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterator, Sequence

from unipt_jax.data import images, tokenizers
from unipt_jax.data.records import (
    UNKNOWN,
    PersonRecord,
    contiguous_labels,
    write_set,
)
from unipt_jax.errors import UserError

SPLITS = ("pretrain", "train", "val", "test")
PICTURES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One picture of captions.csv. person: as written there, "" where not given."""

    path: str
    person: str
    split: str
    captions: tuple[str, ...]


def read_captions(raw: pathlib.Path) -> list[Entry]:
    """The pictures that captions.csv names, in its order.

    Raises UserError that names the line of the first mistake.
    """
    file = raw / "captions.csv"
    if not file.is_file():
        raise UserError(
            f"no {file}; write one with the header path,caption (and, if you like, "
            "person_id and split), and a row for each caption"
        )
    found: dict[str, Entry] = {}
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}); save it as "
            '"CSV UTF-8"'
        ) from error
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = {"path", "caption"} - set(rows.fieldnames or ())
        if missing:
            raise UserError(
                f"{file} has the columns {', '.join(rows.fieldnames or ['none'])}; it "
                f"lacks {', '.join(sorted(missing))}"
            )
        for row in rows:
            entry = _entry(row, f"{file} line {rows.line_num}")
            before = found.get(entry.path)
            if before is None:
                found[entry.path] = entry
            elif (before.person, before.split) != (entry.person, entry.split):
                raise UserError(
                    f"{file} line {rows.line_num}: {entry.path} was in split "
                    f"'{before.split}' with person_id '{before.person}' above; a "
                    "picture has one of each"
                )
            else:
                captions = before.captions + entry.captions
                found[entry.path] = dataclasses.replace(before, captions=captions)
    except csv.Error as error:
        raise UserError(
            f"{file} line {rows.line_num}: {error}; is a quote not closed?"
        ) from error
    if not found:
        raise UserError(f"{file} has a header but no rows")
    return list(found.values())


def _entry(row: dict[str, str], where: str) -> Entry:
    values = {k: (v or "").strip() for k, v in row.items() if isinstance(k, str)}
    path, caption = values["path"], values["caption"]
    if None in row:
        raise UserError(
            f"{where}: more fields than columns; quote captions with commas"
        )
    if not path or not caption:
        raise UserError(f"{where}: path and caption must not be empty")
    if os.path.isabs(path) or ".." in pathlib.PurePath(path).parts:
        raise UserError(f"{where}: path '{path}' must lie inside the folder")
    path = pathlib.PurePath(path).as_posix()  # ./a.jpg is a.jpg
    split = values.get("split") or "train"
    if split not in SPLITS:
        raise UserError(f"{where}: split '{split}' is not one of {', '.join(SPLITS)}")
    return Entry(path, values.get("person_id", ""), split, (caption,))


def check(raw: str | os.PathLike) -> list[Entry]:
    """Reads all that `build` would read and prints what was found.

    Raises UserError where pictures are missing or cannot be read, with the first few.
    """
    raw = pathlib.Path(raw)
    entries = read_captions(raw)
    missing = [e.path for e in entries if not (raw / e.path).is_file()]
    damaged = [e.path for e in entries if e.path not in missing and not _reads(raw, e)]
    listed = {e.path for e in entries}
    pictures = (p for p in raw.rglob("*") if p.suffix.lower() in PICTURES)
    unlisted = sum(p.relative_to(raw).as_posix() not in listed for p in pictures)
    print(f"{'split':<10}{'images':>8}{'persons':>9}{'captions':>10}")
    for split in dict.fromkeys(e.split for e in entries):
        some = [e for e in entries if e.split == split]
        persons = len({e.person for e in some if e.person})
        captions = sum(len(e.captions) for e in some)
        print(f"{split:<10}{len(some):>8}{persons or '-':>9}{captions:>10}")
    if unlisted:
        print(f"{unlisted} pictures in {raw} are not in captions.csv: left out")
    for name, paths in (("missing", missing), ("not readable", damaged)):
        if paths:
            shown = ", ".join(paths[:5]) + (" ..." if len(paths) > 5 else "")
            raise UserError(
                f"{len(paths)} pictures of {raw}/captions.csv are {name}: {shown}; "
                "mend them or take their rows out"
            )
    return entries


def _reads(raw: pathlib.Path, entry: Entry) -> bool:
    try:
        images.as_stored((raw / entry.path).read_bytes())
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def person_numbers(entries: Sequence[Entry]) -> list[int]:
    """Numbers as they are written; other names are numbered in sorted order."""
    names = sorted({e.person for e in entries if e.person})
    if all(_is_number(name) for name in names):
        number = {name: int(name) for name in names}
    else:
        number = {name: i for i, name in enumerate(names)}
    return [number.get(e.person, UNKNOWN) for e in entries]


def _is_number(name: str) -> bool:
    """True where the name is the number: not 007, and within 64 bits."""
    return name.isdecimal() and name == str(int(name)) and int(name) < 2**63


def build(
    raw: str | os.PathLike, out: str | os.PathLike, *, vocabulary: int = 0
) -> None:
    """Writes the set. vocabulary: trains a tokenizer of so many words on its captions.

    Pictures keep their size; those that are not plain RGB (EXIF turn, greyscale,
    palette, CMYK, transparency) are stored as upright RGB JPEG.
    """
    raw = pathlib.Path(raw)
    entries = check(raw)
    splits = collections.defaultdict(list)
    for entry, person in zip(entries, person_numbers(entries), strict=True):
        splits[entry.split].append((entry, person))

    def records(split: str) -> Iterator[PersonRecord]:
        labels = contiguous_labels([person for _, person in splits[split]])
        for (entry, person), label in zip(splits[split], labels, strict=True):
            yield PersonRecord(
                image=images.as_stored((raw / entry.path).read_bytes()),
                image_id=entry.path,
                file_path=entry.path,
                person_id=person,
                label=label,
                captions=entry.captions,
                attributes={"person": entry.person} if entry.person else {},
            )

    def extras(folder) -> None:
        if vocabulary:
            texts = [c for e in entries for c in e.captions]
            tokenizers.train(texts, size=vocabulary).save(folder / "tokenizer")

    write_set(
        out,
        PersonRecord,
        {split: Sized(records(split), len(splits[split])) for split in splits},
        metadata={"set": "folder", "raw": str(raw)},
        extras=extras,
    )


@dataclasses.dataclass(frozen=True)
class Sized:
    """An iterator that knows its length, for the progress bar."""

    items: Iterator
    length: int

    def __iter__(self) -> Iterator:
        return self.items

    def __len__(self) -> int:
        return self.length
