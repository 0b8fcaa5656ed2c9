"""Draws the head of a synthetic pedestrian and all that is carried, worn on it or ridden.

In: a `Pen`, a `Body`, a `Person`. Out: the thing on the pen's sheet.
"""

from data_prep.synthetic.pen import RGB, Body, Pen, mix, shade
from data_prep.synthetic.people import Person

EYE = (26, 22, 24)
LIPS = (176, 62, 66)
LENS = (18, 18, 24)
PHONE = (16, 16, 20)
SMOKE = (222, 222, 226)
EMBER = (240, 96, 32)
METAL = (120, 122, 128)
TYRE = (30, 30, 32)


def draw_hair_behind(pen: Pen, body: Body, person: Person) -> None:
    """Hair that hangs behind the neck in front and side views."""
    hair, head = person.rgb["hair"], body.head
    length = _hair_end(person)
    if not length or body.view == "back":
        return
    if body.view == "front":
        wide = head * (0.25 if person.tied_hair else 0.47)
        pen.rows([(head * 0.4, -wide, wide), (length, -wide * 1.05, wide)], hair)
        return
    x = body.stoop + 0.012
    if person.tied_hair:
        tail = [(x - head * 0.3, head * 0.35), (x - head * 0.7, head * 0.7)]
        pen.limb([*tail, (x - head * 0.65, length)], [0.03, 0.04, 0.018], hair)
        return
    rows = [(head * 0.3, x - head * 0.47, x), (length, x - head * 0.5, x - head * 0.08)]
    pen.rows(rows, hair)


def _hair_end(person: Person) -> float:
    """The height at which loose hair ends; 0 for none."""
    kind, head = person.attributes["hair"], person.head
    return {"shoulder-length": head * 1.22, "long": head * 2.1}.get(kind, 0.0)


def draw_head(pen: Pen, body: Body, person: Person) -> None:
    """Face, hair, beard, glasses, hat and what is smoked."""
    if body.view == "side":
        pen.x += pen.mirror * (body.stoop + 0.012) * pen.size
    _skull(pen, body, person)
    if body.view != "back":
        _face(pen, body, person)
    if person.attributes["hat"]:
        _hat(pen, body, person)
    if body.view == "side":
        pen.x -= pen.mirror * (body.stoop + 0.012) * pen.size


def _skull(pen: Pen, body: Body, person: Person) -> None:
    hair, skin, head = person.rgb["hair"], person.rgb["skin"], body.head
    bald = person.attributes["hair"] == "bald"
    wide = head * 0.36
    long = _hair_end(person)
    if body.view == "back":
        pen.oval(0, head * 0.5, wide, head * 0.5, skin if bald else hair)
        if bald:
            pen.rows([(head * 0.6, -wide, wide), (head * 0.78, -wide, wide)], skin)
        elif person.tied_hair:
            tail = [(0, head * 0.4), (0, head * 0.95), (0, long)]
            pen.limb(tail, [0.035, 0.055, 0.02], shade(hair, 0.85))
        elif long:
            half = head * 0.45
            pen.rows([(head * 0.4, -half, half), (long, -half * 1.1, half * 1.1)], hair)
            pen.oval(0, long, half * 1.1, head * 0.12, hair)
        return
    if not bald:
        grow = 1.12 if person.attributes["hair"] == "short" else 1.2
        x = -head * 0.04 if body.view == "side" else 0.0
        pen.oval(x, head * 0.46, wide * grow, head * 0.46, hair)
    if body.view == "front":
        pen.oval(0, head * 0.56, wide * 0.98, head * 0.44, skin)
        if bald:
            pen.oval(0, head * 0.46, wide, head * 0.46, skin)
        else:
            pen.dome(0, head * 0.36, wide * 1.1, head * 0.35, hair)
        return
    pen.oval(wide * 0.18, head * 0.54, wide * 0.84, head * 0.46, skin)
    if bald:
        pen.oval(0, head * 0.46, wide * 1.02, head * 0.46, skin)
    else:
        pen.dome(wide * 0.05, head * 0.36, wide * 1.05, head * 0.36, hair)
        back = [
            (head * 0.3, -wide * 1.1, -wide * 0.1),
            (head * 0.75, -wide, -wide * 0.3),
        ]
        pen.rows(back, hair)
    pen.poly(
        [(wide * 0.9, head * 0.5), (wide * 1.3, head * 0.66), (wide, head * 0.7)], skin
    )


