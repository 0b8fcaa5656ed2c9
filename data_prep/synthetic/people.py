"""Decides who the synthetic pedestrians are and how a camera sees them.

In: numpy generators. Out: a `Person` (what all images of an identity share), a `View`
(what one image of it adds) and the attributes of the two, as strings.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from unipt_jax.captions.lexicon import OPTIONAL

T = TypeVar("T")

COLOURS = {
    "black": (28, 28, 32),
    "white": (236, 236, 232),
    "grey": (132, 134, 138),
    "red": (196, 34, 38),
    "orange": (232, 122, 34),
    "yellow": (234, 204, 56),
    "green": (44, 132, 62),
    "blue": (48, 96, 204),
    "navy": (28, 38, 92),
    "purple": (116, 52, 148),
    "pink": (238, 140, 176),
    "brown": (112, 70, 40),
    "beige": (210, 188, 150),
}

GENDERS = {"man": 52, "woman": 48}
AGES = {"child": 9, "young": 43, "middle-aged": 31, "elderly": 17}

UPPER_TYPES = {
    "man": {
        "T-shirt": 26,
        "shirt": 18,
        "tank top": 6,
        "jacket": 18,
        "coat": 10,
        "hoodie": 13,
        "sweater": 11,
    },
    "woman": {
        "T-shirt": 24,
        "shirt": 14,
        "tank top": 14,
        "jacket": 13,
        "coat": 14,
        "hoodie": 8,
        "sweater": 15,
    },
}
UPPER_COLOURS = {
    "black": 14,
    "white": 13,
    "grey": 11,
    "red": 10,
    "orange": 5,
    "yellow": 6,
    "green": 8,
    "blue": 11,
    "navy": 7,
    "purple": 5,
    "pink": 6,
    "brown": 5,
    "beige": 5,
}
PATTERNS = {
    "T-shirt": {"plain": 45, "striped": 25, "checked": 0, "logo": 30},
    "shirt": {"plain": 40, "striped": 25, "checked": 35, "logo": 0},
    "tank top": {"plain": 60, "striped": 25, "checked": 0, "logo": 15},
    "jacket": {"plain": 75, "striped": 0, "checked": 15, "logo": 10},
    "coat": {"plain": 75, "striped": 0, "checked": 25, "logo": 0},
    "hoodie": {"plain": 50, "striped": 15, "checked": 0, "logo": 35},
    "sweater": {"plain": 45, "striped": 45, "checked": 10, "logo": 0},
}
LOWER_TYPES = {
    "man": {"trousers": 42, "jeans": 33, "shorts": 25},
    "woman": {
        "trousers": 22,
        "jeans": 22,
        "shorts": 13,
        "skirt": 17,
        "long skirt": 10,
        "leggings": 16,
    },
}
LOWER_COLOURS = {
    "black": 26,
    "white": 8,
    "grey": 15,
    "red": 5,
    "green": 6,
    "blue": 10,
    "navy": 10,
    "pink": 3,
    "brown": 8,
    "beige": 9,
}
JEANS_COLOURS = {"blue": 55, "navy": 22, "black": 13, "grey": 10}
HAIR = {
    "man": {"bald": 10, "short": 78, "shoulder-length": 8, "long": 4},
    "woman": {"bald": 0, "short": 17, "shoulder-length": 33, "long": 50},
}
HAIR_COLOURS = {"black": 45, "brown": 30, "blond": 15, "red": 6, "grey": 4}
OLD_HAIR_COLOURS = {"grey": 55, "white": 30, "brown": 8, "black": 7}
HAIR_RGB = {
    "black": (30, 24, 22),
    "brown": (92, 58, 34),
    "blond": (218, 180, 104),
    "red": (158, 68, 30),
    "grey": (146, 146, 148),
    "white": (222, 222, 220),
}
SHOES = {"sneakers": 50, "shoes": 25, "boots": 15, "sandals": 10}
SHOE_COLOURS = {
    "sneakers": {"white": 40, "black": 22, "grey": 12, "red": 13, "blue": 13},
    "shoes": {"black": 65, "brown": 35},
    "boots": {"black": 55, "brown": 45},
    "sandals": {"brown": 60, "black": 40},
}
ACTIONS = {"standing": 42, "walking": 50, "running": 8}
FACINGS = {"front": 52, "back": 32, "left": 8, "right": 8}

# The chance that a person has the optional attribute, and of each of its values.
FREQUENCIES = {
    "bag": 0.45,
    "glasses": 0.15,
    "smoke": 0.02,
    "hat": 0.15,
    "cellphone": 0.08,
    "umbrella": 0.03,
    "gloves": 0.04,
    "vehicle": 0.04,
}
VALUES = {
    "bag": {"backpack": 42, "shoulder bag": 36, "handbag": 22},
    "glasses": {"glasses": 65, "sunglasses": 35},
    "smoke": {"cigarette": 1},
    "hat": {"cap": 50, "beanie": 25, "brimmed hat": 25},
    "cellphone": {"phone": 1},
    "umbrella": {"umbrella": 1},
    "gloves": {"gloves": 1},
    "vehicle": {"bicycle": 65, "scooter": 35},
}
THING_COLOURS = {
    "black": 34,
    "grey": 12,
    "red": 14,
    "blue": 14,
    "green": 8,
    "brown": 12,
    "pink": 6,
}
SKINS = (
    (242, 208, 180),
    (228, 186, 150),
    (200, 152, 112),
    (152, 102, 70),
    (98, 64, 46),
)
SKIN_SHARES = (26, 32, 22, 12, 8)
CAMERAS = 6


@dataclasses.dataclass(frozen=True)
class Person:
    """An identity. attributes: see `attributes`; the rest is its own to be drawn by.

    rgb: the exact colour of each thing. girth: body width factor. head: height of the
    head in body heights. stripe: stripe width in body heights. side: the side (1 or
    -1) on which things are carried. The others choose shapes.
    """

    attributes: Mapping[str, str]
    rgb: Mapping[str, tuple[int, int, int]]
    girth: float
    head: float
    stripe: float
    side: int
    logo: int
    hem: float
    beard: bool
    tied_hair: bool


@dataclasses.dataclass(frozen=True)
class View:
    """One image of an identity; lengths are in image heights and widths.

    size, x, top: where the body is. phase: where in its step, in -1 .. 1. light, cast,
    contrast, blur, noise: of the camera. occluder: "" or what hides a part.
    """

    camera: int
    facing: str
    action: str
    size: float
    x: float
    top: float
    phase: float
    light: float
    contrast: float
    cast: tuple[float, float, float]
    blur: float
    noise: int
    occluder: str


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items, all equally likely."""
    return items[int(rng.integers(len(items)))]


