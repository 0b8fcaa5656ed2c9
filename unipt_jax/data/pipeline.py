"""Turns person records into fixed-shape global batches, from any step on.

The order, the captions drawn and the padded lengths are functions of the seed and the
step alone: every process plans the whole global batch and reads its own rows of it.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from tqdm import tqdm

from unipt_jax.data import images
from unipt_jax.data.records import PersonRecord, Records
from unipt_jax.data.tokenizers import Tokenizer
from unipt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """All captions of a split as token ids, end to end.

    ids: all tokens. offsets: caption c is ids[offsets[c]:offsets[c + 1]]. first: record
    i has the captions first[i] .. first[i + 1] - 1. image_ids: for whom they were made.
    cut: how many captions were longer than the limit.
    """

    ids: np.ndarray
    offsets: np.ndarray
    first: np.ndarray
    image_ids: tuple[str, ...]
    cut: int

    def lengths(self, captions: np.ndarray) -> np.ndarray:
        """Number of tokens of each of some captions."""
        return self.offsets[captions + 1] - self.offsets[captions]

    def padded(self, captions: np.ndarray, length: int, pad: int) -> np.ndarray:
        """(n,) caption numbers -> (n, length) ids, int32."""
        out = np.full((len(captions), length), pad, np.int32)
        for row, caption in zip(out, captions, strict=True):
            ids = self.ids[self.offsets[caption] : self.offsets[caption + 1]]
            row[: len(ids)] = ids
        return out


def read_captions(source: Records, *, progress: bool) -> tuple[list, list[str]]:
    """Every record's captions and image id, in order."""
    rows = tqdm(
        range(len(source)),
        desc="reading captions",
        unit=" records",
        delay=2,
        disable=not progress,
    )
    captions, image_ids = [], []
    for index in rows:
        record = source[index]
        captions.append(record.captions)
        image_ids.append(record.image_id)
    return captions, image_ids


def token_table(source: Records, tokenizer: Tokenizer, limit: int, progress: bool):
    """Reads and tokenises the captions of a split of person or caption records."""
    captions, image_ids = read_captions(source, progress=progress)
    ids, cut = tokenizer.encode([c for group in captions for c in group], limit)
    counts = [len(group) for group in captions]
    return TokenTable(
        ids=np.concatenate([*ids, np.zeros(0, np.int32)]),
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(int),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(int),
        image_ids=tuple(image_ids),
        cut=cut,
    )


def bucket(longest: int, lengths: Sequence[int]) -> int:
    """The smallest of the allowed lengths that holds `longest` tokens."""
    return min(length for length in lengths if length >= longest)


