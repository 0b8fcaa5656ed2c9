"""The export job: a trained model in, a folder that PyTorch people open out.

Layouts: `unipt`, the whole model with a PyTorch file of our own; `hf`, its towers as
transformers opens them; `timm`, its image tower; `openai`, a CLIP under OpenAI's names.
Each is read back and compared with the model before its folder appears.
"""

import collections
import contextlib
import importlib.util
import json
import pathlib
import platform
import shutil
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from unipt_jax import encoder as encoders
from unipt_jax import export_towers, report, transfer, weights
from unipt_jax.data import images
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError
from unipt_jax.export_towers import Samples
from unipt_jax.models.unipt import NO_INTERACTION, TRAINING, section

CODE = pathlib.Path(__file__).with_name("modeling_unipt.py")
HEADS = ("mlm_head",)  # what `config.heads` adds; no other training part is exported
LIMIT = 1e-4  # the largest difference at which an export is thought to be the same
SENTENCES = (
    "",
    "a woman in a red coat",
    "A man with short hair wears a blue striped shirt, black long pants and white shoes.",
    "She carries a black backpack on her shoulders and holds a phone in her left hand. "
    * 6,
    "!?,.;: (x) - 'tis 3/4 of an umbrella\u2026",
    "un caf\u00e9 tr\u00e8s chaud \U0001f642",
)


def run(config: Any, workdir: str) -> None:
    """The job: exports `config.model` to the folder `workdir`."""
    if not config.model:
        raise UserError(
            "nothing to export: give a run directory with --config.model=DIR"
        )
    if config.layout not in LAYOUTS:
        raise UserError(
            f"layout '{config.layout}' is not one of {', '.join(LAYOUTS)}; choose one "
            "with --config.layout"
        )
    if jax.process_count() > 1:
        raise UserError("export needs one process; leave --processes out")
    _need_torch()
    with _target(workdir, config.overwrite) as folder:
        print(f"reading {config.model} ...", flush=True)
        encoder = encoders.load(
            config.model, checkpoint=str(config.checkpoint), dtype="float32"
        )
        print("writing, and comparing with PyTorch ...", flush=True)
        samples = _samples(encoder)
        result = LAYOUTS[config.layout](encoder, folder, config.heads, samples)
        _finish(folder, result)
    lines = {
        "model": encoder.name,
        "layout": config.layout,
        "tensors": str(result["tensors"]),
        "left out": _in_short(result["left_out"]),
        "largest difference": f"{result['max_abs_diff']:.2g}, see parity.json",
    }
    report.choices(f"exported to {workdir}", lines)


def _in_short(paths: list[str]) -> str:
    counts = collections.Counter(path.split("/")[0] for path in paths)
    parts = [f"{part} ({count} tensors)" for part, count in counts.items()]
    return ", ".join(parts) or "nothing"


def _need_torch() -> None:
    """Raises UserError where what an export is compared with is not installed."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"an export is compared with its PyTorch twin, and {package} is not "
                "installed; install it with pip install '.[torch]'"
            )


@contextlib.contextmanager
def _target(workdir: str, overwrite: bool) -> Iterator[pathlib.Path]:
    """A folder to fill, that takes the target's name when all of it is there."""
    if "://" in workdir:
        raise UserError(f"{workdir} is no local folder; export to one, then copy it")
    target = pathlib.Path(workdir).resolve()  # of a link, the folder that it names
    partial, old = (target.with_name(f".{target.name}.{x}") for x in ("partial", "old"))
    if old.exists() and not target.exists():  # an export was killed as it replaced it
        old.rename(target)
    if target.exists() and not overwrite:
        raise UserError(
            f"{target} exists; give another --workdir, or --config.overwrite=True to "
            "replace it"
        )
    if target.exists() and not _is_ours(target):
        raise UserError(
            f"{target} is no folder that an export wrote, so it is not replaced; give "
            "another --workdir"
        )
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            old.rename(target)


def _is_ours(target: pathlib.Path) -> bool:
    return (target / "parity.json").is_file()


