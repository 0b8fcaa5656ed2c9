"""Draws the body of a synthetic pedestrian and what it wears.

In: a `Pen`, a `Body`, a `Person`. Out: legs, torso, arms and head on the pen's sheet.
"""

import itertools
import math

from data_prep.synthetic.pen import RGB, Body, Pen, Point, Row, along, mix, shade
from data_prep.synthetic.people import Person

# Upper garments: hem below (or above) the crotch, share of the arm in sleeves.
HEMS = {
    "T-shirt": 0.0,
    "shirt": 0.015,
    "tank top": -0.01,
    "jacket": -0.015,
    "coat": 0.17,
    "hoodie": 0.005,
    "sweater": 0.015,
}
SLEEVES = {"T-shirt": 0.42, "tank top": 0.0}
# Lower garments: width at hip, knee, ankle in leg widths; where they end (1 = ankle).
CUTS = {
    "trousers": ((1.08, 0.88, 0.82), 1.0),
    "jeans": ((1.03, 0.76, 0.62), 1.0),
    "leggings": ((0.95, 0.6, 0.42), 0.97),
    "shorts": ((1.12, 1.0, 1.0), 0.45),
}
SKIRTS = {"skirt": 0.16, "long skirt": 0.36}  # length below the crotch
BARE = (0.86, 0.56, 0.38)


def draw_legs(pen: Pen, body: Body, person: Person) -> None:
    """Legs, shoes and what is worn below the waist."""
    for index in (1, 0):
        light = 0.8 if body.view == "side" and index == 1 else 1.0
        _leg(pen, body, person, body.legs[index], light)
    kind = person.attributes["lower_type"]
    if kind in SKIRTS:
        _skirt(pen, body, person, SKIRTS[kind] + 0.5 * person.hem)
        return
    wide = body.hips if body.view != "side" else body.hips * 0.66
    top = [(body.crotch - 0.05, -wide * 0.85, wide * 0.85)]
    top += [(body.crotch + 0.01, -wide, wide)]
    pen.rows(top, person.rgb["lower"])


def _leg(
    pen: Pen, body: Body, person: Person, points: list[Point], light: float
) -> None:
    kind = person.attributes["lower_type"]
    skin, cloth = (shade(person.rgb[k], light) for k in ("skin", "lower"))
    bare = [w * body.leg for w in BARE]
    if kind in ("shorts", *SKIRTS):
        pen.limb(points, bare, skin)
    boots = person.attributes["shoes"] == "boots" and kind in ("jeans", "leggings")
    if not boots:
        _shoe(pen, body, person, points[2], light)
    if kind not in CUTS:
        return
    widths, end = CUTS[kind]
    widths = [w * body.leg for w in widths]
    if kind == "shorts":
        end += 2 * person.hem
        pen.limb([points[0], along(points, end)], widths[:2], cloth)
        return
    chain = [*points[:2], along(points, 0.5 + end / 2)]
    pen.limb(chain, widths, cloth)
    if kind == "jeans":  # a lighter thigh, a seam and a turned-up hem
        faded = mix(cloth, (255, 255, 255), 0.16)
        pen.limb([along(points, 0.12), along(points, 0.45)], [0.03, 0.018], faded)
        x, y = along(points, 0.97)
        half = widths[2] / 2
        pen.line([(x - half, y), (x + half, y)], 0.012, mix(cloth, (255,) * 3, 0.4))
    if boots:  # over narrow legs; wide ones hide their shafts
        _shoe(pen, body, person, points[2], light)
    if kind == "trousers":  # a crease
        pen.line([along(points, 0.2), along(points, 0.95)], 0.007, shade(cloth, 0.82))


def _skirt(pen: Pen, body: Body, person: Person, length: float) -> None:
    cloth, bottom = person.rgb["lower"], body.crotch + length
    wide = body.hips if body.view != "side" else body.hips * 0.7
    reach = [abs(x) + 0.03 for leg in body.legs for x, y in leg[1:2] if y < bottom]
    flare = max([wide * (1.2 if length < 0.25 else 1.32), *reach])
    rows = [
        (body.crotch - 0.06, -wide * 0.8, wide * 0.8),
        (body.crotch, -wide * 1.02, wide * 1.02),
        (bottom, -flare, flare),
    ]
    pen.rows(rows, cloth)
    for share in (-0.5, 0.0, 0.5):  # folds
        line = [(share * wide, body.crotch), (share * flare * 1.1, bottom)]
        pen.line(line, 0.006, shade(cloth, 0.8))


