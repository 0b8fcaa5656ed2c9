"""YAML whose every value knows its file and line, so that a mistake can be shown there.

In: a file. Out: `Table`, `Items` and `Text`, which are a dict, a list and a str.
"""

import os
import pathlib
from typing import Any

import yaml

from unipt_jax.errors import UserError


class Text(str):
    """A word or a sentence. where: "file:line"."""

    where: str = ""


class Items(list):
    """A list. where: "file:line"."""

    where: str = ""


class Table(dict):
    """A mapping of `Text` to anything. where: "file:line"."""

    where: str = ""


def mistake(at: Any, what: str, remedy: str) -> UserError:
    """The error to raise for a value that a file must not have.

    at: the value, or a text that has a `where`.
    """
    where = getattr(at, "where", "") or "the phrases"
    return UserError(f"{where}: {what}; {remedy}")


def read(file: str | os.PathLike) -> Table:
    """A file as a table. Raises UserError where it is none, with the line."""
    path = pathlib.Path(os.path.expanduser(file))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); give a YAML file such as "
            "unipt_jax/captions/phrases.yaml"
        ) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = _marked(node, str(path)) if node is not None else Table()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = mark.line if mark else text.count("\n", 0, getattr(error, "position", 0))
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path}:{at + 1}: this is not YAML ({said}); put quotation marks round a text "
            "that has {, [, : or # in it"
        ) from error
    except RecursionError as error:
        raise UserError(
            f"{path} is nested without end; let no alias (*name) stand inside of what "
            "it names"
        ) from error
    if not isinstance(value, Table):
        raise mistake(value, "a list or a text", "begin with `attributes:` or the like")
    return value


def _marked(node: yaml.Node, file: str) -> Any:
    where = f"{file}:{node.start_mark.line + 1}"
    value: Any
    if isinstance(node, yaml.MappingNode):
        value = Table()
        for key_node, value_node in node.value:
            key = _marked(key_node, file)
            if not isinstance(key, Text):
                raise mistake(key, "a list for a name", "write a text before the colon")
            text(key)
            if key in value:
                raise mistake(
                    key, f"'{key}' a second time", "join the two, or drop one"
                )
            value[key] = _marked(value_node, file)
    elif isinstance(node, yaml.SequenceNode):
        value = Items(_marked(item, file) for item in node.value)
    else:
        value = Text(node.value)
    value.where = where
    return value


def table(value: Any, allowed: tuple[str, ...] = ()) -> Table:
    """The value, if it is a mapping with no names but the allowed ones."""
    if isinstance(value, Text) and not value:
        empty = Table()
        empty.where = value.where
        return empty
    if not isinstance(value, Table):
        raise mistake(value, "no mapping", "write `name: value` lines, indented")
    for key in value:
        if allowed and key not in allowed:
            raise mistake(key, f"unknown '{key}'", f"known are {', '.join(allowed)}")
    return value


def texts(value: Any) -> tuple[Text, ...]:
    """The value, if it is a list of texts that are not empty."""
    if not isinstance(value, Items) or not value:
        raise mistake(value, "no list", "write [one, another], or a line `- one` each")
    for item in value:
        text(item)
    return tuple(value)


def text(value: Any) -> Text:
    """The value, if it is a text that is not empty and has single spaces only."""
    if not isinstance(value, Text) or not value.strip():
        raise mistake(value, "no text", "write one, in quotation marks")
    if value != " ".join(value.split()):
        raise mistake(
            value,
            f"{str(value)!r} has spaces or line ends too many",
            "leave single spaces between words",
        )
    return value


def one_of(value: Any, allowed: tuple[str, ...]) -> Text:
    """The value, if it is one of some texts."""
    if text(value) not in allowed:
        raise mistake(
            value, f"'{value}' is not known", f"write one of {', '.join(allowed)}"
        )
    return value
