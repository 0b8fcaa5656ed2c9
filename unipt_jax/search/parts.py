"""What an update knows already: rows of the index as it was, and of its own work so far.

An update that is killed leaves `parts/` in the index's folder, a file for every few
seconds of work; the next one finds there what it need not do again.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from unipt_jax.search import index as indexes
from unipt_jax.search.index import ENTRIES, Index

PARTS = "parts"
UNREAD = bytes(32)  # the digest of a file that could not be read: no content has it
_BLOCK = 1 << 14  # rows that are gathered at a time


class Row(NamedTuple):
    """An entry as `ENTRIES` has it, or a file that could not be read: its digest says so.

    embedding: the bytes of its vector.
    """

    folder: int
    path: bytes
    asked: bytes
    x: int
    y: int
    w: int
    h: int
    bytes: int
    mtime_ns: int
    digest: bytes
    height: int
    width: int
    embedding: bytes = b""

    @property
    def state(self) -> tuple:
        """What tells, without opening a file, that it is still the same."""
        return self.folder, self.path, self.asked, self.bytes, self.mtime_ns


class Parts:
    """Rows by number: first those of an index, then those of its parts, then new ones.

    A row, once there, keeps its number. old: how many rows are the index's.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        old: Index | None,
        *,
        folders: Sequence[str],
        fingerprint: str,
        width: int,
        dtype: str,
    ) -> None:
        """folder: of the index. old: what is there; its vectors are of that model, width
        and dtype. folders: of pictures, as the rows of now number them."""
        self._all = folder / PARTS
        self._folder = self._all / f"{fingerprint[:16]}-{dtype}"
        self._folders, self._shape, self._dtype = folders, (-1, width), np.dtype(dtype)
        embedding = pa.field("embedding", pa.binary(width * self._dtype.itemsize))
        said = {"folders": json.dumps(list(folders))}
        self._schema = ENTRIES.append(embedding).with_metadata(said)
        self._tables: list[pa.Table] = []
        self._vectors: list[np.ndarray] = []
        self._begins = [0]
        self._hand: list[Row] = []
        self._unchanged: dict[tuple, int] = {}
        self._unread: set[tuple] = set()
        self._same: dict[tuple[bytes, bytes], int] = {}
        if old is not None:
            self._take(old.entries, old.folders, old.embeddings)
        self.old = self._begins[-1]  # rows of the index
        numbered = {file: _number(file) for file in self._folder.glob("*.arrow")}
        self._next = 1 + max(numbered.values(), default=0)
        for file in sorted(numbered, key=numbered.get):
            with contextlib.suppress(ValueError, LookupError, pa.ArrowException):
                self._open(file)  # unless it is damaged: its work is done again

    def _open(self, file: pathlib.Path) -> None:
        """Takes the rows of a part."""
        table = indexes.read_table(file, self._schema)
        folders = json.loads(table.schema.metadata[b"folders"])
        [embeddings] = table.column("embedding").chunks
        _, values = embeddings.buffers()
        vectors = np.frombuffer(values, self._dtype).reshape(self._shape)
        self._take(table, folders, vectors)

    def _take(self, table: pa.Table, folders: Sequence[str], vectors) -> None:
        """Takes rows that lie in a file. folders: as they number them."""
        now = {name: number for number, name in enumerate(self._folders)}
        numbers = np.array([now.get(name, -1) for name in folders], np.int32)
        moved = pa.array(numbers[table.column("folder").to_numpy()])
        table = table.set_column(0, ENTRIES.field("folder"), moved)
        begin = self._begins[-1]
        names = ("folder", "path", "asked", "bytes", "mtime_ns")
        states = zip(*(table.column(name).to_pylist() for name in names), strict=True)
        digests = table.column("digest").to_pylist()
        for number, (state, digest) in enumerate(
            zip(states, digests, strict=True), begin
        ):
            if digest == UNREAD:
                self._unread.add(state)
            else:
                self._unchanged[state] = number
        self._tables.append(table)
        self._vectors.append(vectors)
        self._begins.append(begin + len(table))

    def unchanged(self, state: tuple) -> int | None:
        """The number of the row with that `Row.state`, if a file was read then."""
        return self._unchanged.get(state)

    def unread(self, state: tuple) -> bool:
        """Whether a file in that state could not be read, earlier in this update."""
        return state in self._unread

    def learn(self) -> None:
        """Makes `same` know the rows that are there; new ones it learns by itself."""
        for begin, table in zip(self._begins, self._tables, strict=False):
            digests = table.column("digest").to_pylist()
            asked = table.column("asked").to_pylist()
            for row, content in enumerate(zip(digests, asked, strict=True), begin):
                self._same.setdefault(content, row)

    def same(self, digest: bytes, asked: bytes) -> int | None:
        """The number of a row of a file with that content, and that box of it."""
        return self._same.get((digest, asked))

    def __getitem__(self, number: int) -> Row:
        if number >= self._begins[-1]:
            return self._hand[number - self._begins[-1]]
        source = int(np.searchsorted(self._begins, number, side="right")) - 1
        place = number - self._begins[source]
        [values] = (
            self._tables[source].slice(place, 1).select(ENTRIES.names).to_pylist()
        )
        return Row(**values, embedding=self._vectors[source][place].tobytes())

    def add(self, row: Row) -> int:
        """Takes a new row in hand; its number."""
        number = self._begins[-1] + len(self._hand)
        self._hand.append(row)
        self._same.setdefault((row.digest, row.asked), number)
        return number

    def flush(self) -> None:
        """Writes the rows in hand as a part."""
        if not self._hand:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        nothing = bytes(self._shape[1] * self._dtype.itemsize)
        rows = [r._replace(embedding=r.embedding or nothing) for r in self._hand]
        columns = dict(zip(self._schema.names, zip(*rows, strict=True), strict=True))
        file = self._folder / f"{self._next}.arrow"
        with indexes.written(file) as out:
            indexes.write_table(out, pa.table(columns, schema=self._schema))
        self._hand, self._next = [], self._next + 1
        self._open(file)

    def entries(self, numbers: np.ndarray) -> pa.Table:
        """The rows of these numbers, all of which are written, as `ENTRIES` has them."""
        tables = [table.select(ENTRIES.names) for table in self._tables]
        plain = [table.replace_schema_metadata() for table in tables]
        return pa.concat_tables(plain).combine_chunks().take(pa.array(numbers))

    def vectors(self, numbers: np.ndarray) -> Iterator[np.ndarray]:
        """Their embeddings, (n, P) blocks in the same order."""
        for begin in range(0, len(numbers), _BLOCK):
            block = numbers[begin : begin + _BLOCK]
            out = np.empty((len(block), self._shape[1]), self._dtype)
            sources = np.searchsorted(self._begins, block, side="right") - 1
            for source in np.unique(sources):
                of_it = sources == source
                places = block[of_it] - self._begins[source]
                out[of_it] = self._vectors[source][places]
            yield out

    def clear(self) -> None:
        """Removes all parts: an index holds what they knew."""
        if self._all.exists():
            shutil.rmtree(self._all)


def _number(file: pathlib.Path) -> int:
    return int(file.stem) if file.stem.isdecimal() else 0