def _shoe(pen: Pen, body: Body, person: Person, ankle: Point, light: float) -> None:
    kind, colour = person.attributes["shoes"], shade(person.rgb["shoes"], light)
    skin = shade(person.rgb["skin"], light)
    x, y = ankle
    side = body.view == "side"
    toe, heel = (x + 0.075, x - 0.025) if side else (x + 0.029, x - 0.029)
    bottom = y + 0.04
    if kind == "boots":
        long = 0.13
        half = body.leg * 0.36
        pen.poly(
            [(x - half, y - long), (x + half, y - long), (x + half, y), (x - half, y)],
            colour,
        )
    foot = skin if kind == "sandals" else colour
    rise = 0.022 if side else 0.0
    shape = [(heel, y - 0.008), (x + 0.02, y - 0.01), (toe, y + rise), (toe, bottom)]
    pen.poly([*shape, (heel, bottom)], foot)
    if not side and body.view == "front":
        pen.oval(x, y + 0.02, 0.03, 0.022, foot)
    if kind == "sandals":
        pen.line([(heel, y + 0.02), (toe, y + 0.025)], 0.012, colour)
        pen.line([(heel, bottom), (toe, bottom)], 0.01, colour)
    elif kind == "sneakers":
        pale = sum(person.rgb["shoes"]) > 560
        sole = (150, 150, 150) if pale else (240, 240, 240)
        pen.line([(heel, bottom), (toe, bottom)], 0.012, shade(sole, light))


def torso_rows(body: Body, person: Person) -> list[Row]:
    """The outline of the upper garment, from the shoulders to its hem."""
    kind = person.attributes["upper_type"]
    loose = {"coat": 1.08, "jacket": 1.06, "hoodie": 1.06, "tank top": 0.94}
    wide = loose.get(kind, 1.0)
    hem = body.crotch + HEMS[kind] + person.hem
    flare = 1.25 if kind == "coat" else 1.04
    if body.view == "side":
        lean = body.stoop
        back, front = 0.068 * person.girth * wide, 0.072 * person.girth * wide
        bust = 0.012 if person.attributes["gender"] == "woman" else 0.0
        belly = front * (1.18 if body.belly > 0.095 else 0.92)
        hip = 0.076 * person.girth * wide
        rows = [
            (body.shoulder - 0.004, lean - back * 0.55, lean + front * 0.45),
            (body.shoulder + 0.035, lean - back, lean + front * 0.85),
            (body.shoulder + 0.11, lean - back * 1.05, lean + front + bust),
            (body.waist, -back * 0.85, belly),
            (body.crotch - 0.02, -hip, hip * 0.9),
        ]
        if kind == "coat":
            rows.append((hem, -hip * 1.3, hip * 1.2))
        return rows if kind == "coat" else [*rows[:4], (hem, -hip * 1.02, hip * 0.94)]
    chest, belly, hips = body.chest * wide, body.belly * wide, body.hips * wide
    halves = [
        (body.shoulder - 0.012, chest * 0.42),
        (body.shoulder + 0.012, chest * 0.84),
        (body.shoulder + 0.045, chest),
        (body.shoulder + 0.12, chest * 0.93),
        (body.waist, belly),
        (body.crotch - 0.02, hips),
    ]
    if kind == "coat":
        halves.append((hem, hips * flare))
    else:
        halves[-1] = (hem, hips * flare)
    return [(y, -half, half) for y, half in halves]


def edges(rows: list[Row], y: float) -> tuple[float, float]:
    """Left and right edge of an outline at a height."""
    for (y0, l0, r0), (y1, l1, r1) in itertools.pairwise(rows):
        if y <= y1:
            share = max(0.0, (y - y0) / (y1 - y0))
            return l0 + (l1 - l0) * share, r0 + (r1 - r0) * share
    return rows[-1][1:]


def draw_torso(pen: Pen, body: Body, person: Person) -> None:
    """The upper garment without its sleeves, and the neck."""
    row, cloth = person.attributes, person.rgb["upper"]
    rows = torso_rows(body, person)
    neck = [(body.head * 0.85, -0.027, 0.027), (body.shoulder + 0.02, -0.034, 0.034)]
    if body.view == "side":
        lean = body.stoop
        neck = [(y, left + lean, right + lean) for y, left, right in neck]
    if row["upper_type"] == "hoodie" and body.view != "front":
        pen.oval(-0.04 if body.view == "side" else 0, body.shoulder, 0.06, 0.035, cloth)
    pen.rows(neck, shade(person.rgb["skin"], 0.88))
    pen.rows(rows, cloth)
    shadow = [(y, r - (r - left) * 0.2, r) for y, left, r in rows]
    pen.rows(shadow, shade(cloth, 0.86))
    _pattern(pen, person, rows)
    if row["upper_type"] == "tank top":
        _straps(pen, body, person, rows)
    _details(pen, body, person, rows)
    if row["upper_pattern"] == "logo" and body.view == "front":
        _logo(pen, body, person)


