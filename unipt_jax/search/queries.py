"""What is asked: sentences, files of sentences and pictures in, checked queries out."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import ClassVar

from unipt_jax.data import images
from unipt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A description of a person."""

    kind: ClassVar[str] = "sentence"
    text: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of a person.

    text: its file's name. encoded: what that holds. height, width: upright, in pixels.
    """

    kind: ClassVar[str] = "picture"
    text: str
    encoded: bytes
    height: int
    width: int


Query = Sentence | Picture


def read(given: Sequence[str]) -> list[Query]:
    """The queries that a command line names, in their order.

    Each is a sentence; or a picture file; or a text file (.txt) with a sentence in each
    line, where empty lines do not count. Raises UserError for an empty one, and for a
    file that is named but is not there or cannot be read.
    """
    return [query for text in given for query in _read(text)]


def _read(text: str) -> list[Query]:
    if not text.strip():
        raise UserError(
            "a query is empty, as of a shell variable that is not set; describe a "
            "person, as in --config.query='a woman in a red coat'"
        )
    path = pathlib.Path(os.path.expanduser(text))
    suffix = path.suffix.lower()
    known = suffix in images.SUFFIXES or suffix == ".txt"
    file = _is_file(path)
    if file and suffix == ".txt":
        return _lines(path)
    if file and known:
        return [_picture(path)]
    there = os.sep in text and _is_there(path)  # a word may be a folder's name, too
    if known or there:
        raise UserError(
            f"the query '{text}' names "
            + ("what is no such file" if there else "a file, but there is none")
            + "; give a picture, a .txt file with a sentence in each line, or a sentence"
        )
    return [_sentence(text.strip(), "a query")]


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a sentence may be longer than a name can be
        return False


def _is_there(path: pathlib.Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _sentence(text: str, where: str) -> Sentence:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} is no UTF-8 text ({error}); write it anew") from error
    return Sentence(text)


def _lines(file: pathlib.Path) -> list[Query]:
    try:
        # Not splitlines(), which parts sentences at characters such as U+2028, too.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is no UTF-8 text ({error}); save it as UTF-8, a sentence a line"
        ) from error
    found = [Sentence(line.strip()) for line in lines if line.strip()]
    if not found:
        raise UserError(f"{file} holds no sentence; write one in each line")
    return found


def _picture(file: pathlib.Path) -> Picture:
    try:
        size = file.stat().st_size
        if size > images.LARGEST:
            raise OSError(f"a file of {size >> 20} MB is no picture")
        encoded = file.read_bytes()
        height, width = images.measure(encoded)
    except OSError as error:
        said = error.strerror or str(error)
        raise UserError(
            f"the picture {file} cannot be read ({said}); ask with another one"
        ) from error
    return Picture(str(file), encoded, height, width)
