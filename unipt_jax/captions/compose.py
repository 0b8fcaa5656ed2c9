"""Phrases of one person in, captions out: the template, wording and synonyms drawn.

All draws come from a seed and the image's id alone, so an image has the same captions on
any machine, however the work is shared. Needs no JAX.
"""

import dataclasses
import hashlib
from collections.abc import Mapping

from unipt_jax.captions.lexicon import OPTIONAL, PRONOUNS, Lexicon, Phrase
from unipt_jax.captions.templates import Piece, article, capital

PAIR = 8  # one noun in so many that is many comes as "a pair of"
# One draw in so many takes any template that fits, the others one of those that tell of
# the most things found: what is woven in reads better than sentences in a row.
FULLEST = 4
TRIES = 64  # for captions of one image that differ


class Draws:
    """Whole numbers from a seed and a name: the same in every process, on any machine."""

    def __init__(self, seed: int, name: str, number: int = 0) -> None:
        self._key = f"{seed}/{number}/{name}".encode()
        self._block = 0
        self._refill()

    def _refill(self) -> None:
        data = self._key + b"/%d" % self._block
        self._left = int.from_bytes(hashlib.blake2b(data, digest_size=64).digest())
        self._size, self._block = 1 << 512, self._block + 1

    def below(self, n: int) -> int:
        """A number from 0 to n - 1, all as likely but for one part in 2^64."""
        if self._size < n << 64:
            self._refill()
        self._left, drawn = divmod(self._left, n)
        self._size //= n
        return drawn

    def pick(self, items):
        """One of the items."""
        return items[self.below(len(items))] if len(items) > 1 else items[0]


@dataclasses.dataclass(frozen=True)
class Caption:
    """text: the sentences. template: the number of the one that was drawn."""

    text: str
    template: int


class Filling:
    """The words of one caption: drawn once for each attribute, given in any form."""

    def __init__(self, chosen: Mapping[str, Phrase], draws: Draws) -> None:
        self.chosen, self.draws = chosen, draws
        self.he = PRONOUNS[chosen["gender"].pronoun]
        self.agreeing: frozenset = frozenset()
        self._words: dict[str, tuple[str, ...]] = {}
        self._pairs: dict[str, bool] = {}

    def _drawn(self, name: str) -> tuple[str, ...]:
        """One word for each slot of an attribute's phrase."""
        words = self._words.get(name)
        if words is None:
            words = tuple([self.draws.pick(s) for s in self.chosen[name].slots])
            self._words[name] = words
        return words

    def _predicate(self, name: str) -> str:
        said = self.draws.pick(self.chosen[name].predicate)
        return said.replace("{his}", self.he[1]) if "{" in said else said

    def _noun(self) -> str:
        """What the person is called: a child is no man."""
        nouns = self.chosen["age"].nouns.get(self.he[0])
        if nouns:
            if "gender" not in self._words:
                self._words["gender"] = (self.draws.pick(nouns),)
        return self._drawn("gender")[0]

    def _full(self, name: str) -> str:
        """A noun with the article that it needs."""
        phrase, bare = self.chosen[name], " ".join(self._drawn(name))
        if phrase.number == "one":
            return article(bare)
        if phrase.number == "many" and name not in self.agreeing:
            if name not in self._pairs:
                self._pairs[name] = self.draws.below(PAIR) == 0
            return f"a pair of {bare}" if self._pairs[name] else bare
        return bare

    def blank(self, piece: Piece) -> str:
        """The words for a blank, before its article and capital."""
        name, form = piece.name, piece.form
        if name == "he":
            return self.he[0]
        if name == "his":
            return self.he[1]
        if name == "him":
            return self.he[2]
        if name == "person":
            return f"{self._drawn('age')[0]} {self._noun()}"
        if name == "gender":
            return self._noun()
        if form == "":
            if name in ("age", "action"):
                return self._drawn(name)[0]
            return self._full(name)
        if form == "bare":
            return " ".join(self._drawn(name))
        if form == "is":
            return self._predicate(name)
        if form == "colour":
            return self._drawn(name)[0]
        if form == "noun":
            return " ".join(self._drawn(name)[1:])
        many = self.chosen[name].number == "many"
        if form == "are":
            return "are" if many else "is"
        if form == "them":
            return "them" if many else "it"
        phrase = self.chosen[name]  # form "does"
        return phrase.finite[phrase.slots[0].index(self._drawn(name)[0])]


def compose(lexicon: Lexicon, chosen: Mapping[str, Phrase], draws: Draws) -> Caption:
    """One caption of a person.

    chosen: attribute -> phrase, the optional ones only where they were found. What the
    template drawn does not tell of a thing that was found, a sentence of its own does.
    """
    found = frozenset(name for name in OPTIONAL if chosen.get(name))
    without = frozenset(name for phrase in chosen.values() for name in phrase.without)
    rest = draws.below(FULLEST) == 0
    number = draws.pick((lexicon.admitted if rest else lexicon.fullest)(found, without))
    sentences = [lexicon.templates[number]]
    left = [n for n in OPTIONAL if n in found and n not in sentences[0].attributes]
    while left:
        name = left.pop(draws.below(len(left)))
        sentences.append(draws.pick(lexicon.adds(name, without)))
    filling = Filling(chosen, draws)
    if len(sentences) == 1:
        filling.agreeing = sentences[0].agreeing
    else:
        filling.agreeing = frozenset().union(*(s.agreeing for s in sentences))

    def synonym(group: str) -> str:
        return draws.pick(lexicon.synonyms[group])

    text = " ".join([s.fill(filling.blank, synonym) for s in sentences])
    return Caption(capital(text), number)


def captions(
    lexicon: Lexicon,
    chosen: Mapping[str, Phrase],
    *,
    seed: int,
    image_id: str,
    count: int = 1,
) -> tuple[Caption, ...]:
    """So many captions of one image, no two alike.

    Fewer only where the lexicon has no more ways to say it. Drawn from seed and
    image_id alone.
    """
    out: dict[str, Caption] = {}
    for number in range(count * TRIES):
        caption = compose(lexicon, chosen, Draws(seed, image_id, number))
        out.setdefault(caption.text, caption)
        if len(out) == count:
            break
    return tuple(out.values())
