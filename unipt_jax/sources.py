"""Where weights come from: a folder, a file or a Hugging Face hub id; tensors leave.

safetensors are read as they are, PyTorch's files with `weights_only`: nothing that a
file says is ever executed.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors

from unipt_jax.errors import UserError

# In the order of preference; an index names the files that hold a large model.
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
TORCH = (".pt", ".pth", ".bin", ".ckpt")
CONFIGS = ("config.json", "open_clip_config.json", "preprocessor_config.json")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclasses.dataclass(frozen=True)
class Source:
    """Tensors by name, and the JSON files beside them.

    name: what the user called it. folder: where it lies. configs: file name -> content.
    """

    name: str
    folder: pathlib.Path
    tensors: Mapping[str, np.ndarray]
    configs: Mapping[str, Any]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches down and across, where config.json says so."""
        config = self.configs.get("config.json", {})
        if isinstance(config.get("model"), Mapping):  # a run or an export of ours
            return grid_of(config["model"]["image"])
        config = config.get("vision_config", config)
        size, patch = config.get("image_size"), config.get("patch_size")
        if size is None or patch is None:
            return None
        (h, w), (ph, pw) = _pair(size), _pair(patch)
        return h // ph, w // pw


def grid_of(image: Mapping[str, Any]) -> tuple[int, int]:
    """Patches down and across of a config's `model.image` section."""
    h, w = image["patch"]
    return image["height"] // h, image["width"] // w


def _pair(value: Any) -> tuple[int, int]:
    h, w = value if isinstance(value, (list, tuple)) else (value, value)
    return int(h), int(w)


def open_source(name: str | os.PathLike) -> Source:
    """Reads the weights that `name` stands for: a folder, a file or a hub id.

    Floating-point tensors are float32 afterwards. Raises UserError, with what to fetch
    and where to put it, if there are none, and for a file that cannot be trusted.
    """
    path = locate(name)
    file = path if path.is_file() else weight_file(path)
    folder = file.parent
    configs = {n: _json(folder / n) for n in CONFIGS if (folder / n).is_file()}
    return Source(str(name), folder, read(file), configs)


def locate(name: str | os.PathLike) -> pathlib.Path:
    """The folder or file of that name, or the cached snapshot of a hub id."""
    path = pathlib.Path(os.path.expanduser(name))
    if path.exists():
        return path
    if not HUB_ID.fullmatch(str(name)) or path.suffix in (".safetensors", *TORCH):
        raise UserError(
            f"there is no file or folder {path}; give one that holds weights "
            f"({', '.join(FILES[:1] + FILES[3:4])}, .pt, .ckpt), or a Hugging Face hub "
            "id such as google/vit-base-patch16-384"
        )
    return _fetch(str(name))


def _fetch(name: str) -> pathlib.Path:
    """The snapshot of a hub id, from the cache where the hub cannot be reached."""
    import httpx
    import huggingface_hub as hub

    refusals = (OSError, ValueError, httpx.HTTPError)  # offline, not there, not allowed
    try:
        found = set(hub.list_repo_files(name))
    except refusals as error:
        with contextlib.suppress(*refusals):
            return pathlib.Path(hub.snapshot_download(name, local_files_only=True))
        raise UserError(
            f"'{name}' is neither a file or folder here, nor in the Hugging Face "
            f"cache, nor to be had from the hub ({type(error).__name__}); where "
            f"there is a network, fetch {FILES[0]} (or {FILES[3]}), {CONFIGS[0]} and "
            f"the tokenizer's files of {name}, put them into one folder and give "
            "that folder"
        ) from error
    weights = next((file for file in FILES if file in found), None)
    if weights is None:
        raise UserError(
            f"the hub's {name} has none of {', '.join(FILES)}; give another id, or "
            "fetch its weights by hand and give the file"
        )
    parts = [weights.removesuffix(".index.json").replace(".", "-*.", 1)]
    wanted = [weights, *(parts if weights.endswith(".json") else []), *CONFIGS]
    return pathlib.Path(hub.snapshot_download(name, allow_patterns=wanted))


def weight_file(folder: pathlib.Path) -> pathlib.Path:
    """The file in a folder that holds the weights. Raises UserError if none or many."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    suffixes = (".safetensors", *TORCH)
    found = sorted(f for f in folder.iterdir() if f.suffix in suffixes)
    if len(found) == 1:
        return found[0]
    names = ", ".join(f.name for f in found) or "none"
    raise UserError(
        f"{folder} holds no {FILES[0]} or {FILES[3]} and {len(found)} other files of "
        f"weights ({names}); give one file"
    )


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of one file, or of all files that an index names."""
    if file.name.endswith(".index.json"):
        parts = sorted(set(_json(file).get("weight_map", {}).values()))
        missing = [part for part in parts if not (file.parent / part).is_file()]
        if missing or not parts:
            raise UserError(
                f"{file} names {', '.join(missing) or 'no files'}, which "
                f"{file.parent} lacks; fetch them into that folder"
            )
        return {
            k: v for part in parts for k, v in read(_inside(file.parent, part)).items()
        }
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in TORCH:
        return _read_torch(file)
    raise UserError(
        f"{file} is no file of weights; known are .safetensors, {', '.join(TORCH)}"
    )


def _inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    if pathlib.Path(name).name != name:
        raise UserError(
            f"the index in {folder} names '{name}', which is not a file of that "
            "folder; fetch the model again"
        )
    return folder / name


def _read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(file, "np") as tensors:
            return {name: _plain(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file} cannot be read as safetensors ({error}); fetch it again"
        ) from error


def _plain(x: np.ndarray) -> np.ndarray:
    return x if x.dtype.kind in "iub" else x.astype(np.float32, copy=False)


def _read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is PyTorch's, which is not installed; install it with pip install "
            "'.[torch]', or give a .safetensors file"
        ) from error
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, zip errors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(_refusal(file, " ".join(reason))) from error
    found = _state_dict(found)
    if not found:
        raise UserError(f"{file} holds no tensors by name; give a state dict")

    def plain(x: Any) -> np.ndarray:
        x = x.detach()
        return (x.float() if x.is_floating_point() else x).numpy()

    return {name: plain(x) for name, x in found.items()}


def _refusal(file: pathlib.Path, reason: str) -> str:
    if "TorchScript" in reason:
        way = f"torch.jit.load('{file}').state_dict()"
        kind = "is a TorchScript archive, a program and not only weights"
    elif "WeightsUnpickler" in reason or "Unsupported" in reason:
        way = f"torch.load('{file}', weights_only=False)['state_dict']"
        kind = "wants to run code when it is read (a pickle with more than tensors)"
    else:
        return (
            f"{file} cannot be read as a PyTorch file ({reason[:200]}); fetch it again"
        )
    return (
        f"{file} {kind}, which is refused; if you trust it, take its weights out in "
        f"Python with torch.save({way}, 'weights.pt') and give that file"
    )


def _state_dict(found: Any) -> dict[str, Any]:
    """The tensors by name, under the keys by which trainers wrap them."""
    while isinstance(found, Mapping):
        inner = [found[k] for k in ("state_dict", "model", "module") if k in found]
        if not inner or not isinstance(inner[0], Mapping):
            break
        found = inner[0]
    if not isinstance(found, Mapping):
        return {}
    return {str(k): v for k, v in found.items() if hasattr(v, "is_floating_point")}


def _json(file: pathlib.Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({error}); fetch it again") from error
