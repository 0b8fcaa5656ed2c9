"""A trained model as an object: pictures and sentences in, unit vectors out."""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from PIL import Image

from unipt_jax import sharding
from unipt_jax.checkpoint import Checkpoints
from unipt_jax.data import images, tokenizers, transforms
from unipt_jax.data.pipeline import bucket
from unipt_jax.errors import UserError
from unipt_jax.models import unipt


@functools.partial(jax.jit, static_argnames=("model", "mean", "std", "out"))
def _embed_images(params, pixels, *, model, mean, std, out):
    pixels = transforms.normalise(pixels, mean=mean, std=std)
    embeddings = model.apply({"params": params}, pixels, method="encode_image")
    return jax.lax.with_sharding_constraint(embeddings, out)


@functools.partial(jax.jit, static_argnames=("model", "out"))
def _embed_texts(params, tokens, *, model, out):
    embeddings = model.apply({"params": params}, tokens, method="encode_text")
    return jax.lax.with_sharding_constraint(embeddings, out)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Parameters with all that is needed to use them.

    mean, std: of the pixels. lengths: the lengths that texts are padded to, the last
    one the limit. name: where the parameters come from, for reports.
    """

    model: unipt.DualEncoder
    params: Any
    tokenizer: tokenizers.Tokenizer
    mesh: Mesh
    mean: float
    std: float
    lengths: tuple[int, ...]
    name: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the image tower sees."""
        return self.model.image.height, self.model.image.width

    def embed_images(self, pixels: jax.Array) -> np.ndarray:
        """A placed global batch (G, H, W, 3) uint8 -> (G, P) on every process."""
        options = dict(model=self.model, mean=self.mean, std=self.std)
        out = sharding.replicated(self.mesh)
        return np.asarray(_embed_images(self.params, pixels, out=out, **options))

    def embed_texts(self, tokens: jax.Array) -> np.ndarray:
        """A placed global batch (G, L) of ids -> (G, P) on every process."""
        out = sharding.replicated(self.mesh)
        return np.asarray(_embed_texts(self.params, tokens, model=self.model, out=out))

    def encode_image(
        self, pictures: Sequence[Image.Image], *, batch_size: int = 64
    ) -> np.ndarray:
        """PIL images of any size and mode -> (B, P) float32 rows of length 1."""
        pixels = [images.resize(picture, *self.size) for picture in pictures]
        return self._in_batches(pixels, np.stack, self.embed_images, batch_size)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Sentences -> (B, P) float32 rows of length 1; over the limit they are cut."""
        ids, _ = self.tokenizer.encode(texts, self.lengths[-1])

        return self._in_batches(ids, self.pad, self.embed_texts, batch_size)

    def pad(self, ids: Sequence[np.ndarray]) -> np.ndarray:
        """Rows of ids -> (n, L), L the smallest of `lengths` that holds them all."""
        length = bucket(max(len(row) for row in ids), self.lengths)
        out = np.full((len(ids), length), self.tokenizer.pad, np.int32)
        for row, values in zip(out, ids, strict=True):
            row[: len(values)] = values
        return out

    def _in_batches(self, items, join, embed, batch_size: int) -> np.ndarray:
        if not items:
            return np.zeros((0, self.model.embedding), np.float32)
        batch_size = -(-min(batch_size, len(items)) // self.mesh.size) * self.mesh.size
        rows = sharding.local_rows(batch_size, self.mesh)
        out = []
        for begin in range(0, len(items), batch_size):
            index = np.minimum(begin + np.arange(batch_size), len(items) - 1)
            batch = join([items[i] for i in index])
            out.append(
                embed(sharding.place_batch(batch[rows], rows, batch_size, self.mesh))
            )
        return np.concatenate(out)[: len(items)]


def build_model(config: dict, tokenizer: tokenizers.Tokenizer) -> unipt.DualEncoder:
    """The module that a run's config and tokenizer describe."""
    ids = dict(pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep)
    return unipt.build(config["model"], vocabulary=len(tokenizer), **ids)


def load(
    folder: str | os.PathLike, *, checkpoint: str = "best", mesh: Mesh | None = None
) -> Encoder:
    """Opens a run directory.

    checkpoint: "best" (by Rank-1 on val, the last where val was never evaluated),
    "last", or a step. mesh: the devices to run on, by default all.
    Raises UserError where the folder holds no run or no such checkpoint.
    """
    folder = epath.Path(folder)
    if not (folder / "config.json").exists():
        raise UserError(
            f"{folder} is no run directory (no config.json there); give the --workdir "
            "of a training run"
        )
    config = json.loads((folder / "config.json").read_text())
    tokenizer = tokenizers.load(folder / "tokenizer")
    mesh = mesh or sharding.make_mesh(data=0, fsdp=1)
    model = build_model(config, tokenizer)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        step = {"best": checkpoints.best(), "last": checkpoints.latest()}.get(
            checkpoint
        )
        step = int(checkpoint) if checkpoint.isdigit() else step
        if step is None:
            raise UserError(f"{folder} has no checkpoint '{checkpoint}' yet")
        params = checkpoints.restore_params(abstract_params(model, mesh), step)
    finally:
        checkpoints.close()
    return Encoder(
        model=model,
        params=params,
        tokenizer=tokenizer,
        mesh=mesh,
        mean=config["pixels"]["mean"],
        std=config["pixels"]["std"],
        lengths=tuple(sorted(config["data"]["lengths"])),
        name=f"{folder} step {step}",
    )


def abstract_params(model: unipt.DualEncoder, mesh: Mesh) -> Any:
    """Shapes and placements of a model's parameters, without computing any."""
    shapes = jax.eval_shape(lambda: unipt.initialise(model, jax.random.key(0)))
    return jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
        shapes,
        sharding.shardings(shapes, mesh),
    )
