"""A record set written shard by shard: each appears whole, the set when all are there.

For jobs that take days: what is killed goes on with the first shard that is missing, and
processes write side by side.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_module
from etils import epath

from unipt_jax.data import records
from unipt_jax.data.records import CaptionRecord, PersonRecord
from unipt_jax.errors import UserError
from unipt_jax.files import partial_of, settle

# One record a group, to be read alone; pictures are compressed already.
_WRITER = {PersonRecord: "group_size:1,uncompressed", CaptionRecord: "group_size:1"}
LOCK = "lock"
INFO = "dataset_info.json"  # written last: a set without it is not there yet


@contextlib.contextmanager
def alone(folder: str | os.PathLike, refusal: str) -> Iterator[None]:
    """Holds a folder that is there against other processes, by its file `lock`, which
    stays: on this machine, and on others where the file system shares locks, as NFS does.

    Raises UserError, with that sentence, while another holds it.
    """
    # Of a folder itself NFS takes no lock.
    with open(os.path.join(folder, LOCK), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(refusal) from error
        except OSError:  # a file system without locks
            pass
        yield


@contextlib.contextmanager
def _told(file: epath.Path) -> Iterator[None]:
    """What the C++ code says of a full disk, which knows no OSError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"{file} cannot be written ({error}); make room or choose another folder, "
            "then run the same command again"
        ) from error


class ShardedSet:
    """One split in so many files, in the order of the shards.

    Local folders alone: an ArrayRecord file is written by C++ code that knows no other.
    """

    def __init__(
        self, folder: str | os.PathLike, kind: type, split: str, shards: int
    ) -> None:
        """kind: `PersonRecord` or `CaptionRecord`. shards: how many there will be."""
        self.folder, self.kind, self.split = epath.Path(folder), kind, split
        self.shards = shards

    def file(self, shard: int) -> epath.Path:
        """Where a shard lies."""
        name = f"{records.NAME}-{self.split}.array_record"
        return self.folder / f"{name}-{shard:05d}-of-{self.shards:05d}"

    def done(self, shard: int) -> bool:
        """Whether a shard is written."""
        return self.file(shard).exists()

    @property
    def complete(self) -> bool:
        """Whether the set is there, all of it."""
        return (self.folder / INFO).exists()

    def write(self, shard: int, rows: Iterable) -> None:
        """Writes a shard, or nothing: the same bytes in any process.

        Raises UserError where the disk is full.
        """
        with self.open(shard) as add:
            for row in rows:
                add(row)

    @contextlib.contextmanager
    def open(self, shard: int) -> Iterator[Callable[[Any], None]]:
        """As `write`, record by record: gives what takes one; the shard appears at the
        end of the block, unless that raised."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.file(shard)
        partial = partial_of(file)
        with _told(file):
            writer = array_record_module.ArrayRecordWriter(
                os.fspath(partial), _WRITER[self.kind]
            )

        def add(row: Any) -> None:
            example = records.serialise(row)
            with _told(file):
                writer.write(example)

        try:
            yield add
        except BaseException:
            with contextlib.suppress(RuntimeError):
                writer.close()
            partial.unlink(missing_ok=True)
            raise
        with _told(file):
            writer.close()
        settle(partial, file)

    def lengths(self) -> list[int]:
        """Records in each shard."""
        count = []
        for shard in range(self.shards):
            reader = array_record_module.ArrayRecordReader(os.fspath(self.file(shard)))
            count.append(reader.num_records())
            reader.close()
        return count

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Describes the set, which makes it one: all shards must be written.

        metadata: JSON values, read back by `records.metadata`.
        """
        finish([self], metadata)


def finish(splits: Sequence[ShardedSet], metadata: Mapping[str, Any]) -> None:
    """Describes the splits of one folder, which makes them one set: all their shards
    must be written. metadata: as in `ShardedSet.finish`."""
    folder, kind = splits[0].folder, splits[0].kind
    described = {}
    for split in splits:
        size = sum(split.file(shard).stat().length for shard in range(split.shards))
        described[split.split] = (split.lengths(), size)
    partial = folder / f"{INFO}.partial"
    partial.rmtree(missing_ok=True)
    records.describe(partial, kind, described, metadata)
    last = (partial / INFO).replace(folder / f"{INFO}.last")
    for file in partial.iterdir():
        file.replace(folder / file.name)
    partial.rmtree()
    for split in splits:
        for file in folder.glob(f"{records.NAME}-{split.split}.*.partial"):
            file.unlink()  # what killed processes left
    last.replace(folder / INFO)
