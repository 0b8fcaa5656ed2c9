"""Weights across: tensors of any layout in, our parameters out, and back. Strictly.

Every parameter that is asked for is loaded or named in `keep_init`; every tensor is
used, belongs to a part that was not asked for, or is named in `ignore`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from unipt_jax import weights
from unipt_jax.errors import UserError

# Not weights: what some frameworks keep beside them.
BUFFERS = r"(^|\.)(position_ids|attn_mask|input_resolution|context_length|vocab_size)$"
POSITIONS = "image/position_embedding"
TOKENS = "text/token_embedding/embedding"
RESIZE = ("bicubic", "bilinear_align_corners")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What the conversion must know of our image tower.

    patch: height and width of a patch in pixels. grid: patches down and across.
    prefix: tokens before the first patch. Source of the numbers: `models.vit.ViT`.
    """

    patch: tuple[int, int]
    grid: tuple[int, int]
    prefix: int

    @classmethod
    def of(cls, image) -> "Geometry":
        """Of a `models.vit.ViT`, or of a config's `model.image` section."""
        h, w = image.patch
        return cls((h, w), (image.height // h, image.width // w), image.prefix)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may allow.

    keep_init: patterns of our paths that may stay as they are. ignore: patterns of
    their names that need not be used. distillation: "keep" or "drop" DeiT's second
    token. resize: how position embeddings come to another grid, "bicubic" or, as the
    released code, "bilinear_align_corners". grid: patches down and across in the file,
    where its number of positions does not tell. extend: tokens that were added to the
    vocabulary after the file was made start as the mean of the others.
    """

    keep_init: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    distillation: str = "keep"
    resize: str = "bicubic"
    grid: tuple[int, int] | None = None
    extend: bool = False

    def __post_init__(self) -> None:
        for field, allowed in (
            ("distillation", ("keep", "drop")),
            ("resize", RESIZE),
        ):
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"init.{field} '{getattr(self, field)}' is not one of "
                    + ", ".join(allowed)
                )


@dataclasses.dataclass(frozen=True)
class Taken:
    """What `to_ours` found.

    source: where from. params: path -> float32 array. layout: the name of theirs. kept:
    our paths that stay as they are. left_out: their names that were not used. notes:
    what was changed on the way, a sentence each.
    """

    source: str
    params: dict[str, np.ndarray]
    layout: str
    kept: tuple[str, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def canonical(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without wrappers' prefixes, TensorFlow's names of norms, and buffers."""
    out = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^(_orig_mod\.|module\.)+", "", name)
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if not re.search(BUFFERS, name):
            out[name] = tensor
    return out


def to_ours(
    tensors: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    geometry: Geometry,
    *,
    source: str,
    options: Options = Options(),
) -> Taken:
    """Their tensors -> our parameters.

    wanted: our paths and their shapes. source: where the tensors are from, for errors.
    Raises UserError that lists every missing, unused and misshapen tensor, or says
    which layouts are known where the names fit none.
    """
    tensors = canonical(tensors)
    layout = weights.detect(tensors, wanted)
    if layout is None:
        raise UserError(
            f"{source}: the names of its {len(tensors)} tensors "
            f"({', '.join(sorted(tensors)[:3])} ...) are of no known layout; known are "
            + ", ".join(dict.fromkeys(known.name for known in weights.LAYOUTS))
            + " and unipt_jax exports"
        )
    work = _Work(tensors, layout, geometry, options)
    work.distillation(wanted)
    for path, shape in wanted.items():
        work.take(path, shape)
    work.finish(source, wanted)
    return Taken(
        source,
        {path: work.params[path] for path in wanted if path in work.params},
        layout.name,
        tuple(work.kept),
        tuple(sorted(work.left_out)),
        tuple(work.notes),
    )


class _Work:
    """One conversion under way: what was used, and everything that is wrong."""

    def __init__(self, tensors, layout, geometry, options):
        self.tensors, self.layout = dict(tensors), layout
        self.geometry, self.options = geometry, options
        self.params: dict[str, np.ndarray] = {}
        self.used: set[str] = set()
        self.kept: list[str] = []
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self.missing: list[str] = []
        self.misshapen: list[str] = []

    def distillation(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Takes DeiT's second token out, where that was chosen and our tower has none."""
        name = self.layout.distillation
        self.prefix = 2 if name in self.tensors else 1
        self.drops = (
            self.prefix == 2
            and self.options.distillation == "drop"
            and "image/distillation_token" not in wanted
        )
        if self.drops and any(path.startswith("image/") for path in wanted):
            self.used.add(name)
            self.left_out.append(name)
            self.notes.append("DeiT's distillation token and its position are dropped")

    def take(self, path: str, shape: tuple[int, ...]) -> None:
        """Converts the tensor that holds `path`, unless it came with another."""
        if path in self.params:
            self._check(path, shape)
            return
        row, number = self.layout.row(path)
        name = row.theirs.replace("{i}", number) if row else ""
        original = dict(self.layout.copies).get(name)
        if name not in self.tensors and original in self.tensors:
            name = original
        if name not in self.tensors:
            if _matches(path, self.options.keep_init):
                self.kept.append(path)
            else:
                self.missing.append(f"{name or '(no such name there)'} -> {path}")
            return
        self.used.add(name)
        paths = [ours.replace("{i}", number) for ours in row.ours]
        try:
            found = row.convert.to_ours(self.tensors[name], self.geometry.patch)
        except (ValueError, IndexError):  # not even the number of axes fits
            shown = self.tensors[name].shape
            self.misshapen.append(f"{name} {shown} -> {path} {shape}")
            return
        self.params |= dict(zip(paths, map(_float32, found), strict=True))
        if path == POSITIONS:
            self._positions()
        if path == TOKENS and self.options.extend:
            self._extend(shape[0])
        self._check(path, shape)

    def _check(self, path: str, shape: tuple[int, ...]) -> None:
        if self.params[path].shape != tuple(shape):
            there = self.params[path].shape
            self.misshapen.append(f"{path} is {there} there, {tuple(shape)} here")

    def _positions(self) -> None:
        """Position embeddings to our grid and our number of class tokens."""
        table, ours = self.params[POSITIONS], self.geometry
        if table.ndim != 2 or len(table) <= self.prefix:
            return  # reported as misshapen
        if self.drops:
            table = np.delete(table, 1, axis=0)
        prefix = self.prefix - self.drops
        patches = len(table) - prefix
        grid = self.options.grid or _grid(patches, ours.grid)
        if grid is None or math.prod(grid) != patches or prefix > ours.prefix:
            return  # the shape will not fit, and is reported as such
        if prefix < ours.prefix:  # a second token that keeps its initial value
            table = np.insert(table, 1, table[0], axis=0)
            self.notes.append("the distillation token takes the class token's position")
        if grid != ours.grid:
            self.notes.append(
                f"position embeddings {grid[0]}x{grid[1]} -> "
                f"{ours.grid[0]}x{ours.grid[1]}, {self.options.resize}"
            )
        self.params[POSITIONS] = resize_positions(
            table, ours.prefix, grid, ours.grid, self.options.resize
        )

    def _extend(self, vocabulary: int) -> None:
        table = self.params[TOKENS]
        more = vocabulary - len(table) if table.ndim == 2 and len(table) else 0
        if more > 0:
            mean = table.mean(0, keepdims=True, dtype=np.float64).astype(table.dtype)
            self.params[TOKENS] = np.concatenate([table, np.repeat(mean, more, 0)])
            self.notes.append(f"{more} added to the vocabulary, the mean of the others")

    def finish(self, source: str, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Sorts out what was not used. Raises UserError if anything is wrong."""
        parts = {path.split("/")[0] for path in wanted}
        unused = []
        for name in sorted(self.tensors.keys() - self.used):
            part = self.layout.part(name)
            another = part is not None and part not in parts
            if another or self._is_copy(name) or _matches(name, self.options.ignore):
                self.left_out.append(name)
            else:
                unused.append(f"{name} {tuple(self.tensors[name].shape)}")
        problems = [
            f"{len(items)} {kind}: {', '.join(items)}"
            for kind, items in (
                ("missing", self.missing),
                ("unused", unused),
                ("misshapen", self.misshapen),
            )
            if items
        ]
        if problems:
            raise UserError(
                f"{source} ({self.layout.name}) does not fit: {'; '.join(problems)}. "
                "Choose the model's fields after the file, or name what may stay as it "
                "is in init.keep_init (our paths) and what is not needed in init.ignore "
                "(their names), regular expressions both; init.distillation=drop drops "
                "DeiT's second token"
            )

    def _is_copy(self, name: str) -> bool:
        original = dict(self.layout.copies).get(name)
        return original in self.tensors and np.array_equal(
            self.tensors[name], self.tensors[original]
        )


def _float32(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float32, order="C")


def _grid(patches: int, ours: tuple[int, int]) -> tuple[int, int] | None:
    side = math.isqrt(patches)
    if side * side == patches:
        return side, side
    return ours if math.prod(ours) == patches else None


def resize_positions(
    table: np.ndarray,
    prefix: int,
    old: tuple[int, int],
    new: tuple[int, int],
    method: str = "bicubic",
) -> np.ndarray:
    """Position embeddings of one grid of patches -> of another.

    table: (prefix + old[0] * old[1], D); the first `prefix` rows, of class tokens, stay.
    method: "bicubic" (cubic convolution with a = -0.75, pixel centres aligned, no
    antialiasing) or "bilinear_align_corners": `torch.nn.functional.interpolate`'s two
    ways, with align_corners False and True.
    """
    tokens, patches = table[:prefix], table[prefix:]
    if old == new:
        return table
    make = {"bicubic": _cubic, "bilinear_align_corners": _linear}[method]
    x = patches.reshape(*old, -1).astype(np.float64)
    x = np.einsum("ah,hwd->awd", make(old[0], new[0]), x)
    x = np.einsum("bw,awd->abd", make(old[1], new[1]), x)
    x = x.reshape(new[0] * new[1], -1).astype(table.dtype)
    return np.concatenate([tokens, x])


def _cubic(old: int, new: int) -> np.ndarray:
    """(new, old) weights of cubic convolution (Keys, 1981); edges are repeated."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(centre).astype(int) - 1
    out = np.zeros((new, old))
    for tap in range(4):
        at = first + tap
        x = np.abs(centre - at)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        np.add.at(
            out,
            (np.arange(new), np.clip(at, 0, old - 1)),
            np.where(x <= 1, near, far),
        )
    return out


def _linear(old: int, new: int) -> np.ndarray:
    """(new, old) weights of linear interpolation that maps corners to corners."""
    centre = np.arange(new) * ((old - 1) / max(new - 1, 1))
    at = np.minimum(np.floor(centre).astype(int), max(old - 2, 0))
    part = centre - at
    out = np.zeros((new, old))
    out[np.arange(new), at] += 1 - part
    out[np.arange(new), np.minimum(at + 1, old - 1)] += part
    return out


def to_theirs(
    params: Mapping[str, np.ndarray], layout: weights.Layout, patch: tuple[int, int]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Our parameters by path -> their tensors, and which of ours they have no name for.

    patch: height and width of a patch.
    """
    out, left = {}, []
    for path in params:
        row, number = layout.row(path)
        if row is None:
            left.append(path)
            continue
        name = row.theirs.replace("{i}", number)
        if name not in out:
            ours = [params[p.replace("{i}", number)] for p in row.ours]
            out[name] = np.asarray(row.convert.to_theirs(ours, patch), order="C")
    return out, tuple(left)
