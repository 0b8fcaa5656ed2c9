"""The caption job made small: a random CLIP, odd images, a job in this process."""

import contextlib
import io
import pathlib
import signal
import struct
import unittest.mock
import zlib

import helpers
import numpy as np
from PIL import Image

from benchmarks import tiny_clip
from configs import caption
from unipt_jax import encoder, sharding
from unipt_jax.captions import generate, lexicon
from unipt_jax.models import unipt

HEIGHT, WIDTH = 48, 16
_TOWER = dict(features=16, layers=1, heads=2, hidden=24)
MODEL = tiny_clip.MODEL | dict(
    image=tiny_clip.MODEL["image"] | _TOWER | dict(height=HEIGHT, width=WIDTH),
    text=tiny_clip.MODEL["text"] | _TOWER,
    embedding=8,
)
SCALE = 12.0  # so that some things are found and some are not

# What every small job has; shards hold whole batches of one device.
FIELDS = {
    "batch_size": 4,
    "shard": 8,
    "captions_per_image": 3,
    "luperson_t": True,
    "examples": 4,
    "data.threads": 2,
    "threshold": 0.5,
    "calibrate.images": 20,
}


def write_clip(folder: pathlib.Path) -> pathlib.Path:
    """A CLIP with random weights, as `benchmarks.tiny_clip` writes its own."""
    tokenizer, _ = tiny_clip.tokenise(lexicon.read(prompts="all"))
    model = encoder.build_model({"model": MODEL}, tokenizer)
    params = helpers.random_like(lambda key: unipt.initialise(model, key))
    params["log_scale"] = np.float32(np.log(SCALE))
    tiny_clip.write(folder, model, params, tokenizer)
    return folder


def flags(**changes) -> list[str]:
    """Those fields as flags of the command line."""
    fields = FIELDS | {k.replace("__", "."): v for k, v in changes.items()}
    return [f"--config.{name}={value}" for name, value in fields.items()]


def config_of(model, **changes):
    """The caption config with `FIELDS` and `changes`, `a__b` for the field a.b."""
    config = caption.get_config().unlock()
    config.model = str(model)
    fields = FIELDS | {k.replace("__", "."): v for k, v in changes.items()}
    with config.ignore_type():
        config.update_from_flattened_dict(fields)
    return config


def run(model, workdir, *, devices: int = 1, **changes) -> str:
    """The job on so many devices of this process; what it prints."""
    before, said = signal.getsignal(signal.SIGTERM), io.StringIO()
    mesh = helpers.mesh_of(devices)
    try:
        with (
            unittest.mock.patch.object(sharding, "local_mesh", lambda: mesh),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            generate.run(config_of(model, **changes), str(workdir))
    finally:
        signal.signal(signal.SIGTERM, before)
    return said.getvalue()


def files_of(folder) -> dict[str, bytes]:
    """Relative path -> content, of every file at any depth."""
    folder = pathlib.Path(folder)
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# --- pictures ------------------------------------------------------------------------


def pixels(seed: int, height: int = 40, width: int = 20) -> np.ndarray:
    """(height, width, 3) uint8 of smooth colours, so that no two are alike."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 3, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """A picture as a file of that kind."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def jpeg(seed: int) -> bytes:
    """A plain good picture."""
    return encode(Image.fromarray(pixels(seed)), "JPEG", quality=95)


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that declares side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    parts = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