def _split(params: Mapping[str, np.ndarray], heads: bool) -> tuple[dict, list[str]]:
    """The parameters that are exported, and the paths of those that are not."""
    without = set(TRAINING) - (set(HEADS) if heads else set())
    left = [p for p in params if p.split("/")[0] in without]
    return {p: x for p, x in params.items() if p not in left}, left


def _finish(folder: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes parity.json. Raises UserError if the two networks are not the same."""
    import torch
    import transformers

    # numpy's: Python's max passes over NaN
    result["max_abs_diff"] = float(np.max(list(result["by_tower"].values())))
    if not result["max_abs_diff"] <= LIMIT:
        raise UserError(
            f"the exported network differs from the model by {result['max_abs_diff']:.2g} "
            f"(at most {LIMIT:g} is rounding); nothing was written: please report this"
        )
    result["versions"] = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (folder / "parity.json").write_text(json.dumps(result, indent=2) + "\n")


def _samples(encoder: Encoder) -> Samples:
    pixels = np.stack([images.resize(x, *encoder.size) for x in pictures(encoder)])
    return Samples(pixels, SENTENCES)


def pictures(encoder: Encoder) -> list[Image.Image]:
    """Pictures to compare with: of the tower's size, smaller, larger, not RGB."""
    rng = np.random.default_rng(0)
    height, width = encoder.size

    def noise(h: int, w: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))

    smooth = noise(6, 3).resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
    sizes = ((height, width), (height // 2, width), (height + 7, 2 * width + 1))
    return [smooth, smooth.convert("L"), *(noise(*size) for size in sizes)]


def unipt(
    encoder: Encoder, folder: pathlib.Path, heads: bool, samples: Samples
) -> dict[str, Any]:
    """Our own layout: the whole model, with the PyTorch file that runs it."""
    params, left = _split(export_towers.arrays(encoder), heads)
    layout = weights.ours_in_torch(params)
    tensors, _ = transfer.to_theirs(params, layout, encoder.model.image.patch)
    export_towers.write(folder, tensors, _unipt_config(encoder, params, left))
    encoder.tokenizer.save(folder)
    shutil.copyfile(CODE, folder / CODE.name)
    twin = _module(folder / CODE.name).load(folder)
    pairs = {
        "image": (encoder.encode_image, twin.encode_image, pictures(encoder)),
        "text": (encoder.encode_text, twin.encode_text, list(samples.texts)),
    }
    differences = {
        name: float(np.abs(ours(items) - theirs(items).numpy()).max())
        for name, (ours, theirs, items) in pairs.items()
    }
    return dict(by_tower=differences, tensors=len(tensors), left_out=left)


def _unipt_config(encoder: Encoder, params: Mapping, left: list[str]) -> dict[str, Any]:
    tokenizer = encoder.tokenizer
    model = section(encoder.model)
    has_head = any(path.startswith("mlm_head/") for path in params)
    model["mlm_output"] = model["mlm_output"] if has_head else "none"
    model |= {"identities": 0, "interaction": NO_INTERACTION, "bias": "none"}
    return {
        "format": encoders.EXPORT,
        "source": encoder.name,
        "selected_on": encoder.selected_on,
        "selection_records": encoder.selection_records,
        "model": model,
        "vocabulary": len(tokenizer),
        "pad": tokenizer.pad,
        "cls": tokenizer.cls,
        "sep": tokenizer.sep,
        "pixels": {"mean": encoder.mean, "std": encoder.std, "fit": encoder.fit},
        "lengths": encoder.lengths,
        "heads": has_head,
        "left_out": left,
    }


def _module(file: pathlib.Path) -> types.ModuleType:
    """The PyTorch file, as it lies in the export."""
    spec = importlib.util.spec_from_file_location("exported_modeling_unipt", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LAYOUTS = {
    "unipt": unipt,
    "hf": export_towers.hf,
    "timm": export_towers.timm,
    "openai": export_towers.openai,
}
