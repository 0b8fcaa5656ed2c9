"""Draws synthetic pedestrians as cameras see them.

In: a `Person`, a `View` and the key of its random numbers. Out: a PIL image, or its
JPEG bytes. A sheet twice the size of the image is drawn and then averaged down.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_prep.synthetic import body as body_parts
from data_prep.synthetic import things
from data_prep.synthetic.pen import RGB, Pen, body_of, mix, shade
from data_prep.synthetic.people import Person, View

OVERSAMPLING = 2
JPEG_QUALITY = 92

# What each camera looks at: the ground and the wall behind.
SCENES = (
    ((142, 140, 134), (188, 184, 176)),
    ((98, 102, 108), (126, 134, 142)),
    ((176, 162, 140), (208, 198, 180)),
    ((104, 118, 92), (140, 158, 132)),
    ((160, 162, 168), (206, 208, 214)),
    ((84, 78, 74), (112, 102, 96)),
)
BUSH = (52, 84, 46)


def render(
    person: Person, view: View, *, key: Sequence[int], height: int, width: int
) -> Image.Image:
    """One image of a person: height x width pixels, RGB.

    key: what its clutter and noise are drawn from.
    """
    rng = np.random.default_rng(key)
    high, wide = height * OVERSAMPLING, width * OVERSAMPLING
    sheet = Image.new("RGB", (wide, high))
    _background(sheet, view, rng)
    pen = Pen(sheet, view.x * wide, view.top * high, view.size * high)
    draw_person(pen, person, view)
    _occluder(sheet, view, rng)
    return _camera(sheet.reduce(OVERSAMPLING), view, rng)


def jpeg(shot: tuple[Person, View, Sequence[int], int, int]) -> bytes:
    """(person, view, key, height, width) -> the image as a JPEG file."""
    person, view, key, height, width = shot
    file = io.BytesIO()
    image = render(person, view, key=key, height=height, width=width)
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def draw_person(pen: Pen, person: Person, view: View) -> None:
    """The person with everything on and about it, back to front."""
    body = body_of(person, view)
    if body.view == "side":
        pen.mirror = 1 if view.facing == "right" else -1
    else:
        pen.mirror = person.side * (1 if body.view == "front" else -1)
    front = body.view == "front"
    things.draw_vehicle(pen, body, person)
    if body.view == "back":
        things.draw_handlebar(pen, body, person)
    things.draw_hair_behind(pen, body, person)
    things.draw_bag_behind(pen, body, person)
    if not front:
        body_parts.draw_arm(pen, body, person, 1)
    if body.view == "back":
        body_parts.draw_arm(pen, body, person, 0)
    body_parts.draw_legs(pen, body, person)
    body_parts.draw_torso(pen, body, person)
    things.draw_head(pen, body, person)
    things.draw_bag(pen, body, person)
    if front:
        things.draw_handlebar(pen, body, person)
        body_parts.draw_arm(pen, body, person, 1)
    if body.view != "back":
        body_parts.draw_arm(pen, body, person, 0)
    things.draw_smoke(pen, body, person)
    things.draw_phone(pen, body, person)
    things.draw_umbrella(pen, body, person)


def _background(sheet: Image.Image, view: View, rng: np.random.Generator) -> None:
    ground, wall = SCENES[view.camera]
    tone = rng.uniform(0.75, 1.2)
    ground, wall = shade(ground, tone), shade(wall, tone)
    wide, high = sheet.size
    draw = ImageDraw.Draw(sheet)
    horizon = int(rng.uniform(0.25, 0.75) * high)
    draw.rectangle((0, 0, wide, horizon), fill=wall)
    draw.rectangle((0, horizon, wide, high), fill=ground)
    for _ in range(int(rng.integers(1, 6))):  # doors, boards, cars, people far away
        x, y = rng.uniform(-0.3, 1.0) * wide, rng.uniform(-0.1, 0.9) * high
        w, h = rng.uniform(0.1, 0.6) * wide, rng.uniform(0.05, 0.4) * high
        colour = mix(
            wall, tuple(rng.integers(0, 256, 3).tolist()), rng.uniform(0, 0.45)
        )
        if rng.random() < 0.2:
            draw.ellipse((x, y, x + w, y + h), fill=colour)
        else:
            draw.rectangle((x, y, x + w, y + h), fill=colour)
    tile = rng.uniform(0.06, 0.2) * high
    slope = rng.uniform(-0.15, 0.15) * wide
    y = horizon + tile * rng.random()
    while y < high:  # joints of the pavement
        draw.line((0, y, wide, y + slope), fill=shade(ground, 0.88), width=2)
        y += tile
    foot = (view.x * wide, (view.top + view.size) * high)
    r = 0.16 * view.size * high
    shadow = (foot[0] - r, foot[1] - r * 0.22, foot[0] + r, foot[1] + r * 0.12)
    draw.ellipse(shadow, fill=shade(ground, 0.7))


def _occluder(sheet: Image.Image, view: View, rng: np.random.Generator) -> None:
    wide, high = sheet.size
    draw = ImageDraw.Draw(sheet)
    at, tall = rng.uniform(0.0, 1.0), rng.uniform(0.12, 0.3)
    colour: RGB = tuple(rng.integers(20, 200, 3).tolist())
    if view.occluder == "pole":
        x = (0.08 if at < 0.5 else 0.84) * wide + at * 0.08 * wide
        draw.rectangle((x, 0, x + 0.09 * wide, high), fill=shade((120,) * 3, 0.6 + at))
    elif view.occluder == "box":
        x = (at * 1.2 - 0.4) * wide
        draw.rectangle((x, high * (1 - tall), x + 0.6 * wide, high), fill=colour)
    elif view.occluder == "bush":
        for _ in range(14):
            x, r = rng.uniform(0, 1) * wide, rng.uniform(0.05, 0.11) * wide
            y = high * (1 - tall * rng.uniform(0.0, 0.8))
            tint = shade(BUSH, rng.uniform(0.7, 1.3))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=tint)


def _camera(image: Image.Image, view: View, rng: np.random.Generator) -> Image.Image:
    table = []
    level = np.arange(256) - 128.0
    for cast in view.cast:
        curve = (level * view.contrast + 128) * view.light * cast
        table += np.clip(np.rint(curve), 0, 255).astype(int).tolist()
    image = image.point(table)
    if view.blur > 0.1:
        image = image.filter(ImageFilter.GaussianBlur(view.blur * image.height / 192))
    pixels = np.asarray(image).astype(np.int16)
    # The sum of two uniform numbers: near enough to grain, and whole numbers only.
    grain = rng.integers(0, view.noise + 1, (2, *pixels.shape), np.int16)
    pixels += grain[0] - grain[1]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
