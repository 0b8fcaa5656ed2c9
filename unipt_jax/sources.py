"""Where weights come from: a folder, a file or a Hugging Face hub id; tensors leave.

safetensors are read as they are, PyTorch's files with `weights_only`: nothing that a
file says is ever executed.
"""

import dataclasses
import json
import os
import pathlib
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  teaches numpy bfloat16, which safetensors may hold
import numpy as np
import safetensors

from unipt_jax.errors import UserError, explain_os_error

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
SUFFIXES = (".safetensors", *TORCH)
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
        """Patches down and across, where config.json says so.

        Raises UserError where what it says are no sizes.
        """
        config = self.configs.get("config.json", {})
        ours = _section(config, "model")  # a run or an export of ours
        if {"height", "width", "patch"} <= _section(ours, "image").keys():
            return grid_of(ours["image"])
        config = _section(config, "vision_config") or config
        size, patch = config.get("image_size"), config.get("patch_size")
        if size is None or patch is None:
            return None
        try:
            (h, w), (ph, pw) = _pair(size), _pair(patch)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.folder / 'config.json'} has image_size {size!r} and patch_size "
                f"{patch!r}; each must be a whole number of pixels or a pair of them: "
                "correct the file, or fetch it again"
            ) from error
        return h // ph, w // pw


def grid_of(image: Mapping[str, Any]) -> tuple[int, int]:
    """Patches down and across of a config's `model.image` section."""
    h, w = image["patch"]
    return image["height"] // h, image["width"] // w


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a JSON object; empty where it is not there or is no object."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _pair(value: Any) -> tuple[int, int]:
    h, w = value if isinstance(value, (list, tuple)) else (value, value)
    if type(h) is not int or type(w) is not int or min(h, w) < 1:
        raise ValueError(value)
    return h, w


def open_source(name: str | os.PathLike) -> Source:
    """Reads the weights that `name` stands for: a folder, a file or a hub id.

    Floating-point tensors are float32 afterwards. Raises UserError, with what to fetch
    and where to put it, if there are none, and for a file that cannot be trusted.
    """
    path = locate(name)
    file = path if path.is_file() else weight_file(path)
    folder = file.parent
    configs = {n: _object(folder / n) for n in CONFIGS if (folder / n).is_file()}
    return Source(str(name), folder, read(file), configs)


def locate(name: str | os.PathLike) -> pathlib.Path:
    """The folder or file of that name, or the cached snapshot of a hub id."""
    path = pathlib.Path(os.path.expanduser(name))
    if path.exists():
        return path
    check_id(name)
    return _fetch(str(name))


def check_id(name: str | os.PathLike) -> None:
    """Raises UserError where what is not here cannot be the id of a hub either."""
    path = pathlib.Path(os.path.expanduser(name))
    if not HUB_ID.fullmatch(str(name)) or path.suffix in SUFFIXES:
        raise UserError(
            f"there is no file or folder {path}; give one that holds weights "
            f"({', '.join(FILES[:1] + FILES[3:4])}, .pt, .ckpt), or a Hugging Face hub "
            "id such as google/vit-base-patch16-384"
        )


def _fetch(name: str) -> pathlib.Path:
    """The snapshot of a hub id, from the cache where the hub cannot be reached."""
    import huggingface_hub as hub

    try:
        files = hub.model_info(name).siblings or ()  # unlike a listing, tried once
        wanted = _wanted({file.rfilename for file in files})
        if wanted:
            return pathlib.Path(hub.snapshot_download(name, allow_patterns=wanted))
    # Offline, not there, not allowed: what is raised has no base but this one, and its
    # HTTP library's name depends on the version.
    except Exception as error:
        cached = _cached(name)
        if cached is not None:
            return cached
        if isinstance(error, OSError) and explain_os_error(error):
            raise  # the disk, not the hub
        raise UserError(
            f"'{name}' is neither a file or folder here, nor are its weights in the "
            f"Hugging Face cache or to be had from the hub ({type(error).__name__}); "
            f"where there is a network, fetch {FILES[0]} (or {FILES[3]}), {CONFIGS[0]} "
            f"and the tokenizer's files of {name}, put them into one folder and give "
            "that folder"
        ) from error
    raise UserError(
        f"the hub's {name} has none of {', '.join(FILES)}; give another id, or "
        "fetch its weights by hand and give the file"
    )


