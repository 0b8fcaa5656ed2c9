"""Search made small: a random CLIP, folders of crops, an index of made-up entries."""

import json
import pathlib

import captioning
import numpy as np
import pyarrow as pa

from unipt_jax.search import index
from unipt_jax.search.update import update

HEIGHT, WIDTH = 60, 24  # of a crop that is no photograph by its shape


def jpeg(seed: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """A picture unlike that of any other seed."""
    image = captioning.Image.fromarray(captioning.pixels(seed, height, width))
    return captioning.encode(image, "JPEG", quality=95)


def write_crops(folder: pathlib.Path, count: int = 20) -> pathlib.Path:
    """A folder of so many crops, each with its number as its name, in three folders."""
    for number in range(count):
        below = folder / ("", "anna", "anna/b ä")[number % 3]
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{number:03}.jpg").write_bytes(jpeg(number))
    return folder


def unit_rows(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    """(count, width) float32 rows of length 1."""
    rows = np.random.default_rng(seed).standard_normal((count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def entries(paths: list[bytes | str], **columns) -> pa.Table:
    """A table of entries with these paths; other columns are made up, or given."""
    n = len(paths)
    made_up = dict(folder=[0] * n, asked=[b""] * n, x=[0] * n, y=[0] * n)
    made_up |= dict(w=[WIDTH] * n, h=[HEIGHT] * n, bytes=range(n), mtime_ns=range(n))
    made_up |= dict(digest=[(number + 1).to_bytes(32) for number in range(n)])
    made_up |= dict(height=[HEIGHT] * n, width=[WIDTH] * n)
    made_up["path"] = [p if isinstance(p, bytes) else p.encode() for p in paths]
    return pa.table(made_up | columns, schema=index.ENTRIES)


MODEL = index.Model(
    name="/models/run",
    checkpoint="best",
    size=None,
    fit="squeeze",
    fingerprint="f" * 64,
    said="/models/run step 3",
    width=8,
    parts={"weights": "w", "size": "48x16"},
)


def write_index(folder: pathlib.Path, count: int = 5, **changes) -> index.Index:
    """An index of so many entries that no picture stands behind."""
    table = entries([f"anna/{number}.jpg" for number in range(count)])
    rows = unit_rows(count)
    fields = dict(folders=["/pictures"], model=MODEL, entries=table, rows=[rows])
    return index.write(folder, **(fields | dict(dtype="float16") | changes))


def model_of(encoder) -> index.Model:
    """What an index says of an encoder."""
    own = dict(name=encoder.name, checkpoint="best", size=None, fit=encoder.fit)
    own |= dict(fingerprint=encoder.fingerprint, parts=encoder.identity)
    return index.Model(**own, said=encoder.name, width=encoder.model.width)


def bring(encoder, folder: pathlib.Path, *images, **options) -> index.Index:
    """Makes an index of these folders, or brings it up to date, 4 pictures at a time."""
    options = dict(batch_size=4, threads=2, images=[str(i) for i in images]) | options
    return update(encoder, model_of(encoder), folder, **options)


def skipped(folder: pathlib.Path) -> dict[str, str]:
    """Path -> why it was skipped, by the last update."""
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return {row["path"]: row["reason"] for row in map(json.loads, lines)}


def labels(made: index.Index) -> list[str]:
    """What a person reads of each entry."""
    return [made[i].label for i in range(len(made))]


def vectors_of(encoder, pictures) -> np.ndarray:
    """What the encoder itself makes of pictures, in batches as `bring` has them."""
    whole = list(pictures) * 4  # fewer than a batch would be compiled for
    return encoder.encode_image(whole, batch_size=4)[: len(whole) // 4]