class TrainBatches:
    """The endless stream of training batches, entered at any step.

    sample: "image" takes each image once an epoch with one of its captions, drawn
    anew; "pair" takes each (image, caption) pair once an epoch. Epochs follow each
    other without a gap: a batch may hold the end of one and the start of the next.
    A batch is {"image": (b, H, W, 3) uint8, "tokens": (b, L) int32} with the b rows of
    this process; L is the smallest of `lengths` that holds the longest text of the
    *global* batch.
    """

    def __init__(
        self,
        records: Records,
        captions: Records | None,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        rows: np.ndarray,
        size: tuple[int, int],
        lengths: Sequence[int],
        seed: int,
        sample: str = "image",
        cache: bool = False,
        progress: bool = True,
    ) -> None:
        """records: person records. captions: caption records made for them, or None
        where the records hold their own. rows: which rows this process reads. size:
        height and width. cache: keep decoded images in memory.
        Raises UserError for captions that do not belong to the records, records
        without captions, and fewer samples than `batch_size`.
        """
        self._records, self._pad = records, tokenizer.pad
        self._rows, self._size, self._lengths = rows, size, sorted(lengths)
        self._seed, self._batch_size = seed, batch_size
        self._cache: dict[int, np.ndarray] | None = {} if cache else None
        if captions is not None and len(captions) != len(records):
            raise UserError(
                f"{captions.folder} has captions for {len(captions)} images, "
                f"{records.folder} has {len(records)} in split '{records.split}'; make "
                "the captions again from these records"
            )
        source = records if captions is None else captions
        self.table = token_table(source, tokenizer, self._lengths[-1], progress)
        self._samples = self._choose_samples(sample)
        if len(self._samples) == 0:
            raise UserError(
                f"no captions in split '{records.split}' of {source.folder}; point "
                "data.captions at a caption record set made for it"
            )
        if len(self._samples) < batch_size:
            raise UserError(
                f"batch_size={batch_size} but split '{records.split}' of "
                f"{records.folder} gives only {len(self._samples)} samples; use a "
                "smaller batch_size"
            )

    def _choose_samples(self, sample: str) -> np.ndarray:
        """(n, 2): record number, caption number or -1 for "draw one"."""
        counts = np.diff(self.table.first)
        if sample == "image":
            index = np.flatnonzero(counts)
            return np.stack([index, np.full_like(index, -1)], axis=1)
        if sample == "pair":
            index = np.repeat(np.arange(len(counts)), counts)
            return np.stack([index, np.arange(len(index))], axis=1)
        raise UserError(f"data.sample '{sample}' is not one of image, pair")

    def __len__(self) -> int:
        """Samples an epoch."""
        return len(self._samples)

    @property
    def without_caption(self) -> int:
        """Images left out because they have no caption."""
        return int((np.diff(self.table.first) == 0).sum())

    def _plan(self) -> grain.MapDataset:
        """Element s: the (G, 2) record and caption numbers of global batch s."""
        order = grain.MapDataset.range(len(self._samples)).seed(self._seed)
        batches = order.shuffle().repeat().batch(self._batch_size)
        return batches.random_map(self._draw_captions)

    def _draw_captions(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        index, caption = self._samples[np.asarray(order)].T
        first, end = self.table.first[index], self.table.first[index + 1]
        drawn = first + (rng.random(len(index)) * (end - first)).astype(int)
        return np.stack([index, np.where(caption < 0, drawn, caption)], axis=1)

    def _load(self, plan: np.ndarray) -> dict[str, np.ndarray]:
        longest = self.table.lengths(plan[:, 1]).max()  # of the global batch
        length = bucket(longest, self._lengths)
        mine = plan[self._rows]
        pictures = np.empty((len(mine), *self._size, 3), np.uint8)
        for row, index in zip(pictures, mine[:, 0].tolist(), strict=True):
            self._read(index, row)
        tokens = self.table.padded(mine[:, 1], length, self._pad)
        return {"image": pictures, "tokens": tokens}

    def _read(self, index: int, out: np.ndarray) -> None:
        """Writes the picture of a record to its place in a batch."""
        if self._cache is not None and index in self._cache:
            out[...] = self._cache[index]
            return
        record = self._records[index]
        if record.image_id != self.table.image_ids[index]:
            raise UserError(
                f"record {index} of {self._records.folder} is '{record.image_id}' but "
                f"its captions were made for '{self.table.image_ids[index]}'; make the "
                "captions again from these records"
            )
        decode_image(record, self._size, out=out)
        if self._cache is not None:
            self._cache[index] = out.copy()

    def from_step(self, step: int, *, threads: int, buffer: int) -> Iterator[dict]:
        """Batches `step`, `step + 1`, ...; `threads` read ahead, `buffer` batches."""
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        return iter(self._plan()[step:].map(self._load).to_iter_dataset(options))

    def image_ids(self, step: int) -> list[str]:
        """The images of global batch `step`."""
        return [self.table.image_ids[index] for index, _ in self._plan()[step]]


def decode_image(
    record: PersonRecord,
    size: tuple[int, int],
    fit: str = "squeeze",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """A record's image as (H, W, 3) uint8. Raises UserError if it is damaged.

    fit: how it comes to that size, see `images.resize`. out: where to write it.
    """
    try:
        return images.decode(record.image, *size, fit, out)
    except (OSError, ValueError, SyntaxError) as error:  # what PIL raises
        raise UserError(
            f"image '{record.image_id}' cannot be decoded ({error}); prepare the set "
            "again, `data_prep.build --check` finds such images beforehand"
        ) from error


def in_order(count: int, batch_size: int, rows: np.ndarray, load, *, threads: int):
    """Every item once, in order: yields load(indices) for this process's rows.

    The last batch is padded by repeating the last item, so that every process has the
    same number of batches of the same shape; drop what lies beyond `count`.
    load: (b,) item numbers -> a batch.
    """
    total = -(-count // batch_size)

    def read(batch: int):
        return load(np.minimum(batch * batch_size + rows, count - 1))

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return iter(grain.MapDataset.range(total).map(read).to_iter_dataset(options))
