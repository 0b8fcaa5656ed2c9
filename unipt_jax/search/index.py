"""The index on disk: entries and unit vectors in, the same memory-mapped out.

A folder with `index.json`, which names the files of one generation: `embeddings-N.npy`,
a row an entry, and `entries-N.arrow`, what is known of each. A new generation is written
beside the old one, `index.json` last, so that whoever reads sees one or the other.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from unipt_jax import files
from unipt_jax.errors import UserError

FORMAT = "unipt_jax index 1"
DTYPES = ("float16", "float32")
INDEX, SKIPPED = "index.json", "skipped.jsonl"
# asked: the box as the user gave it, which may stand out of the picture; x, y, w, h: what
# of it lies in the picture; none: the whole picture.
ENTRIES = pa.schema(
    [
        pa.field("folder", pa.int32(), nullable=False),
        pa.field("path", pa.large_binary(), nullable=False),
        pa.field("asked", pa.binary(), nullable=False),
        *(pa.field(side, pa.int32(), nullable=False) for side in "xywh"),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
)
# Files of a generation, and what killed updates left of any.
_OURS = re.compile(
    r"(entries-\d+\.arrow|embeddings-\d+\.npy)(\..*\.partial)?"
    r"|(index\.json|skipped\.jsonl)\..*\.partial"
)
_TEXTS = ("name", "checkpoint", "fit", "fingerprint", "said")  # of a model
_TRIES = 5  # a reader's, while updates replace the files that it is about to open


@dataclasses.dataclass(frozen=True)
class Crop:
    """One entry of an index.

    folder: number of its folder in `Index.folders`. path: below that folder, "/" between
    parts; bytes that are no UTF-8 stand as \\xe9. box: x, y, w, h in pixels of the
    upright picture, None for all of it. bytes, mtime_ns, digest: of the file, when it
    was read; digest is its SHA-256 in hex. height, width: of the crop, in pixels.
    """

    folder: int
    path: str
    box: tuple[int, int, int, int] | None
    bytes: int
    mtime_ns: int
    digest: str
    height: int
    width: int

    @property
    def label(self) -> str:
        """What a person reads: "anna/1.jpg", or "street.jpg [10,20,64,128]"."""
        return (
            f"{self.path} [{','.join(map(str, self.box))}]" if self.box else self.path
        )


@dataclasses.dataclass(frozen=True)
class Model:
    """What an index was made with.

    name: as it can be loaded again, an absolute path or a hub id. checkpoint: of a run.
    size, fit: of CLIP weights as they come. fingerprint: `Encoder.fingerprint`. parts:
    what went into that, by name, to tell in what two models differ. said: the encoder's
    own name. width: P of the embeddings.
    """

    name: str
    checkpoint: str
    size: tuple[int, int] | None
    fit: str
    fingerprint: str
    said: str
    width: int
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Index:
    """An index that was read: `index[i]` is a `Crop`, `index.embeddings[i]` its vector.

    folder: where the index lies. folders: the folders of pictures, absolute. embeddings:
    (N, P) float16 or float32, memory-mapped, read-only, rows of length 1. skipped: how
    many files could not be read. boxes: the CSV whose boxes are its entries, absolute; ""
    where they are whole pictures. entries: the table of all, see `ENTRIES`.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        said: Mapping[str, Any],
        embeddings: np.ndarray,
        entries: pa.Table,
    ) -> None:
        """said: what index.json holds."""
        self.folder = folder
        self.folders = tuple(said["folders"])
        size = said["model"]["size"]
        size = size and tuple(size)
        self.model = Model(**(said["model"] | {"size": size}))
        self.skipped, self.boxes = int(said["skipped"]), str(said["boxes"])
        self.generation = int(said["generation"])
        self.embeddings, self.entries = embeddings, entries
        self._columns = {name: entries.column(name) for name in ENTRIES.names}

    def __len__(self) -> int:
        return len(self.entries)

    def _cell(self, name: str, i: int) -> Any:
        if not 0 <= i < len(self):
            raise IndexError(f"entry {i} of an index of {len(self)}")
        return self._columns[name][i].as_py()

    def __getitem__(self, i: int) -> Crop:
        row = {name: self._cell(name, i) for name in ENTRIES.names}
        box = tuple(row.pop(side) for side in "xywh")
        asked = row.pop("asked")
        row["path"] = row["path"].decode("utf-8", "backslashreplace")
        row["digest"] = row["digest"].hex()
        return Crop(box=box if asked else None, **row)

    def raw_path(self, i: int) -> bytes:
        """An entry's path below its folder, to the byte."""
        return self._cell("path", i)

    def file(self, i: int) -> pathlib.Path:
        """Where an entry's picture lay when it was read."""
        folder = self.folders[self._cell("folder", i)]
        return pathlib.Path(folder, os.fsdecode(self.raw_path(i)))