def _face(pen: Pen, body: Body, person: Person) -> None:
    row, head, front = person.attributes, body.head, body.view == "front"
    eyes, y = ((-0.15, 0.15) if front else (0.26,)), head * 0.5
    if person.beard:
        beard = person.rgb["hair"] if row["hair"] != "bald" else (70, 56, 48)
        if front:
            pen.oval(0, head * 0.84, head * 0.26, head * 0.17, beard)
        else:
            pen.oval(head * 0.16, head * 0.86, head * 0.19, head * 0.15, beard)
    for x in eyes:
        if row["glasses"] == "sunglasses":
            pen.oval(head * x, y, head * 0.14, head * 0.095, LENS)
        else:
            pen.oval(head * x, y, head * 0.045, head * 0.04, EYE)
            if row["glasses"]:
                pen.ring(head * x, y, head * 0.125, head * 0.045, LENS)
    if row["glasses"]:
        ends = (-0.34, 0.34) if front else (-0.05, 0.3)
        at = head * 0.47
        pen.line([(head * ends[0], at), (head * ends[1], at)], head * 0.045, LENS)
    lips = LIPS if row["gender"] == "woman" else shade(person.rgb["skin"], 0.68)
    mouth = (-0.09, 0.09) if front else (0.22, 0.34)
    pen.line([(head * x, head * 0.8) for x in mouth], head * 0.05, lips)


def _hat(pen: Pen, body: Body, person: Person) -> None:
    kind, colour, head = person.attributes["hat"], person.rgb["hat"], body.head
    wide = head * 0.43
    dark = shade(colour, 0.72) if sum(colour) > 200 else shade((96, 96, 100), 1.0)
    if kind == "beanie":
        pen.dome(0, head * 0.34, wide, head * 0.44, colour)
        pen.rows([(head * 0.22, -wide, wide), (head * 0.36, -wide, wide)], dark)
        pen.oval(0, -head * 0.1, head * 0.09, head * 0.09, dark)
        return
    if kind == "cap":
        pen.dome(0, head * 0.33, wide, head * 0.4, colour)
        if body.view == "front":
            pen.oval(0, head * 0.34, wide * 0.95, head * 0.085, dark)
        elif body.view == "side":
            y = head * 0.31
            brim = [
                (wide * 0.3, y - 0.01),
                (wide * 2.0, y + 0.006),
                (wide * 0.3, y + 0.012),
            ]
            pen.poly(brim, dark)
        return
    pen.dome(0, head * 0.28, wide * 0.9, head * 0.42, colour)
    pen.oval(0, head * 0.28, head * 0.78, head * 0.11, colour)
    pen.rows(
        [
            (head * 0.14, -wide * 0.86, wide * 0.86),
            (head * 0.24, -wide * 0.9, wide * 0.9),
        ],
        dark,
    )


def draw_smoke(pen: Pen, body: Body, person: Person) -> None:
    """A cigarette between the lips and its smoke."""
    if not person.attributes["smoke"]:
        return
    head = body.head
    x = {"front": -head * 0.1, "back": -head * 0.6, "side": head * 0.4}[body.view]
    y = head * 0.83
    if body.view != "back":
        tip = (x + (head * 0.38 if body.view == "side" else -head * 0.32), y + 0.014)
        pen.line([(x, y), tip], 0.013, (244, 244, 240))
        pen.oval(*tip, 0.009, 0.009, EMBER)
        x, y = tip
    for index, (dx, dy) in enumerate(((0.0, 0.03), (0.015, 0.07), (0.0, 0.12))):
        away = dx if body.view == "side" else -dx
        pen.oval(x + away, y - dy, 0.01 + 0.006 * index, 0.012, SMOKE)


