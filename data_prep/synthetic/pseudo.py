"""Captions synthetic pedestrians from the truth, with mistakes, as CLIP would make them.

In: the true attributes of an image and a seed. Out: one caption, composed as the caption
job composes, and the evidence: attribute -> its phrase, value, and whether that is wrong.
For where no CLIP is at hand: the quickstart's captions come from the caption job.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_prep.synthetic import people
from data_prep.synthetic.people import pick, pick_weighted
from unipt_jax.captions import compose, lexicon, reading
from unipt_jax.captions.lexicon import OPTIONAL, REQUIRED

CORRUPTED = 0.2  # the share of attributes told wrongly
PRIORS = {
    "age": people.AGES,
    "gender": people.GENDERS,
    "action": people.ACTIONS,
    "hair": people.HAIR["woman"],
}


@functools.cache
def words() -> lexicon.Lexicon:
    """The phrases and templates of the caption job."""
    return reading.read()


@functools.cache
def _phrases(name: str) -> dict[frozenset, lexicon.Phrase]:
    """The phrases of an attribute, by the facts that they state."""
    phrases = words().attributes[name].phrases
    return {frozenset(p.facts.items()): p for p in phrases if p}


def phrase(row: Mapping[str, str], name: str) -> lexicon.Phrase | None:
    """The phrase for what is said of an attribute, or None where there is none."""
    facts = next(iter(_phrases(name)))
    return _phrases(name).get(frozenset((fact, row[fact]) for fact, _ in facts))


def _wrong(row: dict[str, str], name: str, rng: np.random.Generator) -> dict[str, str]:
    """Another value of the attribute, as entries to overwrite `row` with."""
    if name in ("upper", "lower"):
        draw = people.draw_upper if name == "upper" else people.draw_lower
        called = people.upper_name if name == "upper" else people.lower_name
        parts: dict[str, str] = {}
        while not parts or called(parts) == row[name] or not phrase(row | parts, name):
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


def pseudo_caption(
    attributes: Mapping[str, str], *, seed: int, image_id: str
) -> tuple[str, dict[str, dict[str, Any]]]:
    """A machine's caption of an image of those attributes, and its evidence.

    evidence: each of the 14 attributes -> {"phrase", "value", "corrupted"}; the phrase
    and the value are "" for a thing that the machine does not see.
    """
    draws = compose.Draws(seed, image_id)
    rng = np.random.default_rng(draws.below(1 << 62))
    row, wrong = corrupt(attributes, rng)
    chosen = {}
    for name in (*REQUIRED, *OPTIONAL):
        if name in REQUIRED or row[name]:
            chosen[name] = phrase(row, name)
    (caption,) = compose.captions(words(), chosen, seed=seed, image_id=image_id)
    evidence = {
        name: {
            "phrase": chosen[name].text if name in chosen else "",
            "value": row[name],
            "corrupted": name in wrong,
        }
        for name in (*REQUIRED, *OPTIONAL)
    }
    return caption.text, evidence
