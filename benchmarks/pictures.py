"""Pictures for benchmarks: JPEG files that compress as photographs do, and captions."""

import argparse
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PHRASES = (
    ("a young woman", "an old man", "a tall boy", "a child with short hair"),
    ("is walking", "stands and talks on the phone", "rides a bicycle"),
    ("in a red striped shirt", "in a long black coat", "in a white down jacket"),
    ("and blue jeans,", "and dark grey trousers,", "and a pleated skirt,"),
    (
        "carrying a brown leather bag over the left shoulder.",
        "with glasses, a hat and grey sports shoes with white soles.",
        "holding an umbrella in one hand and a plastic bag in the other.",
    ),
)


def size(text: str) -> tuple[int, int]:
    """ "384x128" -> (384, 128)."""
    try:
        height, width = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not HEIGHTxWIDTH, such as 384x128"
        ) from None
    return height, width


def draw_set(folder: Path, count: int, shape: tuple[int, int]):
    """Writes `count` JPEG files of that height and width; returns them and captions.

    Soft shading of three scales and flat shapes: compresses as photographs do.
    """
    rng, words = np.random.default_rng(0), random.Random(0)
    height, width = shape
    files = []
    for index in range(count):
        picture = np.full((height, width, 3), 128.0, np.float32)
        for cells, depth in ((4, 60), (16, 25), (64, 14)):
            grid = rng.normal(0, depth, (3 * cells, cells, 3)) + 128
            grid = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
            soft = grid.resize((width, height), Image.Resampling.BICUBIC)
            picture += np.asarray(soft, np.float32) - 128
        image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            x, y = rng.integers(0, width), rng.integers(0, height)
            box = (x, y, x + rng.integers(4, width // 2), y + rng.integers(4, 90))
            draw.ellipse(box, fill=tuple(rng.integers(0, 256, 3).tolist()))
        files.append(folder / f"{index:06d}.jpg")
        image.save(files[-1], quality=90)
    captions = [" ".join(words.choice(p) for p in PHRASES) for _ in files]
    return files, captions
