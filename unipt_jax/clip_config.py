"""CLIP weights as they come in; the config sections that describe them out."""

import math
from typing import Any

from unipt_jax import transfer, weights
from unipt_jax.errors import UserError
from unipt_jax.sources import Source

# Of the pixels that OpenAI's CLIP was trained on.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD = 64  # every published CLIP's width of an attention head


def clip_section(source: Source, activation: str = "") -> dict[str, Any]:
    """The `model` section of a config for the CLIP in a source.

    Sizes are read off the tensors; heads, activation and eps come from the config
    beside them, where there is one (transformers' or open_clip's), else they are
    OpenAI's. activation: overrides "gelu" or "quick_gelu".
    Raises UserError where the tensors are not those of a whole CLIP.
    """
    tensors = transfer.canonical(source.tensors)
    layout = weights.detect(tensors, ())
    if layout not in (weights.CLIP, weights.OPENAI):
        found = layout.name if layout else "no known layout"
        raise UserError(
            f"{source.name} is {found}, one tower of which cannot be searched with; "
            "give a run directory, an export, or the weights of a whole CLIP (initialise "
            "a tower from it with --config.init.image or --config.init.text)"
        )

    def shape(path: str) -> tuple[int, ...]:
        row, number = layout.row(path)
        name = row.theirs.replace("{i}", number)
        if name not in tensors:
            raise UserError(f"{source.name} lacks {name}; fetch it again")
        return tensors[name].shape

    def depth(tower: str) -> int:
        rows = (layout.row(f"{tower}/block_{i}/norm1/scale") for i in range(1000))
        names = (row.theirs.replace("{i}", i) for row, i in rows)
        return next(i for i, name in enumerate(names) if name not in tensors)

    def tower(name: str, width: int) -> dict[str, Any]:
        hidden = shape(f"{name}/block_0/mlp/fc1/kernel")[0]
        sizes = dict(features=width, layers=depth(name), hidden=hidden)
        options = dict(dropout=0.0, attention_dropout=0.0, remat="none")
        options |= _side(source, "vision" if name == "image" else "text", width)
        options["activation"] = activation or options["activation"]
        return sizes | options | dict(attention="xla")

    d, _, ph, pw = shape("image/patch_embedding/kernel")
    grid = source.grid or _grid(source, shape(transfer.POSITIONS)[0] - 1, (ph, pw))
    width = shape(transfer.TOKENS)[1]
    image = dict(height=grid[0] * ph, width=grid[1] * pw, patch=(ph, pw))
    image |= dict(distillation=False, pre_norm=True, patch_bias=False)
    positions = shape("text/position_embedding/embedding")[0]
    return dict(
        image=image | tower("image", d),
        text=dict(kind="clip", positions=positions) | tower("text", width),
        embedding=_embedding(layout, shape("image_projection/kernel")),
        pool="token",
        pool_padding=False,
        pool_special=True,
        projection_bias=False,
        temperature="learned",
        temperature_init=0.01,
        mlm_output="none",
        pgu=dict(parts=0),
        retrieval="global",
        dtype="float32",
    )


def _grid(source: Source, patches: int, patch: tuple[int, int]) -> tuple[int, int]:
    """Patches down and across: as open_clip's config says, else a square of them."""
    config = source.configs.get("open_clip_config.json", {}).get("model_cfg")
    vision = config.get("vision_cfg") if isinstance(config, dict) else None
    size = vision.get("image_size") if isinstance(vision, dict) else None
    if isinstance(size, list):
        grid = size[0] // patch[0], size[1] // patch[1]
        if math.prod(grid) == patches:
            return grid
    return (math.isqrt(patches),) * 2


def _embedding(layout: weights.Layout, projection: tuple[int, ...]) -> int:
    return projection[0] if layout is weights.CLIP else projection[1]


def _side(source: Source, tower: str, width: int) -> dict[str, Any]:
    """Heads, activation and eps of one tower."""
    options = dict(heads=max(1, width // HEAD), activation="quick_gelu", norm_eps=1e-5)
    theirs = source.configs.get("config.json", {}).get(f"{tower}_config")
    if isinstance(theirs, dict):  # what transformers leaves out has its default
        default = {"vision": 12, "text": 8}[tower]
        options["heads"] = theirs.get("num_attention_heads", default)
        options["activation"] = theirs.get("hidden_act", "quick_gelu")
        options["norm_eps"] = theirs.get("layer_norm_eps", 1e-5)
    theirs = source.configs.get("open_clip_config.json", {}).get("model_cfg")
    if isinstance(theirs, dict):
        options["activation"] = "quick_gelu" if theirs.get("quick_gelu") else "gelu"
        side = theirs.get(f"{tower}_cfg", {})
        head = side.get("head_width", HEAD)
        options["heads"] = side.get("heads", width // head)
    return options


def clip_pixels(source: Source) -> dict[str, Any]:
    """mean and std of the pixels, as the files beside the weights say, or CLIP's."""
    ours = source.configs.get("preprocessor_config.json", {})
    theirs = source.configs.get("open_clip_config.json", {}).get("preprocess_cfg", {})
    mean = ours.get("image_mean") or theirs.get("mean") or MEAN
    return dict(mean=mean, std=ours.get("image_std") or theirs.get("std") or STD)