def local(folder: str | os.PathLike) -> pathlib.Path:
    """The folder of an index. Raises UserError for one that is not on this machine."""
    if "://" in os.fspath(folder):
        raise UserError(
            f"{folder} is no local folder, and an index is mapped into memory; keep it "
            "in one, and copy it where else it is wanted"
        )
    return pathlib.Path(os.path.abspath(os.path.expanduser(folder)))


def exists(folder: str | os.PathLike) -> bool:
    """Whether there is an index, of whatever format."""
    return (local(folder) / INDEX).is_file()


def read(folder: str | os.PathLike) -> Index:
    """Opens an index. Raises UserError where there is none, or one of another format,
    or a damaged one; OSError where index.json may not be read."""
    folder = local(folder)
    for _ in range(_TRIES):
        try:
            text = (folder / INDEX).read_text()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"{folder} holds no index; make one there with --config.model=MODEL "
                "--config.images=FOLDER"
            ) from error
        except UnicodeDecodeError as error:
            raise _damaged(folder, error) from error
        try:
            return _open(folder, text)
        except FileNotFoundError as error:  # an update may just have put it away
            missing = error
    raise _damaged(folder, missing) from missing


def _damaged(folder: pathlib.Path, error: Exception) -> UserError:
    return UserError(
        f"the index in {folder} is damaged ({' '.join(str(error).split())}); make it "
        "anew with --config.overwrite=True"
    )


def _open(folder: pathlib.Path, text: str) -> Index:
    try:
        said = json.loads(text)
        found = said.get("format")
    except (ValueError, RecursionError, AttributeError) as error:
        raise _damaged(folder, error) from error
    if found != FORMAT:
        raise UserError(
            f"{folder}/{INDEX} is of format {found!r}, and this version reads "
            f"'{FORMAT}'; make the index anew with --config.overwrite=True"
        )
    try:
        for name, size in said["files"].items():
            if (now := (folder / name).stat().st_size) != size:
                raise ValueError(f"{name} has {now} bytes of the {size} written")
        if not all(isinstance(said["model"][name], str) for name in _TEXTS):
            raise ValueError(f"the model's {', '.join(_TEXTS)} must be texts")
        entries, embeddings = _files(said["generation"])
        rows = np.load(folder / embeddings, mmap_mode="r", allow_pickle=False)
        table = read_table(folder / entries, ENTRIES)
        shape = (said["entries"], said["model"]["width"])
        if rows.shape != shape or len(table) != shape[0] or rows.dtype != said["dtype"]:
            raise ValueError(f"{rows.dtype} {rows.shape} and {len(table)} for {shape}")
        numbers = table.column("folder").to_numpy()
        if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= len(said["folders"]):
            raise ValueError("an entry of a folder that is not named")
        return Index(folder, said, np.asarray(rows), table)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error