def pick_weighted(rng: np.random.Generator, shares: Mapping[T, float]) -> T:
    """One of the keys, with a chance proportional to its value."""
    left = rng.random() * sum(shares.values())
    for item, share in shares.items():
        left -= share
        if left < 0:
            return item
    return item


def draw_upper(rng: np.random.Generator, gender: str) -> dict[str, str]:
    """An upper garment for that gender: its type, colour, pattern and second colour."""
    kind = pick_weighted(rng, UPPER_TYPES[gender])
    colour = pick_weighted(rng, UPPER_COLOURS)
    dark = sum(COLOURS[colour]) < 330
    second = ("white", "yellow", "grey", "red") if dark else ("black", "navy", "red")
    second = pick(rng, [s for s in second if s != colour])
    pattern = pick_weighted(rng, PATTERNS[kind])
    return {
        "upper_type": kind,
        "upper_colour": colour,
        "upper_pattern": pattern,
        "pattern_colour": "" if pattern == "plain" else second,
    }


def draw_lower(rng: np.random.Generator, gender: str) -> dict[str, str]:
    """A lower garment for that gender: its type and colour."""
    kind = pick_weighted(rng, LOWER_TYPES[gender])
    colour = pick_weighted(rng, JEANS_COLOURS if kind == "jeans" else LOWER_COLOURS)
    return {"lower_type": kind, "lower_colour": colour}


def upper_name(parts: Mapping[str, str]) -> str:
    """What the upper garment is called in full: "red striped shirt"."""
    pattern = parts["upper_pattern"]
    words = (parts["upper_colour"], {"plain": ""}.get(pattern, pattern))
    return " ".join(filter(None, (*words, parts["upper_type"])))


def lower_name(parts: Mapping[str, str]) -> str:
    """What the lower garment is called in full: "black trousers"."""
    return f"{parts['lower_colour']} {parts['lower_type']}"


def _draw_attributes(
    rng: np.random.Generator, frequencies: Mapping[str, float]
) -> dict[str, str]:
    gender, age = pick_weighted(rng, GENDERS), pick_weighted(rng, AGES)
    row = {"age": age, "gender": gender}
    row |= draw_upper(rng, gender) | draw_lower(rng, gender)
    row |= {"upper": upper_name(row), "lower": lower_name(row)}
    hair = pick_weighted(rng, HAIR[gender])
    row["hair"] = "short" if age == "child" and hair == "bald" else hair
    palette = OLD_HAIR_COLOURS if age == "elderly" else HAIR_COLOURS
    row["hair_colour"] = pick_weighted(rng, palette) if hair != "bald" else ""
    if row["hair"] != "bald" and not row["hair_colour"]:
        row["hair_colour"] = pick_weighted(rng, HAIR_COLOURS)
    row["shoes"] = pick_weighted(rng, SHOES)
    row["shoes_colour"] = pick_weighted(rng, SHOE_COLOURS[row["shoes"]])
    for name in OPTIONAL:
        has = rng.random() < frequencies[name]
        value = pick_weighted(rng, VALUES[name])
        colour = pick_weighted(rng, THING_COLOURS)
        if (
            age == "child"
            and name == "smoke"
            or row.get("umbrella")
            and name == "vehicle"
        ):
            has = False
        row[name] = value if has else ""
        if name in ("bag", "hat", "umbrella", "gloves"):
            row[f"{name}_colour"] = colour if has else ""
    return row


