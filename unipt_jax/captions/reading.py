"""Reads what captions are made of: data files in, a `Lexicon` out.

The files are `phrases.yaml`, `templates.yaml` and `synonyms.yaml` beside this one; a
user's own file, with any of their sections, extends them or replaces parts of them.
"""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterator

from unipt_jax.captions import marked
from unipt_jax.captions.lexicon import (
    OPTIONAL,
    PRONOUNS,
    REQUIRED,
    Attribute,
    Lexicon,
    Phrase,
)
from unipt_jax.captions.marked import Table, Text, mistake
from unipt_jax.captions.templates import article, parse
from unipt_jax.errors import UserError

HERE = pathlib.Path(__file__).parent
FILES = ("phrases.yaml", "templates.yaml", "synonyms.yaml")
SECTIONS = ("prompts", "attributes", "templates", "extras", "synonyms", "replace")
KINDS = ("age", "gender", "action", "hair")  # of the attributes of that name
THINGS = ("clothes", "thing")  # of the others
CLOTHES = ("colours", "patterns", "garments")
NUMBERS = ("one", "many", "mass")
_BRACKET = re.compile(r"[{}\[\]]")
_PHRASE = ("words", "asked", "is", "nouns", "pronoun", "number", "verbs", "without")


def read(own: str | os.PathLike = "", prompts: str = "first") -> Lexicon:
    """The lexicon of the house, changed as a user's own file says.

    own: that file, "" for none. Its sections extend ours: a phrase of the same name
    takes our phrase's place, templates are added; what `replace: [...]` names
    (attributes, or templates, extras, synonyms, prompts) begins empty instead.
    prompts: "first" or "all" of those that each attribute lists.
    Raises UserError with file, line and remedy for a mistake in it.
    """
    if prompts not in ("first", "all"):
        raise UserError(f"prompts '{prompts}' is not one of first, all")
    parts = [marked.read(HERE / name) for name in FILES]
    if own:
        parts.append(marked.read(own))
    whole = _merge(parts)
    common = marked.texts(whole["prompts"])
    entries = whole["attributes"]
    for name in (*REQUIRED, *OPTIONAL):
        if name not in entries:
            raise mistake(entries, f"no attribute '{name}'", "write its phrases")
    attributes = {
        name: _attribute(name, entries[name], common, prompts)
        for name in (*REQUIRED, *OPTIONAL)
    }
    synonyms = {group: _plain(words) for group, words in whole["synonyms"].items()}
    extras = {
        name: tuple(parse(t, attributes, synonyms) for t in marked.texts(sentences))
        for name, sentences in whole["extras"].items()
    }
    for name in OPTIONAL:
        for extra in extras.get(name, ()):
            if extra.attributes & set(OPTIONAL) != {name}:
                raise mistake(
                    extra.source,
                    f"'{extra.source}' is no sentence about '{name}' alone",
                    f"let it have {{{name}}} and no other optional attribute",
                )
        if not extras.get(name):
            raise mistake(
                whole["extras"], f"no sentence for '{name}'", "write one or more"
            )
    templates = tuple(
        parse(t, attributes, synonyms) for t in marked.texts(whole["templates"])
    )
    files = [HERE / name for name in FILES]
    files += [pathlib.Path(os.path.expanduser(own))] if own else []
    digest = hashlib.sha256(b"\0".join(file.read_bytes() for file in files))
    words = Lexicon(attributes, templates, extras, synonyms, digest.hexdigest())
    _check_covers(words, whole)
    return words


def _check_covers(words: Lexicon, whole: Table) -> None:
    """Whether there is a template, and an extra for each thing, for every person."""
    unions = {frozenset()}
    for attribute in words.attributes.values():
        alone = {frozenset(phrase.without) for phrase in attribute.phrases}
        unions = {union | one for union in unions for one in alone}
    for union in sorted(unions, key=lambda names: (len(names), sorted(names))):
        beside = " and ".join(f"{{{name}}}" for name in sorted(union))
        beside = f", without {beside}" if union else ""
        if not words.admitted(frozenset(), union):
            raise mistake(
                whole["templates"],
                f"no template does without the optional attributes{beside}",
                f"write one that has only required ones{beside}, for a person who "
                "carries nothing",
            )
        for name in OPTIONAL:
            if not words.adds(name, union):
                raise mistake(
                    whole["extras"][name],
                    f"no sentence for '{name}'{beside}",
                    "write one or more",
                )


