"""Captions synthetic pedestrians as a generator of pseudo texts would, mistakes and all.

In: the true attributes of an image and a seed. Out: one caption in a fixed template,
and the evidence: attribute -> its phrase, its value, and whether that is wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_prep.synthetic import people
from data_prep.synthetic.people import OPTIONAL, REQUIRED, pick, pick_weighted

CORRUPTED = 0.2  # the share of attributes told wrongly

# Blanks with a capital ask for an article, or for a capital letter.
TEMPLATES = (
    "In this photo, {A_age} {gender} with {hair} stands out by {upper} and {lower}.",
    "The photo shows {A_age} {gender} {action}. {He} has {hair}, {upper} and {lower}.",
    "The image contains {A_age} {gender} with {hair}. {His} outfit: {upper}, {lower}.",
    "This {age} {gender} can be seen {action} in {upper} plus {lower}; note {hair}.",
    "A photo of {A_age} {gender} {action}, with {upper}, {lower} and {hair}.",
    "{He} is {A_age} {gender}. {He} has {hair}. {He} wears {upper}. {He} wears {lower}.",
    "{He} is {action}. {He} is {A_age} {gender} in {upper} over {lower}, with {hair}.",
    "The clothes are {upper} and {lower}; the {gender} is {age} and has {hair}.",
    "The {gender}, who is {age}, has {hair} and goes out in {upper} with {lower}.",
    "Captured while {action}, the {age} {gender} shows {upper}, {lower} and {hair}.",
    "Shown is {A_age} {gender}, {action}, whose clothing is {upper} with {lower}.",
    "Pictured: {A_age} {gender} who has {hair}, {action} in {upper} and in {lower}.",
    "On the street and {action}: {A_age} {gender} in {upper} and in {lower}.",
    "One {age} {gender} is visible. The {gender} has {hair}, {upper} and {lower}.",
    "From the picture one can tell {A_age} {gender} with {upper}, {lower}, {hair}.",
    "This picture is of {A_age} {gender}. {His} clothes are {upper} and {lower}.",
    "What {he} wears is {upper} together with {lower}; {he} is {A_age} {gender}.",
    "Above {lower}, the {age} {gender} with {hair} has {upper}.",
    "Below {upper}, the {age} {gender} has {lower}; {he} is {action}.",
    "A camera saw {A_age} {gender} {action}: {upper}, {lower}, {hair}.",
    "The {gender} in the picture is {age}, has {hair}, and combines {upper} with {lower}.",
    "Dress: {upper}; {lower}. Person: {age} {gender}, {hair}, {action}.",
    "The {age} {gender} is {action}, and the attire is {upper} along with {lower}.",
    "Notice {A_age} {gender} of {hair}, {action}, whose dress is {upper} and {lower}.",
    "With {upper} and with {lower}, the {gender} in view is {age} and has {hair}.",
    "A {gender} who is {age} and {action} appears here with {upper} and {lower}.",
    "Here, {upper} and {lower} make up the outfit of {A_age} {gender} with {hair}.",
    "The one {action} here is {A_age} {gender} having {hair}, {upper} and {lower}.",
)
# One a thing found, after the rest.
TAILS = {
    "bag": ("{He} has {thing} with {him}.", "{Thing} goes along.", "Bag: {thing}."),
    "glasses": ("{His} eyes are behind {thing}.", "{He} has {thing}."),
    "smoke": ("{He} has {thing} in {his} mouth.", "Also visible: {thing}."),
    "hat": ("On {his} head is {thing}.", "{He} has {thing} on top."),
    "cellphone": ("{He} has {thing} at {his} ear.", "There is also {thing}."),
    "umbrella": ("Over {his} head is {thing}.", "{He} is under {thing}."),
    "gloves": ("{His} hands are in {thing}.", "{He} has {thing}."),
    "vehicle": ("{He} is on {thing}.", "{He} moves by means of {thing}."),
}
AGES = {
    "child": ("little", "underage"),
    "young": ("young",),
    "middle-aged": ("middle-aged", "adult"),
    "elderly": ("elderly", "old"),
}
GENDERS = {"man": ("man", "male"), "woman": ("woman", "lady", "female")}
CHILDREN = {"man": ("boy",), "woman": ("girl",)}
ACTIONS = {
    "standing": ("standing",),
    "walking": ("walking",),
    "running": ("running",),
    "riding": ("riding",),
}
HAIR = {
    "bald": ("a bald head",),
    "short": ("short hair",),
    "shoulder-length": ("shoulder-length hair", "medium-length hair"),
    "long": ("long hair",),
}
UPPERS = {
    "T-shirt": ("t-shirt", "tee shirt", "tee", "short-sleeved top"),
    "shirt": ("shirt", "button-up shirt", "collared shirt", "long-sleeved shirt"),
    "tank top": ("tank top", "sleeveless top", "sleeveless shirt"),
    "jacket": ("jacket", "zip-up jacket", "open jacket"),
    "coat": ("coat", "overcoat", "long coat"),
    "hoodie": ("hoodie", "hooded sweatshirt", "hooded top"),
    "sweater": ("sweater", "pullover", "knitted sweater", "jumper"),
}
LOWERS = {
    "trousers": ("pants", "trousers", "long pants", "slacks"),
    "jeans": ("jeans", "denim jeans", "denim pants"),
    "shorts": ("shorts", "knee-length shorts", "short pants"),
    "skirt": ("skirt", "short skirt", "knee-length skirt"),
    "long skirt": ("long skirt", "ankle-length skirt", "maxi skirt"),
    "leggings": ("leggings", "tights", "tight pants"),
}
SINGULAR = ("skirt", "long skirt")
PATTERNS = {
    "plain": "{colour} {garment}",
    "striped": "{colour} striped {garment}",
    "checked": "{colour} plaid {garment}",
    "logo": "{colour} {garment} with a logo",
}
COLOURS = {
    "navy": ("navy", "dark blue"),
    "grey": ("grey", "gray"),
    "beige": ("beige", "tan"),
}
THINGS = {
    "backpack": ("a backpack",),
    "shoulder bag": ("a shoulder bag",),
    "handbag": ("a handbag", "a purse"),
    "glasses": ("glasses",),
    "sunglasses": ("sunglasses",),
    "cigarette": ("a cigarette",),
    "cap": ("a cap", "a baseball cap"),
    "beanie": ("a beanie",),
    "brimmed hat": ("a brimmed hat",),
    "phone": ("a cell phone", "a mobile phone"),
    "umbrella": ("an umbrella",),
    "gloves": ("gloves",),
    "bicycle": ("a bicycle", "a bike"),
    "scooter": ("a scooter",),
}
PRONOUNS = {"man": ("he", "his", "him"), "woman": ("she", "her", "her")}
PRIORS = {
    "age": people.AGES,
    "gender": people.GENDERS,
    "action": people.ACTIONS,
    "hair": people.HAIR["woman"],
}


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _wrong(row: dict[str, str], name: str, rng: np.random.Generator) -> dict[str, str]:
    """Another value of the attribute, as entries to overwrite `row` with."""
    if name in ("upper", "lower"):
        draw = people.draw_upper if name == "upper" else people.draw_lower
        called = people.upper_name if name == "upper" else people.lower_name
        parts: dict[str, str] = {}
        while not parts or called(parts) == row[name]:
            parts = draw(rng, pick_weighted(rng, people.GENDERS))
            colour, mistake = f"{name}_colour", pick(rng, ("colour", "cut", "both"))
            if mistake == "colour":
                parts = {key: row[key] for key in parts} | {colour: parts[colour]}
            elif mistake == "cut":
                parts[colour] = row[colour]
        return parts | {name: called(parts)}
    shares = PRIORS.get(name) or people.VALUES[name]
    others = {k: v for k, v in shares.items() if k != row[name]}
    return {name: pick_weighted(rng, others) if others else ""}


def corrupt(
    attributes: Mapping[str, str], rng: np.random.Generator
) -> tuple[dict[str, str], set[str]]:
    """What a captioner takes for true, and the attributes in which it is mistaken.

    A required attribute, or a thing that is there, is wrong with a chance of
    `CORRUPTED`: it becomes another value (or, for half of the things, nothing). A thing
    that is not there is added as often, over all people, as one is dropped.
    """
    row, wrong = dict(attributes), set()
    for name in REQUIRED:
        if rng.random() < CORRUPTED:
            row |= _wrong(row, name, rng)
            wrong.add(name)
    for name in OPTIONAL:
        if row[name]:
            if rng.random() < CORRUPTED:
                drop = rng.random() < 0.5
                row |= {name: ""} if drop else _wrong(row, name, rng)
                wrong.add(name)
            continue
        share = people.FREQUENCIES[name]
        dropped = CORRUPTED * (0.5 if len(people.VALUES[name]) > 1 else 1.0)
        if rng.random() < dropped * share / (1 - share):
            row[name] = pick_weighted(rng, people.VALUES[name])
            wrong.add(name)
    return row, wrong


def phrases(row: Mapping[str, str], rng: np.random.Generator) -> dict[str, str]:
    """Attribute -> the words for its value, for each that has one."""
    told = {
        "age": pick(rng, AGES[row["age"]]),
        "gender": pick(rng, GENDERS[row["gender"]]),
        "action": pick(rng, ACTIONS[row["action"]]),
        "hair": pick(rng, HAIR[row["hair"]]),
    }
    if row["age"] == "child":
        told["gender"] = pick(rng, CHILDREN[row["gender"]])
    colour, garment = row["upper_colour"], pick(rng, UPPERS[row["upper_type"]])
    colour = pick(rng, COLOURS.get(colour, (colour,)))
    pattern = PATTERNS[row["upper_pattern"]]
    told["upper"] = _article(pattern.format(colour=colour, garment=garment))
    colour, garment = row["lower_colour"], pick(rng, LOWERS[row["lower_type"]])
    told["lower"] = f"{pick(rng, COLOURS.get(colour, (colour,)))} {garment}"
    if row["lower_type"] in SINGULAR:
        told["lower"] = _article(told["lower"])
    if row["hair_colour"] and row["hair"] != "bald" and rng.random() < 0.5:
        told["hair"] = told["hair"].replace("hair", f"{row['hair_colour']} hair")
    for name in OPTIONAL:
        if row[name]:
            told[name] = pick(rng, THINGS[row[name]])
            colour = row.get(f"{name}_colour", "")
            if name in ("bag", "hat") and colour and rng.random() < 0.5:
                thing = told[name].split(" ", 1)[1]
                told[name] = _article(f"{colour} {thing}")
    return told


def pseudo_caption(
    attributes: Mapping[str, str], *, seed: int | Sequence[int]
) -> tuple[str, dict[str, dict[str, Any]]]:
    """A machine's caption of an image of those attributes, and its evidence.

    evidence: each of the 14 attributes -> {"phrase", "value", "corrupted"}; the phrase
    and the value are "" for a thing that the machine does not see.
    """
    rng = np.random.default_rng(seed)
    row, wrong = corrupt(attributes, rng)
    told = phrases(row, rng)
    he, his, him = PRONOUNS[row["gender"]]
    blanks = told | {"A_age": _article(told["age"]), "he": he, "his": his, "him": him}
    blanks |= {"He": he.capitalize(), "His": his.capitalize()}
    sentences = [pick(rng, TEMPLATES)]
    sentences[0] = sentences[0].format(**blanks)
    for name in OPTIONAL:
        if name in told:
            thing = told[name]
            blanks |= {"thing": thing, "Thing": thing[0].upper() + thing[1:]}
            sentences.append(pick(rng, TAILS[name]).format(**blanks))
    evidence = {
        name: {
            "phrase": told.get(name, ""),
            "value": row[name],
            "corrupted": name in wrong,
        }
        for name in (*REQUIRED, *OPTIONAL)
    }
    return " ".join(sentences), evidence