def _tint(
    rng: np.random.Generator, rgb: Sequence[int], spread: int = 14
) -> tuple[int, int, int]:
    shift = int(rng.integers(-spread, spread + 1))
    hue = rng.integers(-spread // 2, spread // 2 + 1, 3)
    return tuple(np.clip(np.asarray(rgb) + shift + hue, 8, 250).tolist())


def draw_person(
    rng: np.random.Generator, frequencies: Mapping[str, float] = FREQUENCIES
) -> Person:
    """A new identity. frequencies: the chance of each optional attribute."""
    row = _draw_attributes(rng, frequencies)
    rgb = {
        name: _tint(rng, COLOURS[row[f"{name}_colour"] or "black"])
        for name in ("upper", "pattern", "lower", "shoes")
        + ("bag", "hat", "umbrella", "gloves")
    }
    skin = SKINS[pick_weighted(rng, dict(enumerate(SKIN_SHARES)))]
    rgb["skin"] = _tint(rng, skin, 8)
    rgb["hair"] = _tint(rng, HAIR_RGB[row["hair_colour"] or "grey"], 10)
    inner = [c for c in ("white", "grey", "black", "blue") if c != row["upper_colour"]]
    rgb["inner"] = _tint(rng, COLOURS[pick(rng, inner)])
    rgb["vehicle"] = _tint(rng, COLOURS[pick(rng, ("black", "red", "blue", "grey"))])
    child, older = row["age"] == "child", row["age"] in ("middle-aged", "elderly")
    girth = rng.uniform(0.9, 1.06) + (0.12 * rng.random() if older else 0.0)
    return Person(
        attributes=row,
        rgb=rgb,
        girth=float(girth),
        head=float(rng.uniform(0.188, 0.2) if child else rng.uniform(0.138, 0.15)),
        stripe=float(rng.uniform(0.016, 0.026)),
        side=1 if rng.random() < 0.5 else -1,
        logo=int(rng.integers(4)),
        hem=float(rng.uniform(-0.015, 0.02)),
        beard=row["gender"] == "man" and not child and bool(rng.random() < 0.25),
        tied_hair=row["hair"] == "long" and bool(rng.random() < 0.4),
    )


# Each camera's own light, contrast and colour cast; every image strays from them.
CAMERA_LIGHT = (1.0, 0.8, 1.12, 0.9, 1.0, 0.7)
CAMERA_CONTRAST = (1.0, 0.95, 0.85, 1.05, 0.8, 0.95)
CAMERA_CAST = (
    (1.0, 1.0, 1.0),
    (0.94, 1.0, 1.08),
    (1.07, 1.0, 0.9),
    (0.97, 1.04, 0.97),
    (1.0, 0.98, 1.05),
    (1.06, 0.99, 0.93),
)


def draw_view(rng: np.random.Generator, person: Person, camera: int) -> View:
    """How that camera sees the person, once."""
    row = person.attributes
    action = "riding" if row["vehicle"] else pick_weighted(rng, ACTIONS)
    size = rng.uniform(0.845, 0.93)
    if row["umbrella"]:
        size *= 0.86
    if row["vehicle"]:
        size *= 0.88
    bottom = rng.uniform(0.97, 1.005)
    cast = rng.normal(0.0, 0.03, 3)
    return View(
        camera=camera,
        facing=pick_weighted(rng, FACINGS),
        action=action,
        size=float(size),
        x=float(0.5 + rng.uniform(-0.05, 0.05)),
        top=float(bottom - size),
        phase=float(rng.choice((-1, 1)) * rng.uniform(0.4, 1.0)),
        light=float(CAMERA_LIGHT[camera] * np.exp(rng.normal(0.0, 0.12))),
        contrast=float(CAMERA_CONTRAST[camera] * rng.uniform(0.85, 1.05)),
        cast=tuple((np.asarray(CAMERA_CAST[camera]) + cast).tolist()),
        blur=float(max(0.0, rng.normal(0.35, 0.3))),
        noise=int(rng.integers(2, 9)),
        occluder=pick_weighted(rng, {"": 84, "pole": 5, "box": 6, "bush": 5}),
    )


def attributes(person: Person, view: View) -> dict[str, str]:
    """All that is true of the person in this image; "" where a thing is absent.

    The 14 attributes of UniPT are those of `captions.lexicon`; the others say more.
    """
    return dict(person.attributes) | {
        "action": view.action,
        "lower_pattern": "plain",
        "facing": view.facing,
        "camera": str(view.camera),
        "hair_tied": "tied" if person.tied_hair else "",
        "beard": "beard" if person.beard else "",
    }