def draw_phone(pen: Pen, body: Body, person: Person) -> None:
    """A telephone at the ear, in the hand that `Body` holds there."""
    if not person.attributes["cellphone"]:
        return
    hand = min((arm[2] for arm in body.arms), key=lambda point: point[1])
    x, y = hand
    pen.poly(
        [
            (x - 0.014, y - 0.04),
            (x + 0.014, y - 0.04),
            (x + 0.014, y + 0.03),
            (x - 0.014, y + 0.03),
        ],
        PHONE,
    )
    pen.oval(x, y + 0.025, body.arm * 0.4, body.arm * 0.4, person.rgb["skin"])


def draw_umbrella(pen: Pen, body: Body, person: Person) -> None:
    """An open umbrella over the head, its shaft in the carrying hand."""
    if not person.attributes["umbrella"]:
        return
    colour = person.rgb["umbrella"]
    x, y = body.arms[0][2]
    top = -0.13
    middle = x * 0.55
    pen.line([(x, y + 0.03), (middle, top)], 0.011, METAL)
    pen.dome(middle, 0.0, 0.2, 0.14, colour)
    for share in (-0.5, 0.0, 0.5):
        pen.line(
            [(middle, top), (middle + share * 0.26, 0.0)], 0.006, shade(colour, 0.7)
        )
    pen.oval(x, y + 0.012, body.arm * 0.45, body.arm * 0.5, person.rgb["skin"])


def draw_bag_behind(pen: Pen, body: Body, person: Person) -> None:
    """What of a backpack shows behind a person seen from the front or the side."""
    if person.attributes["bag"] != "backpack" or body.view == "back":
        return
    colour, top = person.rgb["bag"], body.shoulder
    if body.view == "front":
        half = body.chest * 0.9
        pen.rows(
            [(top - 0.03, -half * 0.6, half * 0.6), (top + 0.03, -half, half)], colour
        )
        return
    rows = [
        (top + 0.005, -0.1, -0.03),
        (top + 0.05, -0.15, -0.03),
        (body.waist - 0.01, -0.155, -0.03),
        (body.waist + 0.025, -0.12, -0.03),
    ]
    pen.rows(rows, colour)
    pocket = [(top + 0.14, -0.165, -0.13), (body.waist, -0.165, -0.13)]
    pen.rows(pocket, shade(colour, 0.75))


def draw_bag(pen: Pen, body: Body, person: Person) -> None:
    """A bag as far as it is in front of the body."""
    kind, colour = person.attributes["bag"], person.rgb["bag"]
    top, edge = body.shoulder, mix(person.rgb["bag"], (255, 255, 255), 0.25)
    dark = shade(colour, 0.7)
    if kind == "backpack" and body.view == "back":
        half = body.chest * 0.72
        rows = [
            (top + 0.0, -half * 0.6, half * 0.6),
            (top + 0.03, -half, half),
            (body.waist, -half, half),
            (body.waist + 0.025, -half * 0.85, half * 0.85),
        ]
        pen.rows(rows, colour)
        y = (top + body.waist) / 2 + 0.03
        pen.rows(
            [(y, -half * 0.75, half * 0.75), (body.waist, -half * 0.75, half * 0.75)],
            dark,
        )
        pen.line([(-half * 0.8, y - 0.03), (half * 0.8, y - 0.03)], 0.009, edge)
    elif kind == "backpack":
        xs = (-1, 1) if body.view == "front" else (0,)
        for side in xs:
            x = side * body.chest * 0.6
            chain = [
                (x, top - 0.005),
                (x + side * 0.008 + (side == 0) * 0.035, top + 0.11),
            ]
            end = (side * body.chest * 0.85 - (side == 0) * 0.03, top + 0.19)
            pen.line([*chain, end], 0.02, colour)
    elif kind == "shoulder bag":
        _shoulder_bag(pen, body, colour, dark, edge)
    elif kind == "handbag":
        _handbag(pen, body, colour, dark)


