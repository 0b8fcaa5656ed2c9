"""What the caption job writes: shards as they are done, the whole when all are.

In its folder: the caption record set itself, `captions.jsonl`, `skipped.jsonl`; by choice
`luperson_t.json`, and `records/`, person records of images that had none. Until the end
`parts/` holds each shard's lines.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from unipt_jax.data.records import CaptionRecord, PersonRecord
from unipt_jax.data.shards import ShardedSet
from unipt_jax.errors import UserError
from unipt_jax.files import partial_of, settle

CAPTIONS, SKIPPED, LUPERSON_T = "captions.jsonl", "skipped.jsonl", "luperson_t.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One image's result.

    index: its number among the images given. record: the image, where records are kept.
    evidence: attribute -> phrase, value, probability. templates: the number of each
    caption's. reason: why it has no captions, "" where it has.
    """

    index: int
    image_id: str
    file_path: str = ""
    captions: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    templates: tuple[int, ...] = ()
    reason: str = ""
    record: PersonRecord | None = None

    def line(self) -> str:
        """As a line of JSON: of captions.jsonl, or of skipped.jsonl."""
        said: dict[str, Any] = {"index": self.index, "image_id": self.image_id}
        said["file_path"] = self.file_path
        if self.reason:
            said["reason"] = self.reason
        else:
            said["captions"] = list(self.captions)
            said["evidence"] = dict(self.evidence)
            said["templates"] = list(self.templates)
        return json.dumps(said, ensure_ascii=False) + "\n"


class Outputs:
    """The files of one caption job; processes write different shards of them."""

    def __init__(
        self,
        folder: epath.Path,
        *,
        split: str,
        shards: int,
        aligned: bool,
        keep_records: bool,
    ) -> None:
        """aligned: images without captions keep their places, as in the record set that
        they come from; else they are left out. keep_records: write `records/` too."""
        self.folder, self.shards, self._aligned = folder, shards, aligned
        self._captions = ShardedSet(folder, CaptionRecord, split, shards)
        self._records = None
        if keep_records:
            self._records = ShardedSet(folder / "records", PersonRecord, split, shards)
        self._parts = folder / "parts"

    @property
    def complete(self) -> bool:
        """Whether everything is written."""
        return self._captions.complete

    def done(self, shard: int) -> bool:
        """Whether a shard is written, all of it."""
        # At the end the lines are cleared, while other processes may still look.
        return self.complete or (
            self._captions.done(shard) and self._part(shard).exists()
        )

    def _part(self, shard: int) -> epath.Path:
        return self._parts / f"{shard:05d}.jsonl"

    @contextlib.contextmanager
    def open(self, shard: int) -> Iterator[Callable[[Iterable[Row]], None]]:
        """Gives what takes a shard's rows, some at a time; the shard is there at the end
        of the block, unless that raised. The caption records come last and make it done.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        part = partial_of(self._part(shard))
        with contextlib.ExitStack() as sets:
            caption = sets.enter_context(self._captions.open(shard))
            record = None
            if self._records is not None:
                record = sets.enter_context(self._records.open(shard))
            with part.open("w") as lines:

                def add(rows: Iterable[Row]) -> None:
                    for row in rows:
                        lines.write(row.line())
                        if row.reason and not self._aligned:
                            continue
                        if record is not None:
                            record(row.record)
                        said = row.image_id, row.captions, row.evidence
                        caption(CaptionRecord(*said))

                yield add
            settle(part, self._part(shard))

    def rows(self) -> Iterator[dict[str, Any]]:
        """What all shards' lines say, in order."""
        for shard in range(self.shards):
            with self._part(shard).open() as lines:
                yield from map(json.loads, lines)

    def join(self) -> dict[str, int]:
        """Makes one file of all shards' lines; how many images have captions, or not."""
        names = (CAPTIONS, SKIPPED)
        partial = {name: partial_of(self.folder / name) for name in names}
        counts = dict.fromkeys(names, 0)
        with contextlib.ExitStack() as files:
            out = {n: files.enter_context(partial[n].open("w")) for n in names}
            for shard in range(self.shards):
                with self._part(shard).open() as lines:
                    for line in lines:
                        kind = SKIPPED if "reason" in json.loads(line) else CAPTIONS
                        out[kind].write(line)
                        counts[kind] += 1
        for name in names:
            settle(partial[name], self.folder / name)
        if not counts[CAPTIONS]:
            raise UserError(
                f"none of the {counts[SKIPPED]} images can be read; "
                f"{self.folder / SKIPPED} says why"
            )
        return {"captioned": counts[CAPTIONS], "skipped": counts[SKIPPED]}

    def write_luperson_t(self) -> None:
        """Writes captions.jsonl again as one JSON list of {file_path, captions}."""
        file = self.folder / LUPERSON_T
        partial, begin = partial_of(file), "[\n"
        with partial.open("w") as out, (self.folder / CAPTIONS).open() as lines:
            for row in map(json.loads, lines):
                path = row["file_path"] or row["image_id"]
                said = {"file_path": path, "captions": row["captions"]}
                out.write(begin + json.dumps(said, ensure_ascii=False))
                begin = ",\n"
            out.write("\n]\n")
        settle(partial, file)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Makes record sets of the shards, which ends the job."""
        if self._records is not None:
            self._records.finish(metadata)
        self._captions.finish(metadata)
        self.clear()

    def clear(self) -> None:
        """Removes what is not wanted once everything is written: the shards' lines, and
        what killed processes left."""
        self._parts.rmtree(missing_ok=True)
        for folder in (self.folder, self.folder / "records"):
            for file in folder.glob("*.partial"):
                file.rmtree() if file.is_dir() else file.unlink(missing_ok=True)
