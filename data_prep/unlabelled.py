"""Sets to pre-train on: LUPerson's images; captions of LUPerson-T, LUPerson-MLLM,
SYNTH-PEDES and MALS with their images, or alone.

In: the folder that someone has. Out: a survey; all is of one split, `pretrain`.
"""

import json
import os
from collections.abc import Callable, Iterator

from data_prep import annotations
from data_prep.entries import PRETRAIN, Entry, Survey, in_order, placed
from data_prep.identities import annotation_file
from data_prep.raw import ARROW, Place, Raw, readable
from unipt_jax.data import images
from unipt_jax.errors import UserError

SAID = {  # images, as their authors count them
    "luperson": "4 M",
    "luperson_t": "1.3 M (others have seen 0.95 M)",
    "luperson_mllm": "1 M",
    "synth_pedes": "4.8 M",
    "mals": "1.5 M",
}


def luperson(folder: str | os.PathLike) -> Survey:
    """Every picture below the folder, archives read in place; its path is its id.
    What links to nothing is missing.

    Raises UserError where there is none.
    """
    return pictures(Raw(folder))


def pictures(raw: Raw) -> Survey:
    """As `luperson`, of a folder that is listed already."""
    entries = [Entry(readable(path), place, PRETRAIN) for path, place in raw.images()]
    notes = []
    for path in raw.dead:
        if path.lower().endswith(images.SUFFIXES):
            entries.append(Entry(readable(path), None, PRETRAIN))
        else:
            notes.append(f"{readable(path)} is a link to nothing")
    if not entries:
        raise UserError(
            f"no image in {raw.name} ({', '.join(images.SUFFIXES)}), at any depth, in "
            "tar and zip archives either; give the folder that holds some"
        )
    entries = in_order(entries)
    return Survey("luperson", raw, entries, [], notes=notes, said=SAID["luperson"])


def luperson_t(folder: str | os.PathLike, *, annotation: str = "") -> Survey:
    """LUPerson-T: Arrow files with the images in them, or else JSON files."""
    raw = Raw(folder)
    if arrows := raw.named(suffix=ARROW) if not annotation else []:
        entries = [entry for file in arrows for entry in _arrow_rows(raw, file)]
        if not entries:
            raise UserError(f"{raw.name}/{arrows[0]} has no rows; fetch it again")
        sources, rows = [f"{raw.name}/{file}" for file in arrows], len(entries)
        survey = Survey("luperson_t", raw, in_order(entries), sources)
        if again := rows - len(survey.entries):
            survey.notes.append(
                f"{again:,} of {rows:,} rows have the image_id of a row before: their "
                "captions are added to it, their pictures are not kept"
            )
        survey.said = SAID["luperson_t"]
        return survey
    return _read("luperson_t", raw, annotation, _said_in_list)


def _arrow_rows(raw: Raw, file: str) -> Iterator[Entry]:
    from data_prep.arrow import Batches  # few need pyarrow's 50 MB

    stem = file[: -len(ARROW)]
    for batch, row, values in Batches(f"{raw.root}/{file}").rows():
        where = f"{raw.name}/{file} row {row} of batch {batch}"
        item = annotations.Annotation(where, values)
        name = values.get("image_id")
        if name is None or name == "":
            name = f"{batch}-{row}"
        split = values.get("split")
        yield Entry(
            # Image ids begin anew in each file.
            image_id=f"{stem}/{name}",
            place=Place(file, "", batch, row),
            split=PRETRAIN,
            where=where,
            captions=item.captions("caption"),
            attributes={"split": split} if isinstance(split, str) else {},
        )


def luperson_mllm(folder: str | os.PathLike, *, annotation: str = "") -> Survey:
    """LUPerson-MLLM: {path: caption} in JSON files, one for each captioner; an image
    has the captions of all of them."""
    return _read("luperson_mllm", Raw(folder), annotation, _said_by_path)


def synth_pedes(folder: str | os.PathLike, *, annotation: str = "") -> Survey:
    """SYNTH-PEDES: persons with identities, captions, and what is known of them."""
    raw = Raw(folder)
    names = ("synthpedes_dataset.json", "synthpedes-dataset.json")
    annotation = annotation or annotation_file(raw, names, "synth_pedes")
    return _read("synth_pedes", raw, annotation, _of_synth_pedes)


def mals(folder: str | os.PathLike, *, annotation: str = "") -> Survey:
    """MALS: `*_attrs.json` with an image, a caption and 27 labels an entry."""
    raw = Raw(folder)
    if not annotation and not raw.named(suffix="_attrs.json"):
        annotation_file(raw, ("g_4x_attrs.json and other *_attrs.json",), "mals")
    return _read("mals", raw, annotation, _of_mals, suffix="_attrs.json")


def _read(
    name: str,
    raw: Raw,
    annotation: str,
    rows: Callable[[str], Iterator[Entry]],
    suffix: str = ".json",
) -> Survey:
    """Every JSON file of the folder, or the one given, read by `rows`."""
    files = [annotation] if annotation else []
    files = files or [f"{raw.name}/{file}" for file in raw.named(suffix=suffix)]
    if not files:
        annotation_file(raw, (f"*{suffix}",), name)
    entries = in_order([entry for file in files for entry in rows(file)])
    if not entries:
        raise UserError(f"{files[0]} has no entries; fetch it again")
    return Survey(name, raw, placed(raw, entries), files, said=SAID[name])


def _said_in_list(file: str) -> Iterator[Entry]:
    for item in annotations.entries(file, file):
        path = item.path("file_path", "image")
        captions = item.captions("captions", "caption")
        yield Entry(path, None, PRETRAIN, item.where, captions=captions)


def _said_by_path(file: str) -> Iterator[Entry]:
    for key, value in annotations.items(file, file):
        if isinstance(key, int):
            raise UserError(
                f"{file} is a list; expected an object of path: caption, as "
                '{"a/1.jpg": "A man ...", ...}'
            )
        item = annotations.Annotation(
            f"{file} '{key[:80]}'", {"path": key, "caption": value}
        )
        captions = item.captions("caption")
        yield Entry(item.path("path"), None, PRETRAIN, item.where, captions=captions)


def _of_synth_pedes(file: str) -> Iterator[Entry]:
    for item in annotations.entries(file, file):
        known = {
            name: item.values[name]
            for name in ("attributes", "prompt_caption")
            if item.values.get(name)
        }
        yield Entry(
            item.path("file_path"),
            None,
            PRETRAIN,
            item.where,
            person_id=item.number("id"),
            captions=item.captions("captions"),
            attributes={name: _as_text(value) for name, value in known.items()},
        )


def _of_mals(file: str) -> Iterator[Entry]:
    for item in annotations.entries(file, file):
        known = {n: item.values[n] for n in ("image_id", "label") if n in item.values}
        yield Entry(
            item.path("image", "file_path"),
            None,
            PRETRAIN,
            item.where,
            captions=item.captions("caption", "captions"),
            attributes={name: _as_text(value) for name, value in known.items()},
        )


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