def read_table(file: pathlib.Path, schema: pa.Schema) -> pa.Table:
    """A table of such columns, memory-mapped. Raises ValueError for anything else."""
    with pa.memory_map(os.fspath(file)) as source:
        table = pa.ipc.open_file(source).read_all().select(schema.names)
    if not table.schema.equals(schema):
        raise ValueError(
            f"{file.name} has other columns than {', '.join(schema.names)}"
        )
    table.validate(full=True)  # offsets that lead out of the file would end the process
    return table


def write(
    folder: pathlib.Path,
    *,
    folders: Sequence[str],
    model: Model,
    entries: pa.Table,
    rows: Iterable[np.ndarray],
    dtype: str,
    boxes: str = "",
    skipped: Sequence[tuple[str, str]] = (),
) -> Index:
    """Writes an index, or the next generation of the one that is there, and reads it.

    entries: as `ENTRIES` has them. rows: their embeddings, (n, P) blocks in the same
    order. boxes: as `Index.boxes`. skipped: path and reason of each file that could not be read. One process
    alone may write: see `shards.alone`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generation = _generation(folder) + 1
    named_entries, named_rows = _files(generation)
    with written(folder / named_rows) as out:
        shape = (len(entries), model.width)
        header = dict(descr=np.dtype(dtype).str, fortran_order=False, shape=shape)
        np.lib.format.write_array_header_1_0(out, header)
        for block in rows:
            out.write(np.ascontiguousarray(block, dtype))
    with written(folder / named_entries) as out:
        write_table(out, entries)
    said = dict(
        generation=generation,
        entries=len(entries),
        dtype=dtype,
        files={f: (folder / f).stat().st_size for f in (named_entries, named_rows)},
    )
    return _describe(folder, said, folders, model, boxes, skipped)


def restate(
    index: Index,
    *,
    folders: Sequence[str],
    model: Model,
    boxes: str = "",
    skipped: Sequence[tuple[str, str]] = (),
) -> Index:
    """Says anew where the pictures of an index lie, what made it, and what was skipped:
    its entries stay. Arguments as in `write`."""
    said = json.loads((index.folder / INDEX).read_text())
    return _describe(index.folder, said, folders, model, boxes, skipped)


def write_table(out: BinaryIO, table: pa.Table) -> None:
    """Writes a table so that a row is found at once, and the same bytes each time."""
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table.combine_chunks())


@contextlib.contextmanager
def written(file: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write that has its name when all of it is on the disk."""
    partial = files.partial_of(file)
    try:
        with open(partial, "wb") as out:
            yield out
        files.settle(partial, file)
    except (Exception, KeyboardInterrupt) as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or os.fspath(file)
        raise


def _files(generation: int) -> tuple[str, str]:
    """The names of a generation's entries and embeddings."""
    return f"entries-{generation}.arrow", f"embeddings-{generation}.npy"


def _generation(folder: pathlib.Path) -> int:
    """The number of the generation that is there; 0 where none or a damaged one is."""
    try:
        return int(json.loads((folder / INDEX).read_text())["generation"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _version() -> str:
    """This package's; "" where a clone is used that was never installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("unipt_jax")
    return ""


def _describe(folder, said, folders, model: Model, boxes: str, skipped) -> Index:
    """Makes the files of a generation the index, and removes those of others."""
    with written(folder / SKIPPED) as out:
        for path, reason in skipped:
            out.write(json.dumps({"path": path, "reason": reason}).encode() + b"\n")
    said |= {
        "format": FORMAT,
        "folders": list(folders),
        "model": dataclasses.asdict(model),
        "boxes": boxes,
        "skipped": len(skipped),
        "unipt_jax": _version(),
    }
    with written(folder / INDEX) as out:
        out.write(json.dumps(said, indent=2, sort_keys=True).encode() + b"\n")
    kept = {INDEX, SKIPPED, *said["files"]}
    for file in sorted(folder.iterdir()):
        if _OURS.fullmatch(file.name) and file.name not in kept:
            file.unlink()
    return read(folder)
