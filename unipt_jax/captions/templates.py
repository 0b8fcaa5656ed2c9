"""Templates: a sentence pattern with blanks in, its pieces out, and pieces filled.

A blank is `{name}` or `{name.form}`; `{a name}` and `{the name}` put an article before
it, and a first letter in capitals gives one (`{He}`, `{A person}`). `[word]` is drawn
from the group of synonyms of that name; `[a photo]` has its article, `[Photo]` a capital.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from unipt_jax.captions.marked import Text, mistake

_PIECE = re.compile(r"\{([^{}\[\]]*)\}|\[([^{}\[\]]*)\]")
_BLANK = re.compile(r"(?:(a|an|the|A|An|The) )?(\w+)(?:\.(\w+))?$")
PRONOUN_BLANKS = {"he": 0, "his": 1, "him": 2}
# What follows the dot in the blanks of each kind of attribute; "" for nothing.
FORMS = {
    "person": ("",),
    "age": ("", "is"),
    "gender": ("",),
    "clothes": ("", "bare", "colour", "noun", "are", "them"),
    "action": ("", "does"),
    "hair": ("", "bare", "is"),
    "thing": ("", "bare", "are", "them"),
}
TAKES_ARTICLE = {"person": ("",), "age": ("",), "gender": ("",)}
TAKES_ARTICLE |= {"clothes": ("bare", "noun"), "thing": ("bare",), "hair": ("bare",)}
AGREE = ("are", "them")  # forms that depend on the number of the noun
# English words that no rule of spelling tells apart, and letters read as such: an SUV.
SOUNDS_A = r"(?i:uni(?![dmn])|us[eu]|uti|eu|u\b|once|ones?\b|onesie)|U(?![a-z])"
SOUNDS_AN = r"(?i:hour|honest|heir)|[FHLMNRSX](?![a-z])"
_SOUNDS_A, _SOUNDS_AN = re.compile(SOUNDS_A), re.compile(SOUNDS_AN)


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it, by the sound that it begins with."""
    vowel = phrase[:1].lower() in "aeiou" and not _SOUNDS_A.match(phrase)
    return f"{'an' if vowel or _SOUNDS_AN.match(phrase) else 'a'} {phrase}"


def capital(words: str) -> str:
    """The words with a capital first letter."""
    return words[:1].upper() + words[1:]


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A part of a template. kind: "text", "blank" or "synonym".

    name: the text itself, the blank's attribute (or person, he, his, him), or the
    group. form: of a blank. article: "", "a" or "the". capital: of its first letter.
    """

    kind: str
    name: str
    form: str = ""
    article: str = ""
    capital: bool = False

    def finish(self, words: str) -> str:
        """The words with the piece's article and capital."""
        if self.article == "a":
            words = article(words)
        elif self.article:
            words = f"the {words}"
        return capital(words) if self.capital else words


@dataclasses.dataclass(frozen=True, eq=False)
class Template:
    """A pattern of one or more sentences. attributes: those that it tells of.

    agreeing: the attributes on whose number a verb or pronoun in it depends.
    """

    source: Text
    pieces: tuple[Piece, ...]
    attributes: frozenset
    agreeing: frozenset

    def fill(self, blank: Callable[[Piece], str], synonym: Callable[[str], str]) -> str:
        """The sentences. blank and synonym give the words for a piece and a group."""
        out = []
        for piece in self.pieces:
            if piece.kind == "text":
                out.append(piece.name)
            elif piece.kind == "blank":
                out.append(piece.finish(blank(piece)))
            else:
                out.append(piece.finish(synonym(piece.name)))
        return "".join(out)


def parse(source: Text, attributes: Mapping, synonyms: Mapping) -> Template:
    """A template from its text. Raises UserError for what cannot be filled."""
    kinds = {name: attribute.kind for name, attribute in attributes.items()}
    pieces, used, agreeing, end = [], set(), set(), 0
    for match in _PIECE.finditer(source):
        if match.start() > end:
            pieces.append(Piece("text", source[end : match.start()]))
        end = match.end()
        body = match[1] if match[1] is not None else match[2]
        piece = (_blank if match[1] is not None else _synonym)(
            source, body, kinds if match[1] is not None else synonyms
        )
        pieces.append(piece)
        if piece.kind == "blank":
            told = {"person": {"age", "gender"}}.get(piece.name, {piece.name})
            told = {"gender"} if piece.name in PRONOUN_BLANKS else told
            used |= told
            agreeing |= told if piece.form in AGREE else set()
    if end < len(source):
        pieces.append(Piece("text", source[end:]))
    _check_ends(source, pieces)
    return Template(source, tuple(pieces), frozenset(used), frozenset(agreeing))


def _check_ends(source: Text, pieces: list[Piece]) -> None:
    for piece in pieces:
        if piece.kind == "text" and re.search(r"[{}\[\]]", piece.name):
            raise mistake(
                source,
                f"'{source}' has a bracket without its partner",
                "write {blank} or [synonym], none inside the other",
            )
    first = pieces[0]
    small = first.name[:1].islower() if first.kind == "text" else not first.capital
    if small or not source.endswith("."):
        raise mistake(
            source,
            f"'{source}' is no whole sentence",
            "begin with a capital letter ({He}, {A person}, [The photo]) and end with a "
            "full stop",
        )


def _parts(source: Text, body: str) -> tuple[str, str, str, bool]:
    """The article, name and form in a blank, and whether it has a capital."""
    match = _BLANK.match(body)
    if match is None:
        raise mistake(
            source,
            f"'{body}' in '{source}' is no blank",
            "write {name}, {name.form}, {a name} or {the name}",
        )
    before, name, form = match[1] or "", match[2], match[3] or ""
    first = before or name
    before = before.lower()
    return ("a" if before == "an" else before), name, form, first[0].isupper()


def _blank(source: Text, body: str, kinds: Mapping[str, str]) -> Piece:
    before, name, form, upper = _parts(source, body)
    name = name[:1].lower() + name[1:]
    if name in PRONOUN_BLANKS:
        kind, forms = "pronoun", ("",)
    else:
        kind = "person" if name == "person" else kinds.get(name, "")
        if not kind:
            known = ("person", *PRONOUN_BLANKS, *kinds)
            raise mistake(
                source,
                f"{{{body}}} in '{source}' is no known blank",
                f"known are {', '.join(known)}",
            )
        forms = FORMS[kind]
    if form not in forms:
        said = ", ".join(f"{{{name}.{f}}}" if f else f"{{{name}}}" for f in forms)
        raise mistake(
            source, f"{{{body}}} in '{source}' has no such form", f"there are {said}"
        )
    if before and form not in TAKES_ARTICLE.get(kind, ()):
        raise mistake(
            source,
            f"{{{body}}} in '{source}' takes no article",
            f"write {{{name}}}, which has its own, or {{the {name}.bare}}"
            if "bare" in forms
            else f"write {{{body.split()[-1]}}}",
        )
    return Piece("blank", name, form, before, upper)


def _synonym(source: Text, body: str, synonyms: Mapping) -> Piece:
    before, _, group = body.rpartition(" ")
    before, group = (
        (before, group) if before in ("a", "A", "the", "The") else ("", body)
    )
    upper = (before or group)[:1].isupper()
    if group not in synonyms:
        group = group[:1].lower() + group[1:]
    if group not in synonyms:
        raise mistake(
            source,
            f"[{body}] in '{source}' is no group of synonyms",
            f"add it under `synonyms:`; there are {', '.join(sorted(synonyms))}",
        )
    return Piece("synonym", group, "", before.lower(), upper)