def _wanted(found: Collection[str]) -> list[str]:
    """Of a repository's files, patterns of those to fetch; none without weights."""
    weights = next((file for file in FILES if file in found), None)
    if weights is None:
        return []
    parts = [weights.removesuffix(".index.json").replace(".", "-*.", 1)]
    return [weights, *(parts if weights.endswith(".json") else []), *CONFIGS]


def _cached(name: str) -> pathlib.Path | None:
    """The folder of a hub id's weights in the cache, whatever else it lacks."""
    import huggingface_hub as hub

    try:
        found = [hub.try_to_load_from_cache(name, file) for file in FILES]
    except ValueError:  # no hub has an id such as a..b
        return None
    return next((pathlib.Path(f).parent for f in found if isinstance(f, str)), None)


def weight_file(folder: pathlib.Path) -> pathlib.Path:
    """The file in a folder that holds the weights. Raises UserError if none or many."""
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES and f.is_file())
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
        return {k: v for part in _parts(file) for k, v in read(part).items()}
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    if file.suffix in TORCH:
        return _read_torch(file)
    raise UserError(f"{file} is no file of weights; known are {', '.join(SUFFIXES)}")


def _parts(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names. Raises UserError unless all lie beside it."""
    names = set(map(str, _section(_object(index), "weight_map").values()))
    if not names:
        raise UserError(f"{index} names no files; fetch it again")
    for name in names:
        path = pathlib.PurePath(name)
        if path.name != name or path.suffix not in SUFFIXES:
            raise UserError(
                f"{index} names '{name}', which is no file of weights of that folder; "
                "fetch the model again"
            )
    parts = [index.parent / name for name in sorted(names)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise UserError(
            f"{index} names {', '.join(missing)}, which {index.parent} lacks; fetch "
            "what is missing into that folder"
        )
    return parts


def _read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(file, "np") as tensors:
            return {name: _plain(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{file} cannot be read as safetensors ({error}); fetch it again"
        ) from error
    except (AttributeError, TypeError) as error:  # numpy has no such type: 8-bit floats
        raise UserError(
            f"{file} holds numbers of a type that cannot be read ({error}); convert "
            "them to float32 or bfloat16"
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
        with warnings.catch_warnings():  # what they say, a refusal says better
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, zip errors
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(_refusal(file, " ".join(reason))) from error
    found = _state_dict(found)
    if not found:
        raise UserError(f"{file} holds no tensors by name; give a state dict")

    def plain(name: str, x: Any) -> np.ndarray:
        try:
            x = x.detach()
            return (x.float() if x.is_floating_point() else x).numpy()
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise UserError(
                f"{file}: {name} has no plain numbers (it is sparse, quantised or on "
                "the meta device); save it as a dense tensor"
            ) from error

    return {name: plain(name, x) for name, x in found.items()}


def _refusal(file: pathlib.Path, reason: str) -> str:
    with file.open("rb") as stream:
        start = stream.read(2)
    pickled = start == b"PK" or start[:1] == b"\x80"  # in a zip archive, or bare
    if "TorchScript" in reason:
        way = f"torch.jit.load({str(file)!r}).state_dict()"
        kind, more = "is a TorchScript archive, a program and not only weights", ""
    elif pickled and "Weights only load failed" in reason:
        way = f"torch.load({str(file)!r}, weights_only=False)['state_dict']"
        kind = "wants to run code when it is read (a pickle with more than tensors)"
        more = "; its key may be another than 'state_dict', such as 'model'"
    else:
        return (
            f"{file} cannot be read as a PyTorch file ({_why(start, reason)}); fetch "
            "it again"
        )
    return (
        f"{file} {kind}, which is refused; if you trust it, take its weights out in "
        f"Python with torch.save({way}, 'weights.pt') and give that file{more}"
    )


def _why(start: bytes, reason: str) -> str:
    if not start:
        return "it is empty"
    if "Weights only load failed" in reason:  # the rest advises to run what it holds
        return f"it begins with {start!r}"
    return reason[:200]


def _state_dict(found: Any) -> dict[str, Any]:
    """The tensors by name, under the keys by which trainers wrap them."""
    for _ in range(8):  # a pickle may hold itself
        if not isinstance(found, Mapping):
            break
        inner = [found[k] for k in ("state_dict", "model", "module") if k in found]
        if not inner or not isinstance(inner[0], Mapping):
            break
        found = inner[0]
    if not isinstance(found, Mapping):
        return {}
    return {str(k): v for k, v in found.items() if hasattr(v, "is_floating_point")}


def _object(file: pathlib.Path) -> Mapping[str, Any]:
    """The JSON object that a file holds. Raises UserError where it holds none."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object; fetch it again")
    return content
