"""What captions are made of: attributes, their phrases, templates and synonyms.

`reading.read` makes a `Lexicon` of data files; this is what it holds.
"""

import dataclasses
from collections.abc import Mapping

from unipt_jax.captions.templates import Template

PRONOUNS = {"he": ("he", "his", "him"), "she": ("she", "her", "her")}
REQUIRED = ("age", "gender", "upper", "lower", "action", "hair")
OPTIONAL = (
    "bag",
    "glasses",
    "smoke",
    "hat",
    "cellphone",
    "umbrella",
    "gloves",
    "vehicle",
)
# Of 1.3 million images, as the paper counts them: the share that has each thing.
PAPER = {
    "bag": 221_750 / 1.3e6,
    "glasses": 99_492 / 1.3e6,
    "smoke": 693 / 1.3e6,
    "hat": 97_063 / 1.3e6,
    "cellphone": 118_686 / 1.3e6,
    "umbrella": 1_578 / 1.3e6,
    "gloves": 16_259 / 1.3e6,
    "vehicle": 24_736 / 1.3e6,
}


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One meaning that an attribute can have, and the ways to say it.

    value: its name, "" for "there is none". text: what stands for it in evidence, and in
    its prompts, unless those have it `asked` otherwise. facts: what it says, by name,
    to compare with what is known of a person.
    slots: one after the other, each a choice of words, make it in full. number: of the
    noun. predicate: what may follow "is" (age), or a clause (hair). finite: of a verb,
    beside each of its words. nouns: what a gender is called at that age, by pronoun.
    without: attributes that a template must not have beside it.
    """

    attribute: str
    value: str
    text: str
    facts: Mapping[str, str]
    prompts: tuple[str, ...]
    slots: tuple[tuple[str, ...], ...] = ()
    number: str = "one"
    predicate: tuple[str, ...] = ()
    finite: tuple[str, ...] = ()
    nouns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    pronoun: str = ""
    without: tuple[str, ...] = ()
    colour: bool = False  # whether the first slot is one
    asked: str = ""

    def __bool__(self) -> bool:
        return bool(self.value)


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One of the 14. phrases: in the order of the files, which also breaks ties."""

    name: str
    kind: str
    phrases: tuple[Phrase, ...]

    @property
    def optional(self) -> bool:
        """True for one that a person may lack."""
        return self.name in OPTIONAL


@dataclasses.dataclass(frozen=True, eq=False)
class Lexicon:
    """All that captions are made of.

    attributes: by name, required ones first. templates: in their order. extras:
    sentences that tell of an optional attribute which a template does not. synonyms:
    group -> its words. digest: of the files that all this comes from.
    """

    attributes: Mapping[str, Attribute]
    templates: tuple[Template, ...]
    extras: Mapping[str, tuple[Template, ...]]
    synonyms: Mapping[str, tuple[str, ...]]
    digest: str
    _known: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

    def adds(self, name: str, without: frozenset) -> tuple[Template, ...]:
        """Extras for an optional attribute, beside phrases with those `without`."""
        if (name, without) not in self._known:
            self._known[name, without] = tuple(
                extra
                for extra in self.extras[name]
                if (extra.attributes - {name}).isdisjoint(without)
            )
        return self._known[name, without]

    def admitted(self, found: frozenset, without: frozenset) -> tuple[int, ...]:
        """Numbers of the templates for a person with just those optional attributes.

        without: attributes that a template must not tell of.
        """
        if (found, without) not in self._known:
            self._known[found, without] = tuple(
                number
                for number, template in enumerate(self.templates)
                if template.attributes.isdisjoint(without)
                and template.attributes & set(OPTIONAL) <= found
            )
        return self._known[found, without]

    def fullest(self, found: frozenset, without: frozenset) -> tuple[int, ...]:
        """Those of the admitted templates that tell of the most things found."""
        key = "fullest", found, without
        if key not in self._known:
            admitted = self.admitted(found, without)
            told = [len(self.templates[n].attributes & found) for n in admitted]
            most = max(told)
            self._known[key] = tuple(
                n for n, count in zip(admitted, told, strict=True) if count == most
            )
        return self._known[key]
