"""Small trees as the sets to pre-train on lie on disk: a folder in, files in it, and the
records that they are to become, in order."""

import gzip
import io
import json
import pathlib
import tarfile
import zipfile
from collections.abc import Iterable, Mapping

import pyarrow as pa
from PIL import Image

from unipt_jax.data.records import PersonRecord

PACKED = (".tar", ".tar.gz", ".tgz", ".zip")
CAPTIONERS = ("qwen_formal", "qwen_plain", "internvl_formal", "internvl_plain")


def picture(number: int) -> bytes:
    """A plain JPEG, which is stored as it is; every number has another one."""
    out = io.BytesIO()
    image = Image.new("RGB", (16, 32), (200, 40, 60))
    image.paste((20, 60, 200), (0, 0, 1 + number % 16, 1 + number // 16 % 32))
    image.save(out, "JPEG", comment=str(number).encode())
    return out.getvalue()


def sentence(number: int, what: str = "coat") -> str:
    """A caption that names its picture."""
    return f'A woman, number {number}, wears a "red" {what} and carries a bag – größer.'


def loose(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Files by path."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def tar(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar archive as GNU tar writes it, folders and all."""
    out, folders = io.BytesIO(), set()
    with tarfile.open(fileobj=out, mode="w") as opened:
        for path, content in files:
            above = path.rpartition("/")[0]
            if above and above not in folders and ".." not in above:
                item = tarfile.TarInfo(above)
                item.type = tarfile.DIRTYPE
                opened.addfile(item)
                folders.add(above)
            item = tarfile.TarInfo(path)
            item.size = len(content)
            opened.addfile(item, io.BytesIO(content))
    return out.getvalue()


def pack(file: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """An archive of the kind that its name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.name.endswith(".zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            for path, content in files.items():
                opened.writestr(path, content)
        return
    content = tar(files.items())
    compressed = file.name.endswith(("gz", ".tgz"))
    file.write_bytes(gzip.compress(content, mtime=0) if compressed else content)


def _records(files: Mapping[str, bytes], **options) -> list[PersonRecord]:
    return [PersonRecord(files[i], i, i, **options) for i in sorted(files)]


def luperson(folder: pathlib.Path, count: int = 6) -> list[PersonRecord]:
    """Pictures loose, nested, and in an archive of each kind."""
    files, number = {}, 0
    for where in ("", "deep/er/", *(f"part{i}{s}" for i, s in enumerate(PACKED))):
        inner = {f"cam_{k % 2}/{k:03d}.jpg": picture(number + k) for k in range(count)}
        number += count
        if where.endswith(PACKED):
            # In the order of their paths: one that is wound is read in its own.
            pack(folder / where, dict(sorted(inner.items())))
            where += "/"
        else:
            loose(folder / where, inner)
        files |= {where + path: content for path, content in inner.items()}
    return _records(files)


def _dump(file: pathlib.Path, values: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def luperson_t(folder: pathlib.Path, count: int = 5) -> list[PersonRecord]:
    """JSON: a list of {file_path, captions}."""
    out, entries = [], []
    for number in range(count):
        path = f"videos/{number:04d}.jpg"
        said = (sentence(number), sentence(number, "hat"))
        entries.append({"file_path": path, "captions": list(said)})
        out.append(PersonRecord(picture(number), path, path, captions=said))
    _dump(folder / "luperson_t.json", entries)
    loose(folder, {r.file_path: r.image for r in out})
    return out


def arrow_file(
    file: pathlib.Path, rows: list[dict], *, stream: bool = False, batch: int = 2
) -> None:
    """Rows in batches, in Arrow's file format or its stream format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    opener = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(file), "wb") as sink, opener(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=batch)


def luperson_t_arrow(
    folder: pathlib.Path,
    count: int = 5,
    *,
    stream: bool = False,
    wrapped: bool = False,
    listed: bool = False,
) -> list[PersonRecord]:
    """Two Arrow files. wrapped: images as {bytes, path}. listed: captions as lists."""
    out = []
    for split, first in (("train", 0), ("val", 100)):
        rows = []
        for number in range(first, first + count):
            encoded, said = picture(number), [sentence(number)]
            said += [sentence(number, "hat")] if listed else []
            row = {"image": {"bytes": encoded, "path": None} if wrapped else encoded}
            row |= {"caption": said if listed else said[0]}
            rows.append(row | {"image_id": number - first, "split": split})
            name = f"LUPerson_{split}/{number - first}"
            record = PersonRecord(encoded, name, name, captions=tuple(said))
            record.attributes["split"] = split
            out.append(record)
        arrow_file(folder / f"LUPerson_{split}.arrow", rows, stream=stream)
    return out


def luperson_mllm(folder: pathlib.Path, count: int = 5) -> list[PersonRecord]:
    """{path: caption}, a file for each captioner; the last has no caption of image 0."""
    paths = [f"images/{n % 2}/{n}.jpg" for n in range(count)]
    said = {path: [] for path in paths}
    for captioner in sorted(CAPTIONERS):
        skipped = 1 if captioner == max(CAPTIONERS) else 0
        of = {
            p: sentence(n, captioner)
            for n, p in enumerate(paths)
            if not (skipped and n == 0)
        }
        _dump(folder / f"{captioner}.json", of)
        for path, caption in of.items():
            said[path].append(caption)
    loose(folder, {path: picture(n) for n, path in enumerate(paths)})
    return [
        PersonRecord(picture(n), path, path, captions=tuple(said[path]))
        for n, path in enumerate(paths)
    ]


def synth_pedes(folder: pathlib.Path, count: int = 6) -> list[PersonRecord]:
    """Two images a person, two captions an image."""
    out, entries = [], []
    for number in range(count):
        path, person = f"Part1/{number // 2}/{number}.jpg", 50 + number // 2
        said = (sentence(number), sentence(number, "hat"))
        known = {"attributes": ["female", "red coat"], "prompt_caption": ["A photo."]}
        entries.append(
            {"id": person, "file_path": path, "captions": list(said)} | known
        )
        attributes = {name: json.dumps(value) for name, value in known.items()}
        out.append(
            PersonRecord(
                picture(number), path, path, person, number // 2, said, attributes
            )
        )
    _dump(folder / "synthpedes_dataset.json", entries)
    loose(folder, {r.file_path: r.image for r in out})
    return out


def mals(folder: pathlib.Path, count: int = 4) -> list[PersonRecord]:
    """Two `*_attrs.json`, each entry with a caption and 27 labels."""
    out = []
    for part in ("g_4x", "c_g_a_0"):
        entries = []
        for number in range(count):
            label = [(number + k) % 2 for k in range(27)]
            path, said = f"{part}/{number}.jpg", sentence(number, part)
            entries.append(
                {"image": path, "caption": said, "image_id": number, "label": label}
            )
            known = {"image_id": str(number), "label": json.dumps(label)}
            encoded = picture(number + 50 * (part == "g_4x"))
            out.append(
                PersonRecord(encoded, path, path, captions=(said,), attributes=known)
            )
        _dump(folder / f"{part}_attrs.json", entries)
    loose(folder / "gene_crop", {r.file_path: r.image for r in out})
    return sorted(out, key=lambda r: r.file_path)


TREES = {
    "luperson": luperson,
    "luperson_t": luperson_t,
    "luperson_mllm": luperson_mllm,
    "synth_pedes": synth_pedes,
    "mals": mals,
}