def _merge(parts: list[Table]) -> Table:
    """The sections of all files, the later ones laid over the earlier ones."""
    whole = Table(attributes=Table(), extras=Table(), synonyms=Table())
    whole |= {"templates": marked.Items(), "prompts": marked.Items()}
    for part in parts:
        marked.table(part, SECTIONS)
        for name in marked.texts(part["replace"]) if "replace" in part else ():
            marked.one_of(name, (*SECTIONS[:-1], *REQUIRED, *OPTIONAL))
            within = whole if name in whole else whole["attributes"]
            within[name] = type(within[name])() if name in within else Table()
            within[name].where = name.where
        for section, value in part.items():
            if section == "templates":
                marked.texts(value)
                whole[section].extend(value)
                whole[section].where = value.where
            elif section == "prompts":
                whole[section] = value
            elif section != "replace":
                names = {"attributes": (*REQUIRED, *OPTIONAL), "extras": OPTIONAL}
                value = marked.table(value, names.get(section, ()))
                _overlay(whole[section], value, section == "extras")
    return whole


def _overlay(under: Table, over: Table, lists: bool = False, depth: int = 2) -> None:
    """Lays one mapping over another, name by name, down to phrases: these are whole."""
    under.where = getattr(over, "where", "")
    for key, value in over.items():
        there = under.get(key)
        if depth and isinstance(there, Table) and isinstance(value, Table):
            fresh = Table(there)
            _overlay(fresh, value, depth=depth - 1)
            under[key] = fresh
        elif lists and isinstance(there, marked.Items):
            marked.texts(value)
            joined = marked.Items([*there, *value])
            joined.where = value.where
            under[key] = joined
        else:
            under.pop(key, None)  # so that the key's own line is the new one
            under[key] = value


def _attribute(
    name: str, entry: Table, common: tuple[Text, ...], prompts: str
) -> Attribute:
    if "kind" not in marked.table(entry):
        raise mistake(entry, f"'{name}' has no kind", "write `kind:` in it")
    # Sentences need an age, a gender, an action and hair; the others are things.
    kind = marked.one_of(entry["kind"], (name,) if name in KINDS else THINGS)
    known = ("kind", "says", "prompts", *(("absent",) if name in OPTIONAL else ()))
    known += CLOTHES if kind == "clothes" else ("phrases",)
    marked.table(entry, known)
    asked = marked.texts(entry["prompts"]) if "prompts" in entry else common
    asked = asked[:1] if prompts == "first" else asked
    says = marked.text(entry.get("says", Text(f"{{{name}}}")))
    if kind == "clothes":
        drafts = list(_clothes(name, entry))
    else:
        rows = marked.table(entry.get("phrases", Text("")))
        drafts = [_phrase(name, kind, value, row) for value, row in rows.items()]
    if not drafts:
        raise mistake(entry, f"'{name}' has no phrases", "write one or more")
    phrases = [
        dataclasses.replace(d, prompts=_prompts(asked, says, name, d.asked or d.text))
        for d in drafts
    ]
    if name in OPTIONAL:
        if "absent" not in entry:
            raise mistake(
                entry,
                f"'{name}' does not say how a person without it is told",
                "write `absent:` with one or more, such as [without a bag]",
            )
        for fragment in _plain(entry["absent"]):
            texts = tuple(_fill_prompt(p, fragment) for p in asked)
            phrases.append(Phrase(name, "", "", {name: ""}, texts))
    return Attribute(name, str(kind), tuple(phrases))


def _prompts(asked, says: Text, name: str, text: str) -> tuple[str, ...]:
    if f"{{{name}}}" not in says:
        raise mistake(says, f"'{says}' has no {{{name}}}", "write it where it belongs")
    return tuple(_fill_prompt(p, says.replace(f"{{{name}}}", text)) for p in asked)


def _fill_prompt(prompt: Text, fragment: str) -> str:
    filled = prompt.replace("{says}", fragment).replace("{a says}", article(fragment))
    if filled == prompt:
        raise mistake(
            prompt,
            f"the prompt '{prompt}' has no {{says}}",
            "write it where it belongs",
        )
    if _BRACKET.search(filled):
        raise mistake(
            prompt,
            f"the prompt '{filled}' still has a blank",
            "write no other than {says} or {a says} in `prompts`, and none in `says` "
            "but the attribute's own",
        )
    return filled


def _words(row: Table, field: str = "words", blank: str = "") -> tuple[str, ...]:
    if field not in row:
        raise mistake(row, f"no {field}", f"write `{field}: [...]`")
    return _plain(row[field], blank)


