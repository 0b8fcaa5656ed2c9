"""What a run starts from: the sources that a config names in, parameters by path out."""

import collections
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from unipt_jax import encoder, sharding, sources, transfer, tree, weights
from unipt_jax.clip_config import clip_section
from unipt_jax.data import tokenizers
from unipt_jax.errors import UserError
from unipt_jax.models import unipt
from unipt_jax.transfer import Taken

# Which of our parts each field of `config.init` fills.
PARTS = {"model": None, "image": ("image",), "text": ("text", "mlm_head")}
TOWERS = {"model": ("image", "text"), "image": ("image",), "text": ("text",)}


def shapes(model: unipt.DualEncoder) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every parameter of a model, without computing any."""
    values = jax.eval_shape(lambda: unipt.initialise(model, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in tree.flatten(values).items()}


def read(
    init: Mapping[str, Any],
    model: unipt.DualEncoder,
    tokenizer: tokenizers.Tokenizer,
    *,
    extend: bool = False,
) -> dict[str, Taken]:
    """Reads what `init` names; returns {"model" | "image" | "text": what was found}.

    init: a config's section: the sources, and `transfer.Options`' fields. tokenizer: of
    the run; a source that brings another is refused. extend: the vocabulary may be
    longer here than in the file, see `transfer.Options`.
    Raises UserError where a source cannot be read or does not fit.
    """
    if init["model"] and (init["image"] or init["text"]):
        raise UserError(
            f"init.model='{init['model']}' fills both towers; leave init.image and "
            "init.text empty, or init.model"
        )
    options = transfer.Options(
        keep_init=tuple(init["keep_init"]),
        ignore=tuple(init["ignore"]),
        distillation=init["distillation"],
        resize=init["resize"],
        extend=extend,
    )
    wanted = shapes(model)
    geometry = transfer.Geometry.of(model.image)
    out = {}
    for field, parts in PARTS.items():
        if not init[field]:
            continue
        source = open_any(init[field])
        _check_function(source, model, towers=TOWERS[field])
        if field != "image":
            _check_tokenizer(source, tokenizer)
        chosen = {
            path: shape
            for path, shape in wanted.items()
            if parts is None or path.split("/")[0] in parts
        }
        out[field] = transfer.to_ours(
            source.tensors,
            chosen,
            geometry,
            source=source.name,
            options=dataclasses.replace(options, grid=source.grid),
        )
    return out


def tokenizer_of(init: Mapping[str, Any]) -> str:
    """The tokenizer that goes with what `init` names: a folder, or a hub id."""
    name = init["model"] or init["text"]
    if not name:
        raise UserError(
            "tokenizer is empty, and no init.model or init.text to take it from; give "
            "--config.tokenizer=FOLDER"
        )
    path = epath.Path(name).expanduser()
    if not path.exists():
        sources.check_id(name)
        return name
    folder = path.parent if path.is_file() else path
    own = folder / "tokenizer"  # of a run
    return str(own if own.is_dir() else folder)


def check_given(init: Mapping[str, Any]) -> None:
    """Raises UserError where fine-tuning would start from nothing, unasked."""
    if not (init["model"] or init["image"] or init["text"] or init["scratch"]):
        raise UserError(
            "nothing to start from: give --config.init.model=RUN (a pre-trained run, an "
            "export, a CLIP), or the variant imagenet (ImageNet and BERT), or "
            "--config.init.scratch=True for random weights"
        )
    if init["scratch"] and (init["model"] or init["image"] or init["text"]):
        raise UserError(
            "init.scratch=True is for random weights, but init names "
            f"'{init['model'] or init['image'] or init['text']}'; leave one of them out"
        )


# Fields of a tower that its weights are made for.
FIXED = ("kind", "patch", "features", "layers", "heads", "hidden", "pre_norm")
FIXED += ("patch_bias", "activation", "norm_eps")
# Of these, what no tensor's shape shows. A preset's eps may differ from published weights'.
SILENT = ("heads", "activation", "norm_eps")
SILENT_IN_CLIP = ("heads", "activation")


def _described(name: str) -> dict[str, Any]:
    """The config of a run or an export of ours; empty for anything else."""
    folder = epath.Path(name).expanduser() if name else None
    if folder is None or not (encoder.is_run(folder) or encoder.is_export(folder)):
        return {}
    return json.loads((folder / "config.json").read_text())


def check_towers(name: str, model: Mapping[str, Any]) -> None:
    """Raises UserError where a run's towers are others than a config's `model`."""
    theirs = _described(name).get("model")
    if not theirs:
        return
    differ = _differ(theirs, model, ("image", "text"), FIXED)
    if theirs["embedding"] != model["embedding"]:
        differ.append(
            f"model.embedding={theirs['embedding']} (here {model['embedding']})"
        )
    if differ:
        raise UserError(
            f"{name} has other towers than this config: {', '.join(differ)}; choose the "
            "variant of its tower (vit_b16, deit_s16, clip_b16), or set these fields"
        )


def _differ(theirs, ours, towers: tuple[str, ...], fields: tuple[str, ...]) -> list:
    """What two `model` sections that both name these fields say otherwise."""
    return [
        f"model.{tower}.{field}={_plain(theirs[tower][field])} (here "
        f"{_plain(ours[tower][field])})"
        for tower in towers
        for field in fields
        if field in theirs.get(tower, ())
        and field in ours[tower]
        and _plain(theirs[tower][field]) != _plain(ours[tower][field])
    ]


def _check_function(source: sources.Source, model, towers: tuple[str, ...]) -> None:
    """Raises UserError where a source's weights fit but would compute otherwise."""
    config = source.configs.get("config.json", {})
    own, fields = config.get("model"), SILENT
    if not isinstance(own, Mapping):  # no run and no export of ours
        own, fields = _clip(source), SILENT_IN_CLIP
    differ = _differ(own, unipt.section(model), towers, fields) if own else []
    if differ:
        raise UserError(
            f"{source.name} was trained with {', '.join(differ)}: its weights would fit, "
            "but mean something else; set these fields"
        )


