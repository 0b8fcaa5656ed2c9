"""What the caption job writes: shards as they are done, the whole when all are.

In its folder: the caption record set itself, `captions.jsonl`, `skipped.jsonl`; by choice
`luperson_t.json`, and `records/`, person records of images that had none. Until the end
`parts/` holds each shard's lines.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from unipt_jax.data.records import CaptionRecord, PersonRecord
from unipt_jax.data.shards import ShardedSet
from unipt_jax.errors import UserError

CAPTIONS, SKIPPED, LUPERSON_T = "captions.jsonl", "skipped.jsonl", "luperson_t.json"


@dataclasses.dataclass(frozen=True)
class Row:
    """One image's result.

    index: its number in the source. record: the image, where records are kept.
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
        return self._captions.done(shard)

    def _part(self, shard: int) -> epath.Path:
        return self._parts / f"{shard:05d}.jsonl"

    def write(self, shard: int, rows: Sequence[Row]) -> None:
        """Writes a shard; the caption records come last and make it done."""
        self._parts.mkdir(parents=True, exist_ok=True)
        partial = self._part(shard).with_suffix(".partial")
        partial.write_text("".join(row.line() for row in rows))
        partial.replace(self._part(shard))
        kept = [row for row in rows if self._aligned or not row.reason]
        if self._records is not None:
            self._records.write(shard, [row.record for row in kept])
        self._captions.write(
            shard, [CaptionRecord(r.image_id, r.captions, r.evidence) for r in kept]
        )

    def wait(self, shard: int, seconds: float = 2.0) -> None:
        """Waits until a shard is written, by whatever process."""
        while not self.done(shard):
            time.sleep(seconds)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What all shards' lines say, in order."""
        for shard in range(self.shards):
            with self._part(shard).open() as lines:
                yield from map(json.loads, lines)

    def join(self, luperson_t: bool) -> dict[str, int]:
        """Makes one file of all shards' lines; how many images have captions, or not."""
        names = (CAPTIONS, SKIPPED, *((LUPERSON_T,) if luperson_t else ()))
        partial = {name: self.folder / f"{name}.partial" for name in names}
        files = {name: file.open("w") for name, file in partial.items()}
        counts = {CAPTIONS: 0, SKIPPED: 0}
        for shard in range(self.shards):
            with self._part(shard).open() as lines:
                for line in lines:
                    row = json.loads(line)
                    kind = SKIPPED if "reason" in row else CAPTIONS
                    files[kind].write(line)
                    if luperson_t and kind == CAPTIONS:
                        said = {k: row[k] for k in ("file_path", "captions")}
                        said["file_path"] = said["file_path"] or row["image_id"]
                        begin = ",\n" if counts[CAPTIONS] else "[\n"
                        text = json.dumps(said, ensure_ascii=False)
                        files[LUPERSON_T].write(begin + text)
                    counts[kind] += 1
        if luperson_t:
            files[LUPERSON_T].write("\n]\n" if counts[CAPTIONS] else "[]\n")
        for name in names:
            files[name].close()
            partial[name].replace(self.folder / name)
        if not counts[CAPTIONS]:
            raise UserError(
                f"none of the {counts[SKIPPED]} images can be read; "
                f"{self.folder / SKIPPED} says why"
            )
        return {"captioned": counts[CAPTIONS], "skipped": counts[SKIPPED]}

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Makes record sets of the shards, which ends the job."""
        if self._records is not None:
            self._records.finish(metadata)
        self._captions.finish(metadata)
        self.clear()

    def clear(self) -> None:
        """Removes the shards' lines once everything is written."""
        self._parts.rmtree(missing_ok=True)