def _shoulder_bag(pen: Pen, body: Body, colour: RGB, dark: RGB, edge: RGB) -> None:
    top, hip = body.shoulder, body.crotch - 0.05
    if body.view == "side":
        x = -0.02
        pen.line([(body.stoop, top), (x + 0.03, hip)], 0.016, dark)
    else:
        x = body.hips + 0.012
        pen.line([(-body.chest * 0.5, top - 0.005), (x, hip)], 0.016, dark)
    box = [(hip, x - 0.05, x + 0.05), (hip + 0.085, x - 0.058, x + 0.058)]
    pen.rows(box, colour)
    pen.rows([(hip, x - 0.05, x + 0.05), (hip + 0.035, x - 0.045, x + 0.045)], dark)
    pen.oval(x, hip + 0.036, 0.008, 0.008, edge)


def _handbag(pen: Pen, body: Body, colour: RGB, dark: RGB) -> None:
    low = max((arm[2] for arm in body.arms), key=lambda point: point[1])
    x, y = low
    pen.line([(x - 0.03, y + 0.06), (x, y + 0.01), (x + 0.03, y + 0.06)], 0.012, dark)
    box = [(y + 0.055, x - 0.045, x + 0.045), (y + 0.15, x - 0.06, x + 0.06)]
    pen.rows(box, colour)
    pen.line([(x - 0.055, y + 0.1), (x + 0.055, y + 0.1)], 0.008, dark)


def draw_vehicle(pen: Pen, body: Body, person: Person) -> None:
    """A bicycle or a kick scooter; drawn before the rider."""
    kind, colour = person.attributes["vehicle"], person.rgb["vehicle"]
    side, bar = body.view == "side", body.waist + 0.02
    if kind == "bicycle" and side:
        for x in (-0.2, 0.24):
            pen.ring(x, 0.87, 0.145, 0.022, TYRE)
            pen.oval(x, 0.87, 0.016, 0.016, METAL)
        seat, crank = (-0.05, body.crotch + 0.02), (0.02, 0.87)
        for line in (
            [(-0.2, 0.87), crank, (0.18, 0.62), (-0.04, 0.62), (-0.2, 0.87)],
            [seat, crank],
            [(0.24, 0.87), (0.17, bar)],
        ):
            pen.line(line, 0.02, colour)
        pen.line([(-0.1, seat[1]), (0.02, seat[1])], 0.025, TYRE)
        pen.line([(0.15, bar), (0.22, bar)], 0.018, TYRE)
    elif kind == "bicycle":
        pen.oval(0, 0.86, 0.022, 0.16, TYRE)
        pen.line([(0, 0.78), (0, bar)], 0.024, colour)
        for x in (-1, 1):
            pen.line([(0, 0.89), (x * 0.08, 0.89)], 0.016, METAL)
    elif kind == "scooter" and side:
        pen.line([(-0.18, 0.985), (0.2, 0.985), (0.23, bar)], 0.022, colour)
        for x in (-0.19, 0.22):
            pen.oval(x, 1.0, 0.034, 0.034, TYRE)
    elif kind == "scooter":
        pen.rows([(0.96, -0.05, 0.05), (1.0, -0.06, 0.06)], colour)
        pen.oval(0, 1.0, 0.02, 0.04, TYRE)


def draw_handlebar(pen: Pen, body: Body, person: Person) -> None:
    """The handlebar, which is before the rider in a front view."""
    if not person.attributes["vehicle"] or body.view == "side":
        return
    bar, reach = body.waist + 0.025, body.chest + 0.045
    if body.view == "front":
        colour = person.rgb["vehicle"]
        pen.line([(0, bar), (0, 0.9)], 0.024, colour)
        if person.attributes["vehicle"] == "bicycle":
            pen.oval(0, 0.86, 0.024, 0.16, TYRE)
            pen.oval(0, bar + 0.04, 0.022, 0.022, (246, 240, 200))
    pen.line([(-reach, bar), (reach, bar)], 0.02, TYRE)
