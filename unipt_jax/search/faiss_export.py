"""The index for those who serve elsewhere: a FAISS file, and what its numbers mean."""

import json
import os
import pathlib
import sys

import numpy as np
from tqdm import tqdm

from unipt_jax.errors import UserError
from unipt_jax.search import index as indexes
from unipt_jax.search.index import Index

BLOCK = 16_384  # entries at once


def write(index: Index, file: str | os.PathLike) -> None:
    """Writes `file`, a faiss `IndexFlatIP`, and beside it `file`.jsonl, a line an entry.

    The vectors are float32, those of the index to the bit (a float16 is a float32, too),
    so an exact search by `faiss.read_index(file).search(query, k)` finds what ours does.
    The lines stand in the order of faiss's numbers: path, folder, box, digest. Both
    files are written before either has its name; a kill between the two namings leaves
    new lines beside old vectors, until the same command is run again. All vectors are
    in memory at once, 4 bytes a number: 3 GB for a million of width 768.

    Raises UserError where faiss is not installed, or the file cannot be one.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "an export to FAISS needs faiss, which is not installed; install it with "
            "pip install '.[faiss]'"
        ) from error
    file = pathlib.Path(os.path.abspath(os.path.expanduser(file)))
    lines = file.with_name(f"{file.name}.jsonl")
    for path in (file, lines):
        if path.is_dir():
            raise UserError(
                f"--config.faiss={path} is a folder; give the file to write"
            )
    if file.parent == index.folder:
        raise UserError(f"--config.faiss={file} is in the index; give another folder")
    if file.exists() and not _is_faiss(file):
        raise UserError(
            f"--config.faiss={file} is there, and no FAISS index; give another name"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    flat = faiss.IndexFlatIP(index.embeddings.shape[1])
    for begin in _progress(range(0, len(index), BLOCK), "vectors"):
        some = index.embeddings[begin : begin + BLOCK]
        flat.add(np.ascontiguousarray(some, np.float32))
    with indexes.written(file) as vectors, indexes.written(lines) as entries:
        for number in _progress(range(len(index)), "entries"):
            entries.write(_line(index, number))
        # By a callback, so that a full disk is Python's OSError and no abort of faiss's.
        faiss.write_index(flat, faiss.PyCallbackIOWriter(vectors.write))
    print(f"{len(index)} vectors in {file}; {lines} says which is which", flush=True)


def _is_faiss(file: pathlib.Path) -> bool:
    """Whether a file is one that `write` wrote: a flat index by inner product."""
    with open(file, "rb") as some:
        return some.read(4) == b"IxFI"


def _line(index: Index, number: int) -> bytes:
    crop = index[number]
    said = {
        "path": crop.path,
        "folder": index.folders[crop.folder],
        "box": crop.box,
        "digest": crop.digest,
    }
    return json.dumps(said).encode() + b"\n"  # escaped: a folder may be no UTF-8


def _progress(numbers: range, what: str) -> tqdm:
    return tqdm(numbers, desc=f"FAISS: {what}", delay=2, leave=False, file=sys.stderr)
