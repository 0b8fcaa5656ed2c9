"""Annotation files, entry by entry: JSON of any size in, checked values out.

A mistake is shown with its file, the entry's number, what was expected, and the entry.
"""

import codecs
import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from tqdm import tqdm

from data_prep import raw
from unipt_jax.errors import UserError

_CHUNK = 1 << 20  # characters read at a time
_LARGEST = 1 << 24  # characters of one entry: more is no entry


class NamedTwice(ValueError):
    """Two values of one name in one object, which JSON does not say how to read."""


def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object, from its names and values. Raises NamedTwice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = collections.Counter(name for name, _ in pairs)
        ((name, _),) = names.most_common(1)
        raise NamedTwice(f"'{raw.shortened(name)}' twice in one object")
    return values


class _Stream:
    """The text of a file, as much of it as is looked at."""

    def __init__(self, file: BinaryIO, name: str, progress: tqdm) -> None:
        self.name, self._file, self._progress = name, file, progress
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._parse = json.JSONDecoder(object_pairs_hook=once).raw_decode
        self.text, self.at, self.ended, self._line = "", 0, False, 1

    def more(self) -> None:
        """Reads on; what was passed is forgotten."""
        self._line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        piece = self._file.read(_CHUNK)
        self.ended = not piece
        self._progress.update(len(piece))
        try:
            self.text += self._decode(piece, final=self.ended)
        except UnicodeDecodeError as error:
            line = self._line + self.text.count("\n")
            line += error.object.count(b"\n", 0, error.start)
            raise UserError(
                f"{self.name} is not UTF-8: line {line}: {error.reason}; save it as "
                "UTF-8"
            ) from error

    def peek(self) -> str:
        """The next character that is no space, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()

    def value(self) -> Any:
        """The JSON value that comes next."""
        self.peek()
        while True:
            try:
                value, end = self._parse(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.at > _LARGEST:
                    raise self.broken(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.broken("too many lists or objects, nested") from error
            except NamedTwice as error:
                raise self.broken(str(error)) from error
            except ValueError as error:
                raise self.broken("a number without end") from error
            else:
                if end + 2 < len(self.text) or self.ended:  # else 1 may be 1.5 or 1e+5
                    self.at = end
                    return value
            self.more()

    def broken(self, why: str, at: int | None = None) -> UserError:
        """What to say of a file that is no JSON from here on, or from `at` on."""
        at = self.at if at is None else at
        line = self._line + self.text.count("\n", 0, at)
        shown = self.text[at : at + 60].split("\n")[0]
        where = f"near {shown!r}" if self.text[at:].strip() else "at its end"
        if where == "at its end" or "Unterminated" in why:
            where += " (is it cut off?)"
        return UserError(
            f"{self.name} is no JSON: line {line}, {where}: {why}; fetch it again, or "
            "correct it"
        )


def items(file: str | os.PathLike, name: str) -> Iterator[tuple[int | str, Any]]:
    """The entries of a JSON list with their numbers from 1, or of an object with their
    keys, however large the file is. name: what to call it.

    Raises UserError where the file is neither, or no JSON, or not there.
    """
    if not os.path.isfile(file):
        raise UserError(f"{name} is not there, or no file; give a JSON file")
    progress = tqdm(
        total=os.path.getsize(file),
        desc=f"reading {os.path.basename(file)}",
        unit="B",
        unit_scale=True,
        delay=2,
    )
    with open(file, "rb") as opened, progress:
        stream = _Stream(opened, name, progress)
        opening = stream.peek()
        if opening not in ("[", "{") or not opening:
            raise stream.broken("expected a list or an object of entries")
        stream.at += 1
        closing, number = {"[": "]", "{": "}"}[opening], 0
        while (found := stream.peek()) != closing:
            if number:
                if found != ",":
                    raise stream.broken("expected a comma or the end")
                stream.at += 1
            number += 1
            key: int | str = number
            if opening == "{":
                if not isinstance(key := stream.value(), str) or stream.peek() != ":":
                    raise stream.broken("expected a name and a colon")
                stream.at += 1
            yield key, stream.value()
        stream.at += 1
        if stream.peek():
            raise stream.broken("expected nothing after the end")


def shown(value: Any) -> str:
    """A value as an error shows it."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:  # it could just be read, from fewer frames
        return "lists or objects, nested too deep to be shown"
    text = text.encode("utf-8", "backslashreplace").decode()
    return raw.shortened(text)


def _is_text(value: Any) -> bool:
    """Whether a value is a text that can be written: JSON may hold half a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One entry of an annotation file, whose fields are asked for by name.

    where: the file and the entry's number, for errors.
    """

    where: str
    values: Mapping[str, Any]

    def wrong(self, name: str, expected: str) -> UserError:
        """What to say of a field that is not what was expected."""
        if name in self.values:
            value = self.values[name]
            found = f"'{name}' is {shown(value)}"
            texts = value if isinstance(value, list) else [value]
            if any(isinstance(text, str) and not _is_text(text) for text in texts):
                expected += ", without half a character"
        else:
            found = f"there is no '{name}'"
        return UserError(
            f"{self.where}: {found}, expected {expected}; correct the entry: "
            f"{shown(dict(self.values))}"
        )

    def path(self, *names: str) -> str:
        """A path below the folder of images, under one of these names."""
        name = next((n for n in names if n in self.values), names[0])
        value = self.values.get(name)
        if not _is_text(value) or not value.strip():
            expected = "the path of an image"
            if len(names) > 1:
                expected += f" (as {' or '.join(names)})"
            raise self.wrong(name, expected)
        return raw.inside(value.strip(), self.where)

    def captions(self, *names: str) -> tuple[str, ...]:
        """One sentence or a list of them, under one of these names; spaces at their
        ends are cut, empty ones stay."""
        name = next((n for n in names if n in self.values), names[0])
        value = self.values.get(name)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(map(_is_text, value)):
            raise self.wrong(name, "a sentence or a list of sentences")
        return tuple(" ".join(caption.split()) for caption in value)

    def number(self, name: str) -> int:
        """A whole number from 0, which may be written as text."""
        value = self.values.get(name)
        if isinstance(value, str) and value.strip().isdecimal() and len(value) < 100:
            value = int(value)
        number = isinstance(value, int) and not isinstance(value, bool)
        if not number or not 0 <= value < 2**63:
            raise self.wrong(name, "a whole number from 0")
        return value

    def one_of(self, name: str, *values: str) -> str:
        """A text that is one of these."""
        value = self.values.get(name)
        if value not in values:
            raise self.wrong(name, f"one of {', '.join(values)}")
        return value


def entries(file: str | os.PathLike, name: str) -> Iterator[Annotation]:
    """The entries of a JSON list of objects. Raises UserError for anything else."""
    for number, value in items(file, name):
        if isinstance(number, str):
            raise UserError(
                f"{name} is an object that begins with '{number[:60]}'; expected a list "
                "of entries, [{...}, {...}]"
            )
        if not isinstance(value, dict):
            raise UserError(
                f"{name} entry {number} is {shown(value)}; expected an object, such as "
                '{"file_path": ..., "captions": [...]}'
            )
        yield Annotation(f"{name} entry {number}", value)
