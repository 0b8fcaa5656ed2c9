"""The caption job made small: a random CLIP, odd images, a job in this process."""

import contextlib
import dataclasses
import io
import json
import pathlib
import signal
import struct
import sys
import zlib
from unittest import mock

import helpers
import jobs
import numpy as np
from absl import flags
from PIL import Image

from benchmarks import tiny_clip
from unipt_jax import encoder, main, sharding
from unipt_jax.captions import reading
from unipt_jax.models import unipt

HEIGHT, WIDTH = 48, 16
_TOWER = dict(features=16, layers=1, heads=2, hidden=24)
MODEL = tiny_clip.MODEL | dict(
    image=tiny_clip.MODEL["image"] | _TOWER | dict(height=HEIGHT, width=WIDTH),
    text=tiny_clip.MODEL["text"] | _TOWER,
    embedding=8,
)
SCALE = 20.0  # so that some things are found and some are not

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
    "calibrate.targets.bag": 0.5,
    "calibrate.targets.hat": 0.3,
}


def write_clip(folder: pathlib.Path) -> pathlib.Path:
    """A CLIP with random weights, as `benchmarks.tiny_clip` writes its own."""
    tokenizer, _ = tiny_clip.tokenise(reading.read(prompts="all"))
    model = encoder.build_model({"model": MODEL}, tokenizer)
    params = helpers.random_like(lambda key: unipt.initialise(model, key))
    for tower in ("image", "text"):  # what is seen and read counts more than biases
        for part in ("value", "out"):
            params[tower]["block_0"]["attention"][part]["kernel"] *= 6
    params["log_scale"] = np.float32(np.log(SCALE))
    tiny_clip.write(folder, model, params, tokenizer)
    return folder


@dataclasses.dataclass(frozen=True)
class Captioner(jobs.Launcher):
    """Starts the caption job, in processes or in this one."""

    model: pathlib.Path
    fields: tuple[str, ...] = ()

    # What processes write must equal, to the byte, what `here` writes.
    xla_flags = ""

    def of(self, **changes) -> "Captioner":
        """With other values of `FIELDS` or of more; `a__b` stands for the field a.b."""
        more = [f"--config.{k.replace('__', '.')}={v}" for k, v in changes.items()]
        return dataclasses.replace(self, fields=(*self.fields, *more))

    def arguments(self, workdir, *more: str) -> list[str]:
        """The command line of a small caption job."""
        fields = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        return [
            *(sys.executable, "-m", "unipt_jax.main", "--config=configs/caption.py"),
            *(f"--config.model={self.model}", f"--workdir={workdir}"),
            *(*fields, *self.fields, *more),
        ]

    def here(self, workdir, *, devices: int = 1) -> tuple[int, str]:
        """Exit code and output of the job, on so many devices of this process."""
        argv = ["main", *self.arguments(workdir)[3:]]
        mesh, said = helpers.mesh_of(devices), io.StringIO()
        before = signal.getsignal(signal.SIGTERM)
        for name in [n for n in flags.FLAGS if n.startswith("config.")]:
            delattr(flags.FLAGS, name)  # the overrides of an earlier call
        try:
            with (
                mock.patch.object(sharding, "local_mesh", lambda: mesh),
                mock.patch.object(sys, "argv", argv),  # where overrides are read
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
            ):
                code = main.run(argv)
        finally:
            signal.signal(signal.SIGTERM, before)
        return code, said.getvalue()

    def make(self, workdir, *, devices: int = 1) -> pathlib.Path:
        """The job, which must succeed, in this process; its folder."""
        code, output = self.here(workdir, devices=devices)
        assert code == 0, output
        return pathlib.Path(workdir)


def rows_of(folder) -> dict[str, dict]:
    """Image id -> its line of captions.jsonl, in order."""
    lines = (pathlib.Path(folder) / "captions.jsonl").read_text().split("\n")
    return {row["image_id"]: row for row in map(json.loads, lines[:-1])}


def skipped_of(folder) -> dict[str, str]:
    """Image id -> why it was skipped."""
    lines = (pathlib.Path(folder) / "skipped.jsonl").read_text().split("\n")
    rows = map(json.loads, lines[:-1])
    return {row["image_id"]: row["reason"] for row in rows}


def files_of(folder) -> dict[str, bytes]:
    """Relative path -> content, of every file at any depth; b"" of a folder."""
    folder = pathlib.Path(folder)
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        if file.is_file()
        else b""
        for file in sorted(folder.rglob("*"))
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
