"""A CSV of boxes in, the boxes of each file out: persons that stand in photographs."""

import csv
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from unipt_jax.data.images import Box
from unipt_jax.errors import UserError
from unipt_jax.search.scan import Found, plain, shown

COLUMNS = ("path", "x", "y", "w", "h")
LARGEST = 1_000_000  # pixels, of any number in the file

Key = tuple[int, bytes]  # number of a folder, and a path below it


def read(
    file: str | os.PathLike, folders: Sequence[str], found: Found
) -> dict[Key, list[Box]]:
    """The boxes of each file that a CSV names, in pixels of the upright picture.

    The first line names the columns, among them path, x, y, w, h; others are not read.
    x and y are of the left upper corner, and numbers are rounded. Paths are relative to
    a folder of `folders`, the first that has it, or absolute, through links or not.
    found: what `scan` found there. Boxes may stand out of their picture: see
    `images.within`. Paths that are not there are left out, with a note, for a picture
    may be deleted and its boxes stay.
    Raises UserError, with the line, for what is amiss.
    """
    file = pathlib.Path(os.path.expanduser(file))
    known = {(f.folder, f.path) for f in found.files} | found.skipped.keys()
    boxes: dict[Key, dict[Box, int]] = {}
    missing: list[tuple[int, str]] = []
    for line, row in _rows(file):
        path = row["path"]
        box = _box(file, line, row)
        key = _key(file, line, path, folders, known)
        if key is None:  # a name may begin or end with a space
            path = path.strip()
            key = _key(file, line, path, folders, known)
        if key is None:
            missing.append((line, path))
            continue
        first = boxes.setdefault(key, {}).setdefault(box, line)
        if first != line:
            raise UserError(
                f"{file}:{line}: '{_shown(path)}' has the box {','.join(map(str, box))} "
                f"in line {first} already; let each stand once"
            )
    if missing:
        line, path = missing[0]
        said = f"{file}:{line}: '{_shown(path)}' is no picture in {', '.join(folders)}"
        said += f", nor are those of {len(missing) - 1} more lines" * (len(missing) > 1)
        said += "; paths are relative to that folder, or absolute"
        if not boxes:
            raise UserError(said)
        print(f"note: left out: {said}")
    if not boxes:
        raise UserError(
            f"{file} has no box; give a line with {','.join(COLUMNS)} to each"
        )
    return {key: list(lines) for key, lines in boxes.items()}


def _rows(file: pathlib.Path) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Cells of each line but empty ones, with the number that it begins with."""
    line = 1
    try:
        # Names may have bytes that are no UTF-8; what comes of them leads to the file.
        with open(
            file, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as f:
            reader = csv.reader(f, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            _check(file, header)
            line = reader.line_num + 1
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    cells += [""] * (len(header) - len(cells))
                    yield line, dict(zip(header, cells, strict=False))
                line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}:{line}: {error}; correct that line") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(
            f"{file} is no file; give a CSV with the columns {', '.join(COLUMNS)}"
        ) from error


def _check(file: pathlib.Path, header: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if len(header) == 1 and ";" in header[0]:
        raise UserError(
            f"{file}:1: the columns stand between semicolons; write the file with commas"
        )
    if missing:
        raise UserError(
            f"{file}:1: no column {', '.join(missing)}; the first line must name the "
            f"columns {','.join(COLUMNS)}, in any order"
        )
    twice = [name for name in COLUMNS if header.count(name) > 1]
    if twice:
        raise UserError(f"{file}:1: two columns {twice[0]}; let one stand")


def _box(file: pathlib.Path, line: int, row: Mapping[str, str]) -> Box:
    def pixels(name: str) -> int:
        try:
            value = float(row[name])
            if abs(value) <= LARGEST:  # not so of NaN
                return math.floor(value + 0.5)
        except ValueError:
            pass
        raise UserError(
            f"{file}:{line}: {name} '{_shown(row[name])}' is no number of pixels"
        )

    x, y, w, h = (pixels(name) for name in "xywh")
    if w < 1 or h < 1:
        raise UserError(
            f"{file}:{line}: a box {w} pixels wide and {h} high holds nothing; w and h "
            "must be 1 or more"
        )
    return x, y, w, h


def _key(file, line, path: str, folders: Sequence[str], known) -> Key | None:
    """The file that a path means; None where it is not among those known."""
    if "\0" in path:  # which no file's name holds
        return None
    inside = False
    for lies in (os.path.abspath, os.path.realpath):  # by name, or where links lead to
        for number, folder in enumerate(folders):
            above, name = os.path.split(os.path.normpath(os.path.join(folder, path)))
            place = os.path.relpath(os.path.join(lies(above), name), lies(folder))
            if place != ".." and not place.startswith("../"):
                inside = True
                key = number, os.fsencode(place)
                if key in known:
                    return key
    if not inside:
        raise UserError(
            f"{file}:{line}: '{_shown(path)}' lies outside of {', '.join(folders)}; give "
            "that folder, too, with --config.images"
        )
    return None


def _shown(text: str) -> str:
    return plain(shown(os.fsencode(text)))