def _pattern(pen: Pen, person: Person, rows: list[Row]) -> None:
    pattern, step = person.attributes["upper_pattern"], person.stripe
    if pattern not in ("striped", "checked"):
        return
    cloth, second = person.rgb["upper"], person.rgb["pattern"]
    colour = second if pattern == "striped" else mix(cloth, second, 0.75)
    thick = step if pattern == "striped" else step * 0.55
    y = rows[0][0] + 0.03
    while y + thick < rows[-1][0]:
        band = [(at, *edges(rows, at)) for at in (y, y + thick)]
        pen.rows(band, colour)
        y += 2 * step if pattern == "striped" else 1.7 * step
    if pattern == "checked":
        widest = max(right - left for _, left, right in rows)
        count = max(3, round(widest / (1.7 * step)))
        for index in range(count):
            share = (index + 0.5) / count
            points = [(left + (r - left) * share, y) for y, left, r in rows[1:]]
            pen.line(points, thick, colour)


def _straps(pen: Pen, body: Body, person: Person, rows: list[Row]) -> None:
    skin, top = person.rgb["skin"], body.shoulder
    for side in (-1, 1):
        if body.view == "side" and side == 1:
            continue
        x = side * body.chest if body.view != "side" else 0.0
        inner = x * 0.66 if body.view != "side" else 0.03
        pen.poly([(inner, top - 0.015), (x * 1.02, top), (x, top + 0.1)], skin)
        if body.view == "side":
            pen.oval(0.0, top + 0.03, 0.028, 0.03, skin)
    if body.view != "side":
        pen.oval(0.0, top - 0.005, body.chest * 0.34, 0.035, skin)


def _details(pen: Pen, body: Body, person: Person, rows: list[Row]) -> None:
    kind, cloth = person.attributes["upper_type"], person.rgb["upper"]
    dark = shade(cloth, 0.62) if sum(cloth) > 180 else shade((92, 92, 98), 1.0)
    top, hem = body.shoulder, rows[-1][0]
    front, side = body.view == "front", body.view == "side"
    left, right = edges(rows, hem)
    if kind in ("jacket", "coat") and front:
        _opening(pen, body, person, hem, dark)
    elif kind == "shirt" and front:
        pen.line([(0.0, top + 0.02), (0.0, hem)], 0.007, dark)
        for x in (-1, 1):
            collar = [(0, top + 0.025), (x * 0.045, top - 0.02), (x * 0.05, top + 0.03)]
            pen.poly(collar, mix(cloth, (255, 255, 255), 0.35))
    elif kind == "hoodie" and front:
        pen.line([(-0.05, top), (0, top + 0.04), (0.05, top)], 0.022, shade(cloth, 0.8))
        for x in (-0.015, 0.015):
            pen.line([(x, top + 0.03), (x, top + 0.09)], 0.007, (232, 232, 228))
        y = body.waist - 0.01
        pocket = [(-0.045, y), (0.045, y), (0.06, y + 0.07), (-0.06, y + 0.07)]
        pen.poly(pocket, shade(cloth, 0.78))
    elif kind == "hoodie":
        x = -0.05 if side else 0.0
        wide = 0.04 if side else 0.065
        pen.oval(x, top + 0.015, wide, 0.045, shade(cloth, 0.74))
    elif kind == "T-shirt" and front:
        pen.oval(0, top - 0.008, 0.036, 0.022, shade(person.rgb["skin"], 0.9))
    elif kind == "sweater" and not side:
        pen.line([(-0.04, top - 0.012), (0.04, top - 0.012)], 0.026, shade(cloth, 0.75))
    if kind in ("sweater", "hoodie", "jacket"):
        pen.line([(left, hem - 0.01), (right, hem - 0.01)], 0.022, shade(cloth, 0.75))
    if kind in ("jacket", "coat") and side:
        points = [(right - 0.012, y) for y, _, right in rows[2:]]
        pen.line(points, 0.014, dark)
    if kind == "coat" and body.view == "back":
        pen.line([(0, body.crotch), (0, hem)], 0.008, dark)
        y = body.waist
        pen.line([(edges(rows, y)[0], y), (edges(rows, y)[1], y)], 0.014, dark)


