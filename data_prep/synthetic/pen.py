"""What the drawing of synthetic pedestrians rests on: a pen, and a body in a pose.

In: a `Person` and a `View`. Out: a `Pen` that draws in body units, a `Body` that says
where everything is. Body units: y from 0 (top of the head) to 1 (soles), x from the
middle of the body, both in body heights. Towards x > 0 a side view looks, and in front
and back views the person carries things.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from data_prep.synthetic.people import Person, View

RGB = tuple[int, int, int]
Point = tuple[float, float]
Row = tuple[float, float, float]  # y, left, right


def shade(colour: Sequence[int], factor: float) -> RGB:
    """The colour, darker (factor < 1) or lighter."""
    return tuple(max(0, min(255, round(c * factor))) for c in colour)


def mix(first: Sequence[int], second: Sequence[int], share: float) -> RGB:
    """The first colour with a share of the second."""
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def along(points: Sequence[Point], share: float) -> Point:
    """The point that lies at a share (0 .. 1) of a chain of equal segments."""
    at = share * (len(points) - 1)
    index = min(int(at), len(points) - 2)
    (x0, y0), (x1, y1) = points[index], points[index + 1]
    return x0 + (x1 - x0) * (at - index), y0 + (y1 - y0) * (at - index)


class Pen:
    """Draws in body units on a sheet. mirror: -1 swaps left and right."""

    def __init__(self, sheet: Image.Image, x: float, top: float, size: float):
        self.draw = ImageDraw.Draw(sheet)
        self.x, self.top, self.size, self.mirror = x, top, size, 1

    def at(self, x: float, y: float) -> Point:
        """Body units -> pixels of the sheet."""
        return self.x + self.mirror * x * self.size, self.top + y * self.size

    def poly(self, points: Sequence[Point], colour: RGB) -> None:
        """A filled polygon."""
        self.draw.polygon([self.at(*p) for p in points], fill=colour)

    def rows(self, rows: Sequence[Row], colour: RGB) -> None:
        """A filled shape, given by its left and right edge at some heights."""
        left = [(left, y) for y, left, _ in rows]
        self.poly(left + [(right, y) for y, _, right in reversed(rows)], colour)

    def oval(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """A filled ellipse."""
        x, y = self.at(x, y)
        rx, ry = rx * self.size, ry * self.size
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)

    def dome(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """The upper half of a filled ellipse."""
        x, y = self.at(x, y)
        rx, ry = rx * self.size, ry * self.size
        self.draw.pieslice((x - rx, y - ry, x + rx, y + ry), 180, 360, fill=colour)

    def ring(self, x: float, y: float, r: float, width: float, colour: RGB) -> None:
        """A circle's outline."""
        x, y = self.at(x, y)
        r, width = r * self.size, max(1, round(width * self.size))
        self.draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=width)

    def line(self, points: Sequence[Point], width: float, colour: RGB) -> None:
        """A line through the points, at least a pixel wide."""
        width = max(1, round(width * self.size))
        self.draw.line([self.at(*p) for p in points], colour, width, joint="curve")

    def limb(
        self, points: Sequence[Point], widths: Sequence[float], colour: RGB
    ) -> None:
        """A chain of tapering segments with round joints."""
        joints = zip(points, widths, strict=True)
        for ((x0, y0), w0), ((x1, y1), w1) in itertools.pairwise(joints):
            length = math.hypot(x1 - x0, y1 - y0) or 1e-6
            nx, ny = (y0 - y1) / length / 2, (x1 - x0) / length / 2
            corners = [
                (x0 + nx * w0, y0 + ny * w0),
                (x1 + nx * w1, y1 + ny * w1),
                (x1 - nx * w1, y1 - ny * w1),
                (x0 - nx * w0, y0 - ny * w0),
            ]
            self.poly(corners, colour)
        for (x, y), w in zip(points, widths, strict=True):
            self.oval(x, y, w / 2, w / 2, colour)


@dataclasses.dataclass
class Body:
    """Where the parts of a body are, in one view. Heights: shoulder, waist, crotch.

    view: "front", "back" or "side". chest, waist_width, hips: half widths. arms, legs:
    near (or carrying) side first, each from its root: 3 points.
    """

    view: str
    head: float
    shoulder: float
    waist: float
    crotch: float
    knee: float
    chest: float
    belly: float
    hips: float
    arm: float
    leg: float
    arms: tuple[list[Point], list[Point]]
    legs: tuple[list[Point], list[Point]]
    stoop: float


def body_of(person: Person, view: View) -> Body:
    """The person's body in the pose that the view asks for."""
    row = person.attributes
    woman, child = row["gender"] == "woman", row["age"] == "child"
    chest, belly, hips = (0.094, 0.072, 0.096) if woman else (0.115, 0.09, 0.09)
    if child:
        chest, belly, hips = 0.1, 0.088, 0.09
    if row["age"] == "middle-aged":
        belly *= 1.12
    extra = person.head - 0.145  # a child's legs are shorter, as its head is larger
    body = Body(
        view={"front": "front", "back": "back"}.get(view.facing, "side"),
        head=person.head,
        shoulder=person.head + 0.028,
        waist=0.42 + 0.7 * extra,
        crotch=0.515 + 0.7 * extra,
        knee=0.745 + 0.35 * extra,
        chest=chest * person.girth,
        belly=belly * person.girth,
        hips=hips * person.girth,
        arm=(0.044 if woman else 0.051) * person.girth,
        leg=(0.08 if woman else 0.084) * person.girth,
        arms=([], []),
        legs=([], []),
        stoop=0.03 if row["age"] == "elderly" else 0.0,
    )
    if body.view == "side":
        body.legs = _side_legs(body, row["vehicle"], view)
        body.arms = _side_arms(body, row, view)
    else:
        body.legs = _legs(body, row["vehicle"], view)
        body.arms = _arms(body, row, view)
    return body


