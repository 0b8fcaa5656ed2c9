"""Folders of pictures in, the files to index out; and reading one, wherever links lead."""

import os
import stat
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from unipt_jax.data import folders as trees
from unipt_jax.data.images import LARGEST, SUFFIXES
from unipt_jax.errors import UserError, of_the_file

# What the shape of a picture is judged by: see `looks_like_a_photograph`.
SLIM, SLIM_IF_LARGE, LARGE = 1.6, 2.0, 2_000_000
OUTSIDE = "a link that leads out of the folder"
NO_FILE = "no file, but a folder or a device"
_Size = TypeVar("_Size", int, np.ndarray)


class File(NamedTuple):
    """A file that may be a picture.

    folder: number of the folder that it was found in. path: below that, to the byte.
    bytes, mtime_ns: its size and when it was changed.
    """

    folder: int
    path: bytes
    bytes: int
    mtime_ns: int


class Found(NamedTuple):
    """What there is. files: in the order of folders and paths. skipped: what cannot be
    read, as (folder, path) -> the reason."""

    files: list[File]
    skipped: dict[tuple[int, bytes], str]


def looks_like_a_photograph(height: _Size, width: _Size) -> bool | np.ndarray:
    """Whether a picture is not shaped like a crop of one person.

    A rule of shape, no detector: it sees no person, takes a crop of someone who sits or
    rides for a photograph, and a slim photograph of a crowd for a crop. A crop of a
    standing person is 2 to 3 times as high as wide; a picture is doubted below 1.6
    times, and of more than 2 million pixels, which crops seldom have, below 2 times.
    Of arrays, element by element.
    """
    large = height * width > LARGE
    return (height < SLIM * width) | (large & (height < SLIM_IF_LARGE * width))


def shown(path: bytes) -> str:
    """A path as people read it: bytes that are no UTF-8 stand as \\xe9."""
    return path.decode("utf-8", "backslashreplace")


def plain(text: str) -> str:
    """A text that may be shown: what cannot be, such as a line's end, is spelt out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def folders(names: Sequence[str]) -> tuple[str, ...]:
    """Absolute paths of folders of pictures. Raises UserError for what is no folder, and
    for one that lies in another: its pictures would be found twice."""
    reals: dict[str, str] = {}
    for name in names:
        if not name:  # which would mean the folder that the command is given in
            raise UserError(
                "an empty name is no folder of pictures; is a variable of the shell not "
                "set? Give a folder, such as ."
            )
        if "://" in name:
            raise UserError(f"{name} is no local folder; copy its pictures to one")
        path = os.path.abspath(os.path.expanduser(name))
        if not os.path.isdir(path):
            said = "is a file" if os.path.exists(path) else "is not there"
            raise UserError(f"{plain(path)} {said}; give a folder of pictures")
        real = os.path.realpath(path)
        for other, known in reals.items():
            if _inside(real, known) or _inside(known, real):
                raise UserError(
                    f"of {other} and {path} one lies in the other, and its pictures "
                    "would be found twice; give the outer one alone"
                )
        reals[path] = real
    return tuple(reals)


def scan(folders: Sequence[str]) -> Found:
    """All pictures below folders, by name: none is opened.

    Links to folders are not followed, for what is below is found at its own place, or
    lies elsewhere. Links to files are, where they stay inside. Raises UserError where
    there is no picture, or where a folder or a file cannot be looked at for a reason
    other than its own: for an outage, what is there would drop out of the index.
    """
    found = Found([], {})
    for number, folder in enumerate(folders):
        _scan(number, folder, found)
    if not found.files:
        more = f"; {len(found.skipped)} cannot be read" if found.skipped else ""
        raise UserError(
            f"no picture in {', '.join(folders)} ({', '.join(SUFFIXES)}), at any depth"
            f"{more}; give a folder that holds some (an index that is there stays)"
        )
    found.files.sort()
    return found


def _scan(number: int, folder: str, found: Found) -> None:
    real = os.path.realpath(folder)

    def skip(path: str, reason: str) -> None:
        found.skipped[number, os.fsencode(os.path.relpath(path, folder))] = reason

    def enter(entry: os.DirEntry) -> bool:
        if not entry.is_symlink():
            return True
        if not _inside(os.path.realpath(entry.path), real):
            skip(entry.path, OUTSIDE)
        return False

    def judge(path: str, error: OSError, cannot: str) -> None:
        if not of_the_file(error):
            raise UserError(
                f"{plain(path)} {cannot} ({error.strerror}); run the same command again "
                "when it can"
            ) from error

    def unlisted(error: OSError) -> None:
        path = os.fspath(error.filename)
        judge(path, error, "cannot be listed")
        skip(path, f"cannot be listed: {error.strerror}")

    for path, entry in trees.pictures(folder, enter=enter, unlisted=unlisted):
        try:
            if entry.is_symlink() and not _inside(os.path.realpath(entry.path), real):
                skip(entry.path, OUTSIDE)
                continue
            known = entry.stat()
        except OSError as error:
            judge(entry.path, error, "cannot be looked at")
            skip(entry.path, error.strerror)
            continue
        if not stat.S_ISREG(known.st_mode):
            skip(entry.path, NO_FILE)
            continue
        found.files.append(
            File(number, os.fsencode(path), known.st_size, known.st_mtime_ns)
        )


def _inside(real: str, folder: str) -> bool:
    """Whether a path, without links, is a folder's or lies below it."""
    return real == folder or real.startswith(folder.rstrip("/") + "/")


def read(folder: str, path: bytes) -> tuple[bytes, os.stat_result]:
    """A file's content, and what is known of it.

    Raises OSError where it is gone, no file, too large for a picture, or where it lies
    outside of the folder by now, through links or "..": what is read may be served.
    """
    real = os.path.realpath(os.path.join(folder, os.fsdecode(path)))
    if not _inside(real, os.path.realpath(folder)):
        raise OSError(OUTSIDE)
    # Not waiting for a pipe, nor following what has become a link since.
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        known = os.fstat(descriptor)
        if not stat.S_ISREG(known.st_mode):
            raise OSError(NO_FILE)
        if known.st_size > LARGEST:
            raise OSError(f"a file of {known.st_size >> 20} MB is no picture")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(LARGEST), known
    finally:
        os.close(descriptor)