def _opening(pen: Pen, body: Body, person: Person, hem: float, dark: RGB) -> None:
    top, inner = body.shoulder, person.rgb["inner"]
    if person.attributes["upper_type"] == "jacket":
        half = 0.03 if person.logo % 2 else 0.02
        gap = [(top - 0.012, -0.03, 0.03), (hem, -half, half)]
        pen.rows(gap, inner)
        for x in (-1, 1):
            pen.line([(x * 0.032, top - 0.01), (x * half, hem)], 0.009, dark)
        return
    pen.poly([(-0.035, top - 0.012), (0.035, top - 0.012), (0, top + 0.11)], inner)
    for x in (-1, 1):
        lapel = [(x * 0.036, top - 0.015), (0, top + 0.12), (x * 0.06, top + 0.07)]
        pen.poly(lapel, shade(person.rgb["upper"], 0.78))
    pen.line([(0.0, top + 0.11), (0.0, hem)], 0.009, dark)
    for share in (0.2, 0.45, 0.7):
        y = top + 0.12 + (body.crotch - top - 0.12) * share
        pen.oval(0.022, y, 0.008, 0.008, dark)


def _logo(pen: Pen, body: Body, person: Person) -> None:
    colour, y = person.rgb["pattern"], body.shoulder + 0.115
    if person.logo == 0:
        pen.oval(0, y, 0.042, 0.042, colour)
        pen.oval(0, y, 0.018, 0.018, person.rgb["upper"])
    elif person.logo == 1:
        pen.poly([(-0.05, y - 0.03), (0.05, y - 0.03), (0, y + 0.05)], colour)
    elif person.logo == 2:
        pen.poly(
            [
                (-0.055, y - 0.025),
                (0.055, y - 0.025),
                (0.055, y + 0.03),
                (-0.055, y + 0.03),
            ],
            colour,
        )
    else:
        star = []
        for index in range(10):
            r, angle = (0.055, 0.024)[index % 2], index * math.pi / 5
            star.append((r * math.sin(angle), y - r * math.cos(angle)))
        pen.poly(star, colour)


def draw_arm(pen: Pen, body: Body, person: Person, index: int) -> None:
    """One arm with its sleeve and hand: index 0 is the near or carrying one."""
    row, points = person.attributes, body.arms[index]
    light = 0.8 if body.view == "side" and index == 1 else 0.93
    skin, cloth = (shade(person.rgb[k], light) for k in ("skin", "upper"))
    sleeve = SLEEVES.get(row["upper_type"], 1.0)
    bulk = 1.18 if row["upper_type"] in ("coat", "jacket", "hoodie") else 1.0
    widths = [body.arm, body.arm * 0.85, body.arm * 0.62]
    if sleeve < 1:
        pen.limb(points, [w * 0.9 for w in widths], skin)
    if sleeve:
        chain = points if sleeve == 1 else [points[0], along(points, sleeve)]
        wide = [w * bulk for w in widths] if sleeve == 1 else [body.arm * 1.15] * 2
        pen.limb(chain, wide, cloth)
        if row["upper_pattern"] in ("striped", "checked"):
            _sleeve_pattern(pen, person, chain, wide, light)
    x, y = points[2]
    hand = shade(person.rgb["gloves"], light) if row["gloves"] else skin
    size = body.arm * (0.56 if row["gloves"] else 0.44)
    pen.oval(x, y + 0.015, size, size * 1.15, hand)
    if row["gloves"]:
        pen.limb([along(points, 0.88), (x, y)], [body.arm * 0.85, body.arm * 0.9], hand)


def _sleeve_pattern(
    pen: Pen, person: Person, chain: list[Point], widths: list[float], light: float
) -> None:
    striped = person.attributes["upper_pattern"] == "striped"
    share = 1.0 if striped else 0.75
    colour = shade(mix(person.rgb["upper"], person.rgb["pattern"], share), light)
    count = 8 if len(chain) == 3 else 3
    for index in range(count):
        at = (index + 0.5) / count
        (x0, y0), (x1, y1) = along(chain, at - 0.03), along(chain, at + 0.03)
        length = math.hypot(x1 - x0, y1 - y0) or 1e-6
        half = (widths[0] + (widths[-1] - widths[0]) * at) / 2
        nx, ny = (y0 - y1) / length * half, (x1 - x0) / length * half
        x, y = along(chain, at)
        thick = person.stripe * (0.9 if striped else 0.5)
        pen.line([(x - nx, y - ny), (x + nx, y + ny)], thick, colour)
