"""Looks for bad English in what templates and phrases give.

In: a lexicon. Out: the faults found, each with the template's file and line. Every template
is filled with every phrase that it admits, their wording and the synonyms drawn each time.

    python -m unipt_jax.captions.check [FILE]
"""

import collections
import dataclasses
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from unipt_jax.captions import reading
from unipt_jax.captions.compose import Draws, Filling
from unipt_jax.captions.lexicon import OPTIONAL, Lexicon, Phrase
from unipt_jax.captions.templates import SOUNDS_A, SOUNDS_AN, Template
from unipt_jax.errors import UserError

GOES = 200  # fillings of a template at least: few phrases may have many wordings
FEMALE, MALE = {"she", "her", "hers", "herself"}, {"he", "his", "him", "himself"}
RULES = tuple(
    (re.compile(pattern), fault)
    for pattern, fault in (
        (r"[{}\[\]]", "a blank or bracket is not filled"),
        (r"\s\s|^\s|\s$", "spaces too many"),
        (r"\s[,.;:!?]", "a space before a mark"),
        (r"[,;:.]\s*[,;:.]", "two marks in a row"),
        (r"[,;:.](?=[A-Za-z])", "no space after a mark"),
        (r"^[^A-Z]|[.!?]\s+[^A-Z]", "a sentence begins without a capital"),
        (r"[^.]$", "the last sentence has no full stop"),
        (r"(?i)\b([\w-]+)\s+\1\b", "a word twice in a row"),
        (rf"\b[Aa] (?!{SOUNDS_A})[aeiouAEIOU]", "'a' before a vowel"),
        (rf"\b[Aa] (?:{SOUNDS_AN})", "'a' before the sound of a vowel"),
        (rf"\b[Aa]n (?!{SOUNDS_AN})[^aeiouAEIOU]", "'an' before a consonant"),
        (rf"\b[Aa]n (?:{SOUNDS_A})", "'an' before the sound of 'you' or 'one'"),
        (
            # "her" may be "him" of a woman: she has with her a bag.
            r"(?i)\b(?:(?:a|an|the|his) (?:a|an|the|his|her)|her (?:his|her))\b",
            "two articles in a row",
        ),
        # Not "on": she has a hat on.
        (r"(?i)\b(?:with|in|of|and|a|an|the)[.,;]", "a blank is empty"),
    )
)
# A clause about a thing: its subject comes first, alone, and the verb must agree.
SUBJECT = r"(?:^|[.;]\s+|, (?:and|while|whose) )(?:(?:the|his|her|a|an) )?"
ONE, MANY = (
    ("is", "has", "looks", "covers", "goes"),
    ("are", "have", "look", "cover", "go"),
)
VERBS = dict.fromkeys(ONE, False) | dict.fromkeys(MANY, True)  # verb -> of many?


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong, in which sentence, and where the template stands."""

    where: str
    what: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.text}"


class Agreement:
    """Finds subjects whose verb is of the other number, by the nouns of the lexicon."""

    def __init__(self, words: Lexicon) -> None:
        many: dict[str, set[bool]] = {}
        for attribute in words.attributes.values():
            if attribute.kind not in ("clothes", "thing", "hair"):
                continue
            for phrase in attribute.phrases:
                for word in self._nouns(phrase):
                    for noun in (word.lower(), word.lower().split()[-1]):
                        many.setdefault(noun, set()).add(phrase.number == "many")
        # A noun that is both, such as "sheep", agrees with any verb.
        self.many = {
            noun: either.pop() for noun, either in many.items() if len(either) < 2
        }
        names = "|".join(re.escape(n) for n in sorted(self.many, key=len, reverse=True))
        # The subject is what stands before the verb with no other word class between.
        self.pattern = re.compile(
            rf"(?i){SUBJECT}(?P<before>(?:[\w-]+ ){{0,4}}?)(?P<noun>{names})"
            rf"(?: with an?(?: (?!and\b)[\w-]+)+?)? (?P<verb>{'|'.join(VERBS)})\b"
        )
        self.plain = set(re.findall(r"[\w-]+", " ".join(self._adjectives(words))))

    @staticmethod
    def _nouns(phrase: Phrase) -> Iterator[str]:
        slots = phrase.slots
        if phrase.colour:  # then perhaps a pattern, the noun, and perhaps "with .."
            slots = [s for s in slots[1:] if not s[0].startswith("with ")][-1:]
        for slot in slots:
            yield from slot

    @staticmethod
    def _adjectives(words: Lexicon) -> Iterator[str]:
        for name in ("upper", "lower"):
            for phrase in words.attributes[name].phrases:
                for slot in phrase.slots[:-1]:
                    yield from slot

    def faults(self, text: str) -> Iterator[str]:
        """What disagrees in a text."""
        for match in self.pattern.finditer(text):
            before = re.findall(r"[\w-]+", match["before"].lower())
            if any(word not in self.plain for word in before):
                continue  # another noun is the subject
            if self.many[match["noun"].lower()] != VERBS[match["verb"].lower()]:
                yield f"'{match['noun']} {match['verb']}'"


def fillings(
    words: Lexicon, template: Template
) -> Iterator[tuple[dict[str, Phrase], Draws]]:
    """Sets of phrases such that every phrase the template admits is in one of them.

    With each go the draws for its wording; he and she come by chance. None where no
    phrase of an attribute goes with the template.
    """
    choices: dict[str, list[Phrase]] = {}
    for name, attribute in words.attributes.items():
        if name in template.attributes:
            choices[name] = [
                phrase
                for phrase in attribute.phrases
                if phrase and template.attributes.isdisjoint(phrase.without)
            ]
        elif name not in OPTIONAL:
            choices[name] = list(attribute.phrases[:1])
    genders = words.attributes["gender"].phrases
    if not all(choices.values()):
        return
    for number in range(max(GOES, *map(len, choices.values()))):
        draws = Draws(0, template.source, number)
        chosen = {name: rows[number % len(rows)] for name, rows in choices.items()}
        chosen["gender"] = draws.pick(genders) if number else genders[0]
        yield chosen, draws


def fill(
    template: Template, words: Lexicon, chosen: Mapping[str, Phrase], draws: Draws
) -> str:
    """The template's sentences with those phrases."""
    filling = Filling(chosen, draws)
    filling.agreeing = template.agreeing
    return template.fill(filling.blank, lambda group: draws.pick(words.synonyms[group]))


