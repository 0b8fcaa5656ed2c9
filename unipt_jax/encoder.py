"""A trained model as an object: pictures and sentences in, unit vectors out."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from PIL import Image

from unipt_jax import sharding, sources, transfer, tree
from unipt_jax.checkpoint import Checkpoints
from unipt_jax.clip_config import clip_pixels, clip_section
from unipt_jax.data import images, tokenizers, transforms
from unipt_jax.data.pipeline import bucket
from unipt_jax.errors import UserError
from unipt_jax.models import unipt

STATS = ("mean", "std")
EXPORT = "unipt_jax export 1"
# What a trained model computes the same without: of a tower, and of the pair.
_TOWER = ("dropout", "attention_dropout", "drop_path", "remat", "attention")
_PAIR = ("temperature", "temperature_init", "bias", "bias_init")
_PAIR += ("mlm_output", "identities", "interaction", "dtype")
_PROBE = "A caf\u00e9 in the_RAIN, it's 3/4 \u00dcber \u65e5"


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

    mean, std: of the pixels, by channel. lengths: the lengths that texts are padded to,
    the last one the limit. fit: how pictures come to the tower's size, see
    `images.resize`. name: where the parameters come from, for reports. selected_on: the
    split of its own set that a run's checkpoint was chosen on ("hold_out": identities of
    train that were kept out), "last step" where none was, "" where that is not known.
    selection_records: the folder of that set, "" where that is not known.
    """

    model: unipt.DualEncoder
    params: Any = dataclasses.field(repr=False)
    tokenizer: tokenizers.Tokenizer
    mesh: Mesh
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lengths: tuple[int, ...]
    fit: str = "squeeze"
    name: str = ""
    selected_on: str = ""
    selection_records: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that the image tower sees."""
        return self.model.image.height, self.model.image.width

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What decides which vectors come out, by name: a run's and its export's are
        the same, on any devices and in either precision.

        Names are weights, network, size, fit, pixels, tokenizer and lengths; weights
        and tokenizer are SHA-256 in hex. Parts that only training needs do not count.
        """
        params = tree.flatten(self.params)
        unused = (*unipt.TRAINING, "log_scale")
        used = {p: x for p, x in params.items() if p.split("/")[0] not in unused}
        words = self.tokenizer.backend.get_vocab()
        probe = self.tokenizer.encode([_PROBE], 1000)[0][0].tolist()
        known = [self.tokenizer.kind, sorted(words, key=words.get), probe]
        return {
            "weights": tree.digest(used),
            "network": json.dumps(_network(self.model), sort_keys=True),
            "size": "x".join(map(str, self.size)),
            "fit": self.fit,
            "pixels": f"mean {list(self.mean)} std {list(self.std)}",
            "tokenizer": hashlib.sha256(json.dumps(known).encode()).hexdigest(),
            "lengths": str(list(self.lengths)),
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of `identity`: the same for models whose vectors are."""
        said = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

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
        pixels = [images.resize(picture, *self.size, self.fit) for picture in pictures]
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
            return np.zeros((0, self.model.width), np.float32)
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


def _network(model: unipt.DualEncoder) -> dict[str, Any]:
    """A model's section, without what its vectors do not depend on, and the size."""

    def without(values: Mapping, names: Sequence[str]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if k not in names}

    out = without(unipt.section(model), _PAIR)
    for tower in ("image", "text", "pgu"):
        out[tower] = without(out[tower], _TOWER)
    out["image"] = without(out["image"], ("height", "width"))
    return out


def build_model(config: Any, tokenizer: tokenizers.Tokenizer) -> unipt.DualEncoder:
    """The module that a config's `model` section and the tokenizer describe."""
    ids = dict(pad=tokenizer.pad, cls=tokenizer.cls, sep=tokenizer.sep)
    return unipt.build(config["model"], vocabulary=len(tokenizer), **ids)


def pixel_options(pixels: Any) -> dict[str, tuple[float, ...]]:
    """mean and std of a config's `pixels` section, one number for each channel."""
    return {name: tuple(np.broadcast_to(pixels[name], 3).tolist()) for name in STATS}


def is_run(folder: epath.Path) -> bool:
    """True for a run directory: one that a training job wrote."""
    file = folder / "config.json"
    config = _config(file) if file.exists() else {}
    return "job" in config and isinstance(config.get("model"), dict)


def is_export(folder: epath.Path) -> bool:
    """True for a folder that the export job wrote."""
    file = folder / "config.json"
    return file.exists() and _config(file).get("format") == EXPORT


def _config(file: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON ({error}); it is damaged") from error
    return content if isinstance(content, dict) else {}


def load(
    name: str | os.PathLike,
    *,
    checkpoint: str = "best",
    mesh: Mesh | None = None,
    dtype: str = "",
    size: tuple[int, int] | None = None,
    fit: str = "squeeze",
    activation: str = "",
) -> Encoder:
    """Opens a run directory, an export folder, or CLIP weights as they come.

    name: a folder, a file of CLIP weights (its tokenizer's files beside it), or the
    Hugging Face hub id of a CLIP. mesh: the devices to run on, by default all. dtype:
    "float32" or "bfloat16" instead of what the model was trained with.
    checkpoint: of a run, "best" (by Rank-1 on val, the last where val was never
    evaluated), "last", or a step.
    size, fit, activation: of CLIP weights alone. Height and width to work at, by
    default CLIP's own (position embeddings are resized); how pictures come to that
    size (`images.resize`): squeezed, since CLIP's own centre crop cuts head and feet
    off a person, or fit="crop" for CLIP's way; "gelu" or "quick_gelu" where no config
    beside the weights says which (OpenAI's are quick_gelu).
    Raises UserError where nothing of the kind is there.
    """
    mesh = mesh or sharding.make_mesh(data=0, fsdp=1)
    folder = epath.Path(os.path.expanduser(name))
    run = is_run(folder)
    export = not run and is_export(folder)
    if (run or export) and (size is not None or fit != "squeeze" or activation):
        raise UserError(
            f"size, fit and activation are for CLIP weights as they come; {folder} says "
            "itself how it works, so leave them out"
        )
    if run:
        return _load_run(folder, str(checkpoint), mesh, dtype)
    if export:
        return _load_export(folder, mesh, dtype)
    check_weights(folder)
    return _load_clip(name, mesh, dtype, size, fit, activation)


def check_weights(folder: epath.Path) -> None:
    """Raises UserError for a folder, no run and no export, that holds no weights."""
    weights = (*sources.FILES, *sources.SUFFIXES)
    if folder.is_dir() and not any(f.name.endswith(weights) for f in folder.iterdir()):
        raise UserError(
            f"{folder} is no run directory (no config.json of ours there), no export, "
            f"and has no weights such as {sources.FILES[0]}; give the --workdir of a "
            "training run, an export, or a folder with CLIP's weights"
        )


def _load_run(folder: epath.Path, checkpoint: str, mesh: Mesh, dtype: str) -> Encoder:
    config = _config(folder / "config.json")
    config["model"]["dtype"] = dtype or config["model"]["dtype"]
    tokenizer = tokenizers.load(folder / "tokenizer")
    model = build_model(config, tokenizer)
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        named = {"best": checkpoints.best(), "last": checkpoints.latest()}
        step = int(checkpoint) if checkpoint.isdigit() else named.get(checkpoint)
        if step is None or not (folder / "checkpoints" / str(step)).exists():
            raise UserError(f"{folder} has no checkpoint '{checkpoint}' yet")
        params = _restored(checkpoints, abstract_params(model, mesh), step, folder)
        selected_on = {"best": _val_of(config), "last": "last step"}
        if not checkpoints.scored():
            selected_on["best"] = "last step"
    finally:
        checkpoints.close()
    return Encoder(
        model=model,
        params=params,
        tokenizer=tokenizer,
        mesh=mesh,
        lengths=tuple(sorted(config["data"]["lengths"])),
        name=f"{folder} step {step}",
        selected_on=selected_on.get(checkpoint, "a step given by hand"),
        selection_records=selection_records(config),
        **pixel_options(config["pixels"]),
    )


def _restored(checkpoints: Checkpoints, abstract: Any, step: int, folder) -> Any:
    try:
        return checkpoints.restore_params(abstract, step)
    except (KeyError, ValueError) as error:  # what Orbax says of files it cannot use
        if isinstance(error, UserError):
            raise
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {step} of {folder} is damaged, or of another model than its "
            f"config.json describes ({said}); choose another with --config.checkpoint, "
            "or train it again"
        ) from error


def _val_of(config: Mapping[str, Any]) -> str:
    """The split that a run's best checkpoint is chosen on; "" where none is named."""
    return config.get("evaluate", {}).get("val", "")


def selection_records(config: Mapping[str, Any]) -> str:
    """The record set on which the model of a run's or an export's config was chosen.

    "" where the config does not say.
    """
    if config.get("format") == EXPORT:
        return config.get("selection_records", "")
    own = config.get("evaluate", {}).get("records")
    return own or config.get("data", {}).get("records", "")


def _load_export(folder: epath.Path, mesh: Mesh, dtype: str) -> Encoder:
    config = _config(folder / "config.json")
    tokenizer = tokenizers.load(folder)
    try:
        config["model"]["dtype"] = dtype or config["model"]["dtype"]
        model = build_model(config, tokenizer)
        fields = dict(lengths=tuple(config["lengths"]), fit=config["pixels"]["fit"])
        fields |= pixel_options(config["pixels"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder}/config.json is not as the export wrote it "
            f"({type(error).__name__}: {error}); export the model again"
        ) from error
    source = sources.open_source(folder)
    grid = transfer.Geometry.of(model.image).grid
    return Encoder(
        model=model,
        params=_place(model, source, transfer.Options(grid=grid), mesh),
        tokenizer=tokenizer,
        mesh=mesh,
        name=str(folder),
        selected_on=config.get("selected_on", ""),
        selection_records=selection_records(config),
        **fields,
    )


def _load_clip(
    name, mesh: Mesh, dtype: str, size, fit: str, activation: str
) -> Encoder:
    source = sources.open_source(name)
    section = clip_section(source, activation)
    section["dtype"] = dtype or section["dtype"]
    grid = sources.grid_of(section["image"])
    if size is not None:
        section["image"] |= dict(height=size[0], width=size[1])
    local = os.path.exists(os.path.expanduser(name))  # else a hub id
    tokenizer = tokenizers.load(source.folder if local else name)
    model = build_model({"model": section}, tokenizer)
    limit = model.text.positions
    return Encoder(
        model=model,
        params=_place(model, source, transfer.Options(grid=grid), mesh),
        tokenizer=tokenizer,
        mesh=mesh,
        lengths=(*(n for n in (32, 48) if n < limit), limit),
        fit=fit,
        name=str(name),
        **pixel_options(clip_pixels(source)),
    )


def _place(
    model: unipt.DualEncoder,
    source: sources.Source,
    options: transfer.Options,
    mesh: Mesh,
) -> Any:
    """A source's tensors as the model's parameters, on the devices."""
    abstract = abstract_params(model, mesh)
    wanted = {path: leaf.shape for path, leaf in tree.flatten(abstract).items()}
    taken = transfer.to_ours(
        source.tensors,
        wanted,
        transfer.Geometry.of(model.image),
        source=source.name,
        options=options,
    )

    def put(key_path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        x = taken.params[tree.path_of(key_path)]
        return sharding.place_array(x, leaf.sharding)

    return jax.tree_util.tree_map_with_path(put, abstract)


def abstract_params(model: unipt.DualEncoder, mesh: Mesh) -> Any:
    """Shapes and placements of a model's parameters, without computing any."""
    shapes = jax.eval_shape(lambda: unipt.initialise(model, jax.random.key(0)))
    return jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
        shapes,
        sharding.shardings(shapes, mesh),
    )