def _clip(source: sources.Source) -> dict[str, Any]:
    """The `model` section of a whole CLIP whose config lies beside it, else empty."""
    says = "vision_config" in source.configs.get("config.json", {})
    if not says and "open_clip_config.json" not in source.configs:
        return {}  # only who gives the config knows
    tensors = transfer.canonical(source.tensors)
    layout = weights.detect(tensors, ())
    words = any(name.endswith("token_embedding.weight") for name in tensors)
    whole = words and layout in (weights.CLIP, weights.OPENAI)
    return clip_section(source) if whole else {}


def differences(name: str, config: Mapping[str, Any]) -> dict[str, str]:
    """A line for what a run does otherwise than a config, though its weights fit."""
    theirs = _described(name)
    if not theirs:
        return {}
    pairs = [
        *(
            (f"pixels.{k}", theirs["pixels"].get(k), config["pixels"][k])
            for k in ("mean", "std")
        ),
        *(
            (f"model.{k}", theirs["model"].get(k), config["model"][k])
            for k in ("pool", "pool_padding", "pool_special", "projection_bias")
        ),
    ]
    differ = [
        f"{field} {_plain(there)} there, {_plain(here)} here"
        for field, there, here in pairs
        if there is not None and _plain(there) != _plain(here)
    ]
    return {f"unlike {name}": "; ".join(differ)} if differ else {}


def _plain(value: Any) -> Any:
    """A config's value, a file's or a module's: alike where they say the same."""
    return list(value) if isinstance(value, list | tuple) else value


def _check_tokenizer(source: sources.Source, tokenizer: tokenizers.Tokenizer) -> None:
    """Raises UserError where the source's own tokenizer numbers words otherwise."""
    for folder in (source.folder, source.folder / "tokenizer"):
        if any((folder / file).is_file() for file in tokenizers.VOCABULARIES):
            theirs = tokenizers.load(folder).backend.get_vocab()
            ours = tokenizer.backend.get_vocab()
            other = [word for word, i in theirs.items() if ours.get(word) != i]
            if other:
                raise UserError(
                    f"{source.name} was trained with another tokenizer than "
                    f"config.tokenizer ({len(other)} of its {len(theirs)} tokens differ, "
                    f"such as '{other[0]}'); use --config.tokenizer={folder}"
                )


def open_any(name: str | os.PathLike) -> sources.Source:
    """A source of weights: what `sources` reads, or a run directory of ours."""
    folder = epath.Path(name).expanduser()
    if not encoder.is_run(folder):
        return sources.open_source(name)
    found = encoder.load(folder)
    params = {path: np.asarray(x) for path, x in tree.flatten(found.params).items()}
    layout = weights.ours_in_torch(params)
    tensors, _ = transfer.to_theirs(params, layout, found.model.image.patch)
    config = json.loads((folder / "config.json").read_text())
    return sources.Source(found.name, folder, tensors, {"config.json": config})


def choices(found: Mapping[str, Taken]) -> dict[str, str]:
    """What a run prints of its start: a line for each source and each oddity."""
    if not found:
        return {"initial weights": "random"}
    lines = {}
    for field, taken in found.items():
        text = f"{taken.source} ({taken.layout}), {len(taken.params)} tensors"
        for word, names in (("random", taken.kept), ("left out", taken.left_out)):
            if names:
                parts = collections.Counter(re.split("[/.]", n)[0] for n in names)
                said = (f"{part} ({count})" for part, count in parts.items())
                text += f"; {word}: {', '.join(said)}"
        lines[f"initial {field}"] = "; ".join([text, *taken.notes])
    if "model" not in found:
        rest = [part for part in ("image", "text") if part not in found]
        lines["initial rest"] = ", ".join([*rest, "projections"]) + " random"
    return lines


def put(params: Any, found: Mapping[str, Taken]) -> Any:
    """Parameters on the devices, with those that were found in place of the random."""
    loaded = {path: x for taken in found.values() for path, x in taken.params.items()}

    def place(key_path: tuple, leaf: jax.Array) -> jax.Array:
        new = loaded.get(tree.path_of(key_path))
        if new is None:
            return leaf
        return sharding.place_array(np.asarray(new, leaf.dtype), leaf.sharding)

    return jax.tree_util.tree_map_with_path(place, params)