def _legs(body: Body, vehicle: str, view: View) -> tuple[list[Point], list[Point]]:
    hip, foot = body.hips * 0.52, body.hips * 0.58
    lift = {"walking": 0.045, "running": 0.1}.get(view.action, 0.0) * view.phase
    lifts = (max(0.0, lift), max(0.0, -lift))
    if vehicle == "bicycle":
        lifts, hip, foot = (0.13, 0.04), hip * 1.3, foot * 1.1
    legs = []
    for side, up in zip((1, -1), lifts, strict=True):
        knee = (side * (hip + 0.12 * up), body.knee - 0.35 * up)
        top = (side * hip, body.crotch - 0.02)
        legs.append([top, knee, (side * foot * (1 - 2 * up), 0.96 - up)])
    return legs[0], legs[1]


def _side_legs(body: Body, vehicle: str, view: View) -> tuple[list[Point], list[Point]]:
    top = (0.0, body.crotch - 0.02)
    if vehicle == "bicycle":
        near = [top, (0.16, body.crotch + 0.1), (0.08, 0.82)]
        return near, [top, (0.11, body.crotch + 0.17), (0.0, 0.93)]
    step = {"walking": 0.38, "running": 0.62}.get(view.action, 0.06) * view.phase
    legs = []
    thigh, shin = body.knee - body.crotch + 0.02, 0.96 - body.knee
    for angle in (step, -step):
        bend = 0.12 if angle > 0 else 0.25 + (0.9 if view.action == "running" else 0.0)
        bend *= abs(step)
        knee = (
            top[0] + thigh * math.sin(angle + bend / 3),
            top[1] + thigh * math.cos(angle + bend / 3),
        )
        ankle = (
            knee[0] + shin * math.sin(angle - bend),
            knee[1] + shin * math.cos(angle - bend),
        )
        legs.append([top, knee, ankle])
    return legs[0], legs[1]


def _held(body: Body, row: dict[str, str], forward: float) -> tuple:
    """What hands do with things: two (elbow, wrist) pairs or None, carrying first.

    forward: how far in front of the shoulder, in x, a hand is held before the body.
    """
    carrying = other = None
    if row["umbrella"]:
        carrying = ((forward + 0.03, body.shoulder + 0.15), (forward, 0.29))
    if row["cellphone"]:
        other = (
            (-forward - 0.06 if body.view != "side" else 0.07, body.shoulder + 0.13),
            (-body.head * 0.5 if body.view != "side" else 0.0, body.head * 0.66),
        )
    elif row["smoke"]:
        other = (
            (-forward - 0.05 if body.view != "side" else 0.08, body.shoulder + 0.14),
            (-0.02 if body.view != "side" else 0.075, body.head * 0.92),
        )
    return carrying, other


def _arms(body: Body, row: dict[str, str], view: View) -> tuple:
    chest, swing = body.chest, {"walking": 0.02, "running": 0.07}
    swing = swing.get(view.action, 0.0) * view.phase
    arms = []
    held = _held(body, row, chest + 0.01)
    for side, hold, lift in zip((1, -1), held, (swing, -swing), strict=True):
        shoulder = (side * chest * 0.92, body.shoulder + 0.034)
        elbow = (side * (chest + 0.018), body.shoulder + 0.17 - max(0.0, lift) * 0.3)
        wrist = (side * (chest + 0.022), body.shoulder + 0.3 - max(0.0, lift))
        if view.action == "running":
            wrist = (side * (chest - 0.01), body.shoulder + 0.2 - 1.2 * lift)
        if row["vehicle"]:
            elbow = (side * (chest + 0.05), body.shoulder + 0.14)
            wrist = (side * (chest + 0.03), body.waist + 0.01)
        if hold and not (row["vehicle"] and side == 1):
            elbow, wrist = hold
        arms.append([shoulder, elbow, wrist])
    return arms[0], arms[1]


def _side_arms(body: Body, row: dict[str, str], view: View) -> tuple:
    swing = {"walking": 0.35, "running": 0.7}.get(view.action, 0.08) * view.phase
    arms = []
    held = _held(body, row, 0.11)
    bend = 1.3 if view.action == "running" else 0.25
    for angle, hold in zip((-swing, swing), held, strict=True):
        shoulder = (0.0 + body.stoop * 0.5, body.shoulder + 0.03)
        elbow = (
            shoulder[0] + 0.14 * math.sin(angle),
            shoulder[1] + 0.14 * math.cos(angle),
        )
        wrist = (
            elbow[0] + 0.13 * math.sin(angle + bend),
            elbow[1] + 0.13 * math.cos(angle + bend),
        )
        if row["vehicle"]:
            elbow = (0.1, body.shoulder + 0.12)
            wrist = (0.2, body.waist + 0.01)
        if hold and not (row["vehicle"] and hold is held[0]):
            elbow, wrist = hold
        arms.append([shoulder, elbow, wrist])
    if row["cellphone"] or row["smoke"]:  # the hand that tells must be the near one
        if not row["umbrella"]:
            arms.reverse()
    return arms[0], arms[1]
