"""A folder of pictures of one's own, with captions and identities where there are any.

`captions.csv` has a header `path,caption[,person_id,split]` and a row for each caption,
`captions.jsonl` an object with the same names in each line; a picture with several
captions has several of them. Without either, all pictures are there to pre-train on.
"""

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from data_prep import annotations, raw
from data_prep.entries import SPLITS, Entry, Survey, in_order, placed
from data_prep.unlabelled import pictures
from unipt_jax.data.records import UNKNOWN
from unipt_jax.errors import UserError

FILES = ("captions.csv", "captions.jsonl")
_NAMES = ("path", "caption", "person_id", "split")


def read(folder: str | os.PathLike, *, annotation: str = "") -> Survey:
    """The survey of a folder. annotation: the file, where it has another name.

    Raises UserError that names the line of the first mistake.
    """
    source = raw.Raw(folder)
    there = [f"{source.name}/{name}" for name in FILES if _is_there(source, name)]
    if len(there) > 1:
        raise UserError(f"{there[0]} and {FILES[1]} are both there; keep one of them")
    if not annotation and not there:
        survey = pictures(source)
        note = f"neither {FILES[0]} nor {FILES[1]} is there: pictures without captions"
        return Survey(
            "folder", survey.raw, survey.entries, [], notes=[note, *survey.notes]
        )
    file = annotation or there[0]
    entries = list(_entries(file))
    if not entries:
        raise UserError(f"{file} has no rows; write one for each caption")
    numbers = person_numbers([e.attributes.get("person", "") for e in entries])
    entries = [
        Entry(e.image_id, None, e.split, e.where, number, e.captions, e.attributes)
        for e, number in zip(entries, numbers, strict=True)
    ]
    return Survey("folder", source, placed(source, in_order(entries)), [file])


def _is_there(source: raw.Raw, name: str) -> bool:
    """Whether there is such a file. Raises UserError for what only has its name."""
    if name in source.outside:
        source.refuse(name)
    path = f"{source.root}/{name}"
    if name not in source.files and os.path.lexists(path):
        what = "a folder" if os.path.isdir(path) else "no file"
        what = "a dead link" if name in source.dead else what
        raise UserError(
            f"{source.name}/{name} is {what}; put a file there, or remove it"
        )
    return name in source.files


def _entries(file: str) -> Iterator[Entry]:
    """An entry for each row; `attributes` has the person's name as written."""
    if not os.path.isfile(file):  # a named pipe would have to be waited for
        raise UserError(f"{file} is not there, or no file; give a CSV or JSONL file")
    try:
        text = pathlib.Path(file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}); save it as "
            'UTF-8 (in a spreadsheet: "CSV UTF-8")'
        ) from error
    rows = _of_jsonl if file.lower().endswith(".jsonl") else _of_csv
    for where, values in rows(file, text):
        yield _entry(values, where)


def _of_csv(file: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = rows.fieldnames or []
        if missing := {"path", "caption"} - set(columns):
            raise UserError(
                f"{file} has the columns {raw.shortened(', '.join(columns)) or 'none'}; "
                f"it lacks {', '.join(sorted(missing))}: write its first line as "
                "path,caption,person_id,split, of which the last two may be left out"
            )
        if twice := [name for name in _NAMES if columns.count(name) > 1]:
            raise UserError(f"{file} has the column {twice[0]} twice; keep one of them")
        for row in rows:
            where = f"{file} line {rows.line_num}"
            if None in row:
                raise UserError(
                    f"{where}: more fields than columns; quote captions with commas"
                )
            yield where, {k: (v or "").strip() for k, v in row.items()}
    except csv.Error as error:
        raise UserError(
            f"{file} line {rows.line_num + 1}: {error}; is a quote not closed?"
        ) from error


def _of_jsonl(file: str, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{file} line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=annotations.once)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{where} is no JSON ({error}); write one object a line, such as "
                '{"path": "a.jpg", "caption": "A man ..."}'
            ) from error
        plain = isinstance(values, dict) and all(
            value is None or isinstance(value, str | int) for value in values.values()
        )
        plain = plain and not any(isinstance(values.get(n), bool) for n in _NAMES)
        if not plain or not {"path", "caption"} <= values.keys():
            raise UserError(
                f"{where} is {annotations.shown(values)}; expected an object with path "
                "and caption, and, if you like, person_id and split, each a text"
            )
        text_of = {n: values.get(n) for n in _NAMES}
        yield (
            where,
            {n: "" if v is None else str(v).strip() for n, v in text_of.items()},
        )


def _entry(values: Mapping[str, str], where: str) -> Entry:
    path, caption = values["path"], " ".join(values["caption"].split())
    if not path or not caption:
        raise UserError(
            f"{where}: path and caption must not be empty; write both, or remove the line"
        )
    try:
        "".join(values.values()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half a character ({error.reason}) in "
            f"{annotations.shown(dict(values))}; correct it"
        ) from error
    split, person = values.get("split") or "train", values.get("person_id", "")
    if split not in SPLITS:
        raise UserError(
            f"{where}: split '{raw.shortened(split)}' is not one of "
            f"{', '.join(SPLITS)}; correct it"
        )
    known = {"person": person} if person else {}
    return Entry(
        raw.inside(path, where), None, split, where, UNKNOWN, (caption,), known
    )


def person_numbers(persons: Sequence[str]) -> list[int]:
    """Numbers as they are written; other names are numbered in sorted order; "" is
    unknown."""
    names = sorted({person for person in persons if person})
    if all(_is_number(name) for name in names):
        number = {name: int(name) for name in names}
    else:
        number = {name: i for i, name in enumerate(names)}
    return [number.get(person, UNKNOWN) for person in persons]


def _is_number(name: str) -> bool:
    """True where the name is the number: not 007, and within 64 bits."""
    decimal = name.isdecimal() and len(name) < 20
    return decimal and name == str(int(name)) and int(name) < 2**63
