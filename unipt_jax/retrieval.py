"""A split as retrieval sees it, read once, and its embeddings.

Every caption of a split is a query, every image of it is gallery, its own image too; a
match is the same identity, as the field counts.
"""

import dataclasses
import os
from collections.abc import Collection, Iterable, Sequence

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from unipt_jax import sharding
from unipt_jax.data import pipeline
from unipt_jax.data.records import UNKNOWN, PersonRecord, Records
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """One split, or some persons of it, read once: queries, gallery and who is who.

    name: for reports. folder, split: where it is from. records: N, the gallery.
    queries: all Q captions. query_image: (Q,) the gallery number of each one's own
    image. person_ids: (N,) of the gallery; an image of unknown identity is a person by
    itself.
    """

    name: str
    folder: str
    split: str
    records: Sequence[PersonRecord]
    queries: tuple[str, ...]
    query_image: np.ndarray
    person_ids: np.ndarray

    @property
    def query_ids(self) -> np.ndarray:
        """(Q,) person ids of the queries."""
        return self.person_ids[self.query_image]


class _Some(Sequence):
    """Some records of a split, in its order."""

    def __init__(self, records: Records, kept: Sequence[int]) -> None:
        self._records, self._kept = records, kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> PersonRecord:
        return self._records[self._kept[index]]


def read_set(
    folder: str | os.PathLike,
    split: str,
    *,
    labels: Collection[int] | None = None,
    name: str = "",
) -> RetrievalSet:
    """Reads a split's captions and identities.

    labels: of the persons that are taken, by default all. name: by default
    `FOLDER/SPLIT`. Raises UserError if there is no such split, or no caption in it.
    """
    records: Sequence[PersonRecord] = Records(folder, split, PersonRecord)
    wanted = None if labels is None else set(labels)
    kept, queries, query_image, ids = [], [], [], []
    for index in progress(range(len(records)), f"reading {epath.Path(folder).name}"):
        record = records[index]
        if wanted is not None and record.label not in wanted:
            continue
        known = record.person_id != UNKNOWN
        ids.append(record.person_id if known else UNKNOWN - 1 - index)
        queries += record.captions
        query_image += [len(kept)] * len(record.captions)
        kept.append(index)
    if not queries:
        raise UserError(
            f"split '{split}' of {folder} has no captions, so there is nothing to "
            "search with; evaluate on a split that has"
        )
    return RetrievalSet(
        name=name or f"{epath.Path(folder).name}/{split}",
        folder=str(folder),
        split=split,
        records=records if wanted is None else _Some(records, kept),
        queries=tuple(queries),
        query_image=np.array(query_image),
        person_ids=np.array(ids),
    )


def embed_set(
    encoder: Encoder, data: RetrievalSet, *, batch_size: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, P) embeddings of the queries and (N, P) of the gallery, on every process.

    They are the same, but for rounding, for any batch size and number of devices.
    """
    sharding.check_batch("evaluate.batch_size", batch_size, encoder.mesh)
    rows = sharding.local_rows(batch_size, encoder.mesh)
    ids, _ = encoder.tokenizer.encode(data.queries, encoder.lengths[-1])

    def place(batch: np.ndarray) -> jax.Array:
        return sharding.place_batch(batch, rows, batch_size, encoder.mesh)

    def pictures(index: np.ndarray) -> np.ndarray:
        way = encoder.size, encoder.fit
        return np.stack([pipeline.decode_image(data.records[i], *way) for i in index])

    batches = pipeline.in_order(
        len(data.records), batch_size, rows, pictures, threads=threads
    )
    total = -(-len(data.records) // batch_size)
    gallery = [
        encoder.embed_images(place(batch))
        for batch in progress(batches, f"images of {data.name}", total)
    ]
    queries = []
    for begin in progress(range(0, len(ids), batch_size), f"captions of {data.name}"):
        index = np.minimum(begin + np.arange(batch_size), len(ids) - 1)
        tokens = encoder.pad([ids[i] for i in index])  # one length for the global batch
        queries.append(encoder.embed_texts(place(tokens[rows])))
    return np.concatenate(queries)[: len(ids)], np.concatenate(gallery)[
        : len(data.records)
    ]


def progress(items: Iterable, what: str, total: int | None = None) -> tqdm:
    """Shows how far a loop is, where a person waits for it: on process 0, after 2 s."""
    silent = jax.process_index() != 0
    return tqdm(items, desc=what, total=total, delay=2, disable=silent, leave=False)