def _plain(value, blank: str = "") -> tuple[str, ...]:
    """Texts of a list, with no blank in them but the one."""
    for word in marked.texts(value):
        if _BRACKET.search(word.replace(blank, "") if blank else word):
            raise mistake(
                word,
                f"'{word}' has a bracket",
                f"write words, with no blank{f' but {blank}' if blank else ''}",
            )
    return tuple(map(str, value))


def _phrase(name: str, kind: str, value: Text, row: Table) -> Phrase:
    """A phrase of an attribute that is not clothes."""
    row = marked.table(row, _PHRASE)
    allowed = {
        "age": ("words", "is", "nouns"),
        "gender": ("words", "pronoun"),
        "action": ("verbs",),
        "hair": ("words", "is", "number"),
        "thing": ("words", "number"),
    }[kind]
    for field in row:
        if field not in (*allowed, "asked", "without"):
            raise mistake(
                field,
                f"'{field}' is not for a phrase of kind {kind}",
                f"write {', '.join(allowed)}",
            )
    more: dict = {"without": _without(row)}
    if kind == "action":
        verbs = marked.table(row.get("verbs", Text("")))
        if not verbs:
            raise mistake(row, f"'{value}' has no verbs", "write walking: walks")
        words = _plain(marked.Items(verbs))
        more["finite"] = _plain(marked.Items(verbs.values()))
    else:
        words = _words(row)
    if kind in ("age", "hair"):
        more["predicate"] = _words(row, "is", "{his}")
    if kind in ("hair", "thing"):
        more["number"] = _number(row)
    if kind == "gender":
        if "pronoun" not in row:
            raise mistake(
                row, f"'{value}' has no pronoun", "write `pronoun: he` or she"
            )
        more["pronoun"] = str(marked.one_of(row["pronoun"], tuple(PRONOUNS)))
    if kind == "age" and "nouns" in row:
        nouns = marked.table(row["nouns"], tuple(PRONOUNS))
        more["nouns"] = {str(k): _plain(v) for k, v in nouns.items()}
    if "asked" in row:
        (more["asked"],) = _plain(marked.Items([row["asked"]]))
    text = words[0]
    if more.get("number") == "one":
        text = article(text)
    facts = {name: str(value)}
    return Phrase(name, str(value), text, facts, (), (words,), **more)


def _number(row: Table) -> str:
    return str(marked.one_of(row.get("number", Text("one")), NUMBERS))


def _without(row: Table) -> tuple[str, ...]:
    if "without" not in row:
        return ()
    names = marked.texts(row["without"])
    return tuple(str(marked.one_of(n, (*REQUIRED, *OPTIONAL))) for n in names)


def _pattern(ways: Table) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """The slots before and after a noun."""
    sides = ("before", "after")
    ways = marked.table(ways, sides)
    return tuple((_words(ways, side),) if side in ways else () for side in sides)


def _clothes(name: str, entry: Table) -> Iterator[Phrase]:
    """Colour x pattern x garment."""
    for field in ("colours", "patterns", "garments"):
        if field not in entry:
            raise mistake(entry, f"'{name}' has no {field}", f"write `{field}:` in it")
    colours = {c: _plain(v) for c, v in marked.table(entry["colours"]).items()}
    patterns = {p: _pattern(v) for p, v in marked.table(entry["patterns"]).items()}
    for garment, row in marked.table(entry["garments"]).items():
        marked.table(row, ("words", "number", "colours", "patterns", "without"))
        allowed = []
        for field, known in (("colours", colours), ("patterns", patterns)):
            names = marked.texts(row[field]) if field in row else tuple(known)
            allowed.append([marked.one_of(n, tuple(known)) for n in names])
        for pattern, colour in itertools.product(allowed[1], allowed[0]):
            before, after = patterns[pattern]
            slots = (colours[colour], *before, _words(row), *after)
            text = " ".join(slot[0] for slot in slots)
            value = " ".join((colour, *(pattern,) * (pattern != "plain"), garment))
            yield Phrase(
                attribute=name,
                value=value,
                text=article(text) if _number(row) == "one" else text,
                facts={
                    f"{name}_colour": str(colour),
                    f"{name}_pattern": str(pattern),
                    f"{name}_type": str(garment),
                },
                prompts=(),
                slots=slots,
                number=_number(row),
                without=_without(row),
                colour=True,
            )