class First:
    """Draws that always take what comes first."""

    def below(self, n: int) -> int:
        """n - 1: no pair where a noun comes as one now and then."""
        return n - 1

    def pick(self, items: Sequence):
        """The first of the items."""
        return items[0]


def faults(text: str, pronoun: str, agreement: Agreement) -> Iterator[str]:
    """What is wrong with the English of a text about a he or a she."""
    for pattern, fault in RULES:
        if match := pattern.search(text):
            yield f"{fault} ('{match[0].strip()}')"
    said = set(re.findall(r"[a-z]+", text.lower()))
    if other := said & (FEMALE if pronoun == "he" else MALE):
        yield f"a pronoun of a {pronoun} is wrong ('{min(other)}')"
    for pair in agreement.faults(text):
        yield f"noun and verb do not agree ({pair})"


def joins(template: Template) -> Iterator[str]:
    """Where a blank has no space beside it; a hyphen or "himself" may be."""
    for left, right in itertools.pairwise(template.pieces):
        if right.kind != "text" and (
            left.kind != "text" or re.search(r"[\w,;:.]$", left.name)
        ):
            yield f"no space before a blank ('{right.name}')"
        elif right.kind == "text" and re.match(r"(?!self\b)\w", right.name):
            yield f"no space after a blank ('{left.name}')"


def check(words: Lexicon, progress: bool = True) -> list[Fault]:
    """All faults, at most one of a kind for each template."""
    agreement, found = Agreement(words), []
    first: dict[str, Template] = {}
    everything = [*words.templates, *(e for few in words.extras.values() for e in few)]
    for template in tqdm(everything, desc="checking templates", disable=not progress):
        seen = set()
        for what in joins(template):
            found.append(Fault(template.source.where, what, template.source))
        if not any(True for _ in fillings(words, template)):
            never = "no phrase goes with it (see `without`), so it is never drawn"
            found.append(Fault(template.source.where, never, template.source))
        for number, (chosen, draws) in enumerate(fillings(words, template)):
            if number == 0:
                text = fill(template, words, chosen, First())
                same = first.setdefault(text.lower(), template)
                if same is not template:
                    twin = f"the same as {same.source.where} after filling"
                    found.append(Fault(template.source.where, twin, text))
            text = fill(template, words, chosen, draws)
            for what in faults(text, chosen["gender"].pronoun, agreement):
                kind = what.split("(")[0]
                if kind not in seen:
                    seen.add(kind)
                    found.append(Fault(template.source.where, what, text))
    used = collections.Counter(
        p.name for t in everything for p in t.pieces if p.kind == "synonym"
    )
    for group, members in words.synonyms.items():
        if not used[group]:
            where = getattr(group, "where", "synonyms")
            said = ", ".join(members)
            found.append(Fault(where, f"no template uses [{group}]", said))
    return found


def main(argv: Sequence[str]) -> int:
    """Checks our lexicon, or ours changed by a user's own file."""
    try:
        found = check(reading.read(argv[1] if len(argv) > 1 else ""))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for fault in found:
        print(fault)
    print(f"{len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
