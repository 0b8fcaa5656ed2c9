"""Writes about synthetic pedestrians as people who annotate them would.

In: the attributes of an image and a seed. Out: free-worded descriptions; and the words
that a description of those attributes may use, for an oracle to search with.
"""

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from data_prep.synthetic import words
from data_prep.synthetic.people import pick

# The chance that an attribute is told, and that a thing out of sight is.
MENTION = {
    "age": 0.5,
    "upper": 0.98,
    "lower": 0.95,
    "shoes": 0.5,
    "hair": 0.55,
    "bag": 0.85,
    "hat": 0.85,
    "glasses": 0.7,
    "cellphone": 0.8,
    "umbrella": 0.95,
    "gloves": 0.6,
    "smoke": 0.7,
    "vehicle": 0.95,
    "action": 0.4,
    "facing": 0.12,
    "pattern": 0.85,
}
HIDDEN = 0.08
LOOSE = 0.1  # the chance that a word is an imprecise one
LOOSE_WEIGHT = 0.5  # of a loose word, to one who searches by true attributes
Facts = dict[str, str]


def indefinite(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def listed(items: Sequence[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def hidden(attributes: Mapping[str, str], name: str) -> bool:
    """Whether that attribute cannot be seen in this view."""
    facing = attributes["facing"]
    if name == "pattern":
        return attributes["upper_pattern"] == "logo" and facing != "front"
    return name in ("glasses", "smoke") and facing == "back"


class _Writer:
    """Chooses the words for one description."""

    def __init__(self, attributes: Mapping[str, str], rng: np.random.Generator):
        self.row, self.rng = attributes, rng
        self.he, self.his = words.PRONOUNS[attributes["gender"]]

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def told(self, name: str) -> bool:
        return self.chance(HIDDEN if hidden(self.row, name) else MENTION[name])

    def word(self, proper: Sequence[str], loose: Sequence[str] = ()) -> str:
        return pick(self.rng, loose if loose and self.chance(LOOSE) else proper)

    def colour(self, name: str) -> str:
        return self.word(words.COLOURS[name], words.LOOSE_COLOURS[name])

    def noun(self) -> str:
        row = self.row
        if row["age"] == "child" or self.told("age"):
            return self.word(words.AGED_NOUNS[row["gender"], row["age"]])
        return self.word(words.NOUNS[row["gender"]], words.LOOSE_NOUNS)

    def upper(self) -> str:
        row, pattern = self.row, self.row["upper_pattern"]
        kind = row["upper_type"]
        garment = self.word(words.UPPERS[kind], words.LOOSE_UPPERS[kind])
        phrase = "{colour} {garment}"
        if self.told("pattern"):
            phrase = pick(self.rng, words.PATTERNS[pattern])
        second = ""
        if "{second}" in phrase:
            second = pick(self.rng, words.COLOURS[row["pattern_colour"]])
        colour = self.colour(row["upper_colour"])
        if colour == second:  # a loose word must not say "red and red"
            colour = row["upper_colour"]
        return indefinite(phrase.format(colour=colour, garment=garment, second=second))

    def lower(self) -> str:
        kind = self.row["lower_type"]
        garment = self.word(words.LOWERS[kind], words.LOOSE_LOWERS[kind])
        phrase = f"{self.colour(self.row['lower_colour'])} {garment}"
        if kind in words.SINGULAR_LOWERS:
            return indefinite(phrase)
        return f"a pair of {phrase}" if self.chance(0.2) else phrase

    def shoes(self) -> str:
        kind = self.word(words.SHOES[self.row["shoes"]], words.LOOSE_SHOES)
        phrase = f"{self.colour(self.row['shoes_colour'])} {kind}"
        pair = kind != "footwear" and self.chance(0.12)
        return f"a pair of {phrase}" if pair else phrase

    def hair(self) -> str:
        row = self.row
        if row["hair"] == "bald":
            return self.word(words.BALD)
        style = "tied" if row["hair_tied"] else row["hair"]
        phrase = self.word(words.HAIR[style], words.LOOSE_HAIR[style])
        return phrase.format(colour=self.colour(row["hair_colour"]))

    def thing(self, name: str, table: Mapping, loose: Sequence[str]) -> str:
        word = self.word(table[self.row[name]], loose)
        if self.chance(0.75):
            word = f"{self.colour(self.row[f'{name}_colour'])} {word}"
        return indefinite(word)

    def gloves(self) -> str:
        if self.chance(0.7):
            return f"{self.colour(self.row['gloves_colour'])} gloves"
        return "gloves"

    def umbrella(self) -> str:
        if self.chance(0.8):
            return indefinite(f"{self.colour(self.row['umbrella_colour'])} umbrella")
        return "an umbrella"

    def worn(self) -> list[str]:
        """What is worn, each as a noun phrase, in any order but clothes first."""
        row = self.row
        clothes = [getattr(self, n)() for n in ("upper", "lower") if self.told(n)]
        if not clothes:
            clothes = [self.upper()]
        if self.chance(0.25):
            clothes.reverse()
        more = [self.shoes()] if self.told("shoes") else []
        if row["hat"] and self.told("hat"):
            more.append(self.thing("hat", words.HATS, words.LOOSE_HATS))
        if row["glasses"] and self.told("glasses"):
            more.append(self.word(words.GLASSES[row["glasses"]]))
        if row["gloves"] and self.told("gloves"):
            more.append(self.gloves())
        order = self.rng.permutation(len(more))
        return clothes + [more[i] for i in order]

    def doing(self) -> list[tuple[str, str]]:
        """What the person does, each as (verb in -ing, the rest)."""
        row, done = self.row, []
        if row["bag"] and self.told("bag"):
            bag = self.thing("bag", words.BAGS, words.LOOSE_BAGS)
            where = self.word(words.BAG_PLACES[row["bag"]]).format(his=self.his)
            done.append((self.word(words.BAG_VERBS[row["bag"]]), bag + where))
        if row["cellphone"] and self.told("cellphone"):
            phone = indefinite(self.word(words.PHONES))
            verb, rest = pick(self.rng, words.PHONE_VERBS)
            done.append((verb, rest.format(phone=phone)))
        if row["umbrella"] and self.told("umbrella"):
            done.append((self.word(("holding", "carrying")), self.umbrella()))
        if row["smoke"] and self.told("smoke"):
            done.append(("smoking", "a cigarette"))
        if row["vehicle"] and self.told("vehicle"):
            vehicle = indefinite(self.word(words.VEHICLES[row["vehicle"]]))
            done.append(("riding", vehicle))
        elif not row["vehicle"] and self.told("action"):
            verb, *rest = self.word(words.ACTIONS[row["action"]]).split(" ", 1)
            done.append((verb, " ".join(rest)))
        order = self.rng.permutation(len(done))
        done = [done[i] for i in order]
        if self.told("facing"):
            verb, rest = self.word(words.FACINGS[row["facing"]]).split(" ", 1)
            done.append((verb, rest))
        return done

    def finite(self, done: Sequence[tuple[str, str]]) -> str:
        """ "carries a bag and is walking"."""
        clauses = []
        for verb, rest in done:
            plain = verb == "seen" or self.chance(0.5)
            verb = words.PRESENT[verb] if plain else f"is {verb}"
            clauses.append(f"{verb} {rest}".strip())
        return listed(clauses)

    def copular(self) -> str:
        """ "his trousers are black"."""
        kind = self.row["lower_type"]
        garment = self.word(words.LOWERS[kind], words.LOOSE_LOWERS[kind])
        verb = "is" if kind in words.SINGULAR_LOWERS else "are"
        return f"{self.his} {garment} {verb} {self.colour(self.row['lower_colour'])}"

    def wears(self, items: Sequence[str]) -> str:
        return f"{self.word(words.WEARS)} {listed(items)}"


def participles(done: Sequence[tuple[str, str]]) -> str:
    """ ", carrying a bag, walking": what is done, to hang on a clause."""
    return "".join(f", {verb} {rest}".rstrip() for verb, rest in done)


# The ways to tell it. Each takes the writer, what is worn, the hair ("" for untold)
# and what is done, and returns sentences that tell all of it.


def _plain(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    who = indefinite(w.noun()) + (f" with {hair}" if hair else "")
    if w.chance(0.5) and done:
        return [f"{who} {w.wears(worn)}", f"{w.he} {w.finite(done)}"]
    return [f"{who} {w.wears(worn)}{participles(done)}"]


def _fronted(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    how = w.word(("wearing", "dressed in", "clad in", "in"))
    who = indefinite(w.noun()) + (f" with {hair}" if hair else "")
    what = w.finite(done) if done else w.word(("is pictured", "is seen", "appears"))
    return [f"{how} {listed(worn)}, {who} {what}"]


def _fragment(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    tail = w.word((f", with {hair}", f", {hair}")) if hair else ""
    start = f"{w.noun()} {w.word(('in', 'wearing'))} {listed(worn)}"
    return [start + tail + participles(done)]


def _there_is(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    start = w.word(("there is", "this is", "we see", "look for", "here is"))
    how = w.word(("dressed in", "in", "wearing"))
    more = [f"has {hair}"] if hair else []
    more += [w.finite(done)] if done else []
    sentences = [f"{start} {indefinite(w.noun())} {how} {listed(worn)}"]
    return [*sentences, f"{w.he} {' and '.join(more)}"] if more else sentences


def _passive(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    who = indefinite(w.noun()) + (f" with {hair}" if hair else "")
    verb = "are" if len(worn) > 1 or worn[0].endswith("s") else "is"
    tail = f", who {w.finite(done)}" if done else ""
    return [f"{listed(worn)} {verb} worn by {who}{tail}"]


def _hair_first(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    start = f"with {hair}, the" if hair else w.word(("the", "this"))
    return [f"{start} {w.noun()} {w.wears(worn)}{participles(done)}"]


def _split(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    sentences = [f"the {w.noun()} {w.wears(worn[:1])}{participles(done)}"]
    more = [w.word((f"also wears {listed(worn[1:])}", f"has on {listed(worn[1:])}"))]
    more = more if worn[1:] else []
    more += [f"has {hair}"] if hair else []
    return [*sentences, f"{w.he} {' and '.join(more)}"] if more else sentences


def _doing_first(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    if not done:
        return _hair_first(w, worn, hair, done)
    (verb, rest), *others = done
    who = indefinite(w.noun()) + (f" with {hair}" if hair else "")
    start = f"{verb} {rest}".strip()
    return [f"{start}, {who} {w.wears(worn)}{participles(others)}"]


def _possessive(w: _Writer, worn: list[str], hair: str, done: list) -> list[str]:
    others = [w.upper()] + worn[2:]
    first = f"{indefinite(w.noun())} {w.wears(others)}"
    sentence = w.copular() + (f" and {w.he} has {hair}" if hair else "")
    if done and w.chance(0.5):
        return [first, sentence, f"{w.he} {w.finite(done)}"]
    return [first + participles(done), sentence]


PLANS = (
    _plain,
    _fronted,
    _fragment,
    _there_is,
    _passive,
    _hair_first,
    _split,
    _doing_first,
    _possessive,
)


def annotations(
    attributes: Mapping[str, str], *, seed: int | Sequence[int], count: int = 2
) -> tuple[str, ...]:
    """What `count` annotators write about an image of those attributes.

    attributes: as `people.attributes` gives them.
    """
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        writer = _Writer(attributes, rng)
        hair = writer.hair() if writer.told("hair") else ""
        worn, done = writer.worn(), writer.doing()
        sentences = pick(rng, PLANS)(writer, worn, hair, done)
        texts.append(" ".join(f"{s[0].upper()}{s[1:]}." for s in sentences))
    return tuple(texts)


def tokens(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())


def mentions(text: str) -> set[str]:
    """The words of a text, and its pairs of neighbouring words."""
    found = tokens(text)
    return {*found, *(f"{a} {b}" for a, b in itertools.pairwise(found))}


def vocabulary(attributes: Mapping[str, str]) -> dict[str, float]:
    """What of `mentions` a true description may hold -> its weight.

    1 for a proper word, `LOOSE_WEIGHT` for one that only a loose description has.
    """
    row, known = attributes, {}

    def learn(proper: Sequence[str], loose: Sequence[str] = ()) -> None:
        for phrases, weight in ((proper, 1.0), (loose, LOOSE_WEIGHT)):
            for mention in set().union(*map(mentions, phrases), set()):
                known[mention] = max(known.get(mention, 0.0), weight)

    def coloured(colour: str, things: Sequence[str], loose: Sequence[str]) -> None:
        shades = words.COLOURS[colour]
        learn(
            [f"{shade} {thing}" for shade in shades for thing in things],
            [f"{s} {thing}" for s in words.LOOSE_COLOURS[colour] for thing in things]
            + [f"{shade} {thing}" for shade in shades for thing in loose],
        )

    nouns = words.AGED_NOUNS[row["gender"], row["age"]]
    child = row["age"] == "child"
    learn(nouns if child else (*nouns, *words.NOUNS[row["gender"]]), words.LOOSE_NOUNS)
    learn(words.PRONOUNS[row["gender"]])
    _learn_clothes(row, learn, coloured)
    if row["hair"] == "bald":
        learn(words.BALD)
    else:
        style = "tied" if row["hair_tied"] else row["hair"]
        for shade in words.COLOURS[row["hair_colour"]]:
            learn([phrase.format(colour=shade) for phrase in words.HAIR[style]])
        for shade in words.LOOSE_COLOURS[row["hair_colour"]]:
            learn((), [phrase.format(colour=shade) for phrase in words.HAIR[style]])
    if row["bag"]:
        coloured(row["bag_colour"], words.BAGS[row["bag"]], words.LOOSE_BAGS)
        learn(words.BAG_PLACES[row["bag"]])
    if row["hat"]:
        coloured(row["hat_colour"], words.HATS[row["hat"]], words.LOOSE_HATS)
    for name in ("umbrella", "gloves"):
        if row[name]:
            coloured(row[f"{name}_colour"], (name,), ())
    if row["glasses"]:
        learn(words.GLASSES[row["glasses"]])
    if row["cellphone"]:
        learn((*words.PHONES, *(verb for verb, _ in words.PHONE_VERBS)))
    if row["smoke"]:
        learn(("smoking a cigarette", "smokes a cigarette"))
    if row["vehicle"]:
        learn(("riding", "rides", *words.VEHICLES[row["vehicle"]]))
    else:
        doing = words.ACTIONS[row["action"]]
        verbs = [words.PRESENT[phrase.split()[0]] for phrase in doing]
        learn((*doing, *verbs))
    learn(words.FACINGS[row["facing"]])
    return known


def _learn_clothes(row: Mapping[str, str], learn, coloured) -> None:
    upper, lower, shoes = row["upper_type"], row["lower_type"], row["shoes"]
    coloured(row["upper_colour"], words.UPPERS[upper], words.LOOSE_UPPERS[upper])
    coloured(row["lower_colour"], words.LOWERS[lower], words.LOOSE_LOWERS[lower])
    coloured(row["shoes_colour"], words.SHOES[shoes], words.LOOSE_SHOES)
    second = row["pattern_colour"]
    for phrase in words.PATTERNS[row["upper_pattern"]]:
        for shade in words.COLOURS[second] if second else ("",):
            for colour in words.COLOURS[row["upper_colour"]]:
                for garment in words.UPPERS[upper]:
                    learn(
                        (phrase.format(colour=colour, garment=garment, second=shade),)
                    )
