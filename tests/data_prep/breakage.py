"""What broken trees are made of: small pictures, entries, files with a mistake in them."""

import dataclasses
import io
import json
import os
import pathlib
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from PIL import Image

Make = Callable[[pathlib.Path], None]
GONE = object()  # the value of a field that is left out


@dataclasses.dataclass(frozen=True)
class Broken:
    """A tree with a mistake, and what must be said of it.

    name: of the test. set: which set it is given as. make: fills the folder `raw`. words:
    what one line of the answer has, all of it. args: more of the command line, in which
    {raw} and {here}, the folder that `raw` is in, are filled in. modes: "check" and
    "build", in both of which it is refused if nothing else is said. ready: whether `raw`
    is there before `make` is called.
    """

    name: str
    set: str
    make: Make
    words: tuple[str, ...]
    args: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("check", "build")
    ready: bool = True


def nothing(raw: pathlib.Path) -> None:
    """Leaves the folder as it is."""


def every(*makes: Make) -> Make:
    """One after the other."""

    def make(raw: pathlib.Path) -> None:
        for one in makes:
            one(raw)

    return make


def file(name: str, content: Any) -> Make:
    """A file below `raw` (or beside it, ../name): bytes or text as they are, the rest
    as JSON."""
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    if isinstance(content, str):
        content = content.encode("utf-8", "surrogatepass")

    def make(raw: pathlib.Path) -> None:
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return make


def folder(name: str) -> Make:
    """A folder."""
    return lambda raw: (raw / name).mkdir(parents=True)


def link(name: str, target: str) -> Make:
    """A symbolic link; a target that begins with / is below the folder of `raw`."""

    def make(raw: pathlib.Path) -> None:
        path = raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(f"{raw.parent}{target}" if target[0] == "/" else target)

    return make


def pipe(name: str) -> Make:
    """A named pipe, which whoever opens it waits for."""

    def make(raw: pathlib.Path) -> None:
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(raw / name)

    return make


def picture(red: int = 0, size: tuple[int, int] = (16, 32), kind: str = "PNG") -> bytes:
    """An encoded picture in one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(out, kind)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes that says it has so many pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def pictures(*names: str) -> Make:
    """A picture at each path, no two the same."""
    return every(*(file(name, picture(red)) for red, name in enumerate(names)))


# The annotation file of each set, and an entry of it that is right.
FILES = {
    "cuhk_pedes": "reid_raw.json",
    "icfg_pedes": "ICFG-PEDES.json",
    "rstp_reid": "data_captions.json",
    "luperson_t": "captions.json",
    "luperson_mllm": "qwen.json",
    "synth_pedes": "synthpedes_dataset.json",
    "mals": "g_4x_attrs.json",
}
RIGHT: dict[str, dict[str, Any]] = {
    "cuhk_pedes": {
        "split": "train",
        "captions": ["a man in red", "he walks"],
        "file_path": "cam_a/1.png",
        "id": 1,
    },
    "icfg_pedes": {
        "split": "train",
        "captions": ["a man in red"],
        "file_path": "train/1.png",
        "id": 0,
    },
    "rstp_reid": {
        "id": 0,
        "img_path": "1.png",
        "captions": ["a man in red", "he walks"],
        "split": "train",
    },
    "luperson_t": {"file_path": "a/1.png", "captions": ["a man in red"]},
    "synth_pedes": {
        "id": 0,
        "file_path": "a/1.png",
        "attributes": ["man", "red"],
        "captions": ["a man in red"],
        "prompt_caption": ["a man"],
    },
    "mals": {
        "image": "a/1.png",
        "caption": "a man in red",
        "image_id": "1",
        "label": [1, 0],
    },
}


def path_of(name: str) -> str:
    """The picture of that right entry."""
    entry = RIGHT[name]
    return entry.get("file_path") or entry.get("img_path") or entry["image"]


def entry(name: str, **changes: Any) -> dict[str, Any]:
    """A right entry of a set with some fields changed, added or, as GONE, left out."""
    values = RIGHT[name] | changes
    return {k: v for k, v in values.items() if v is not GONE}


def entries(name: str, *more: Any) -> Make:
    """An annotation: a right entry, whose picture is there, and then these."""
    right = pictures(path_of(name))
    return every(right, file(FILES[name], [RIGHT[name], *more]))


def field(name: str, key: str, value: Any, *words: str, label: str = "") -> Broken:
    """The second entry of a set's annotation has a wrong value in one field."""
    shown = label or f"{type(value).__name__}-{value}"[:40]
    if value is GONE:
        shown = label or "gone"
    wrong = entry(name, **{key: value})
    words = words or (f"'{key}'", "expected")
    words = (f"{FILES[name]} entry 2", *words)
    return Broken(f"{name}: {key} is {shown}", name, entries(name, wrong), words)


def text(name: str, content: Any, *words: str, label: str, **more: Any) -> Broken:
    """The whole annotation file of a set is this."""
    words = (FILES[name], *words)
    return Broken(f"{name}: {label}", name, file(FILES[name], content), words, **more)


def zipped(name: str, members: dict[str, bytes], change=lambda data: data) -> Make:
    """A zip archive, the bytes of which are changed by `change`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        for member, content in members.items():
            opened.writestr(member, content)
    return file(name, change(out.getvalue()))


def tarred(
    name: str, members: dict[str, bytes], change=lambda data: data, mode: str = "w"
) -> Make:
    """A tar archive, the bytes of which are changed by `change`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as opened:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return file(name, change(out.getvalue()))


def arrow(
    name: str, *batches: Any, change=lambda data: data, schema: pa.Schema | None = None
) -> Make:
    """An Arrow file of these record batches, or dicts of columns."""
    batches = [b if isinstance(b, pa.RecordBatch) else _batch(b) for b in batches]
    out = io.BytesIO()
    with pa.ipc.new_file(out, schema or batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return file(name, change(out.getvalue()))


def _batch(columns: dict[str, Any]) -> pa.RecordBatch:
    arrays = [c if isinstance(c, pa.Array) else pa.array(c) for c in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))
