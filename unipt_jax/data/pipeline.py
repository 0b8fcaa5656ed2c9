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
from unipt_jax.data.records import UNKNOWN, PersonRecord, Records
from unipt_jax.data.tokenizers import Tokenizer
from unipt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """All captions of a split as token ids, end to end.

    ids: all tokens. offsets: caption c is ids[offsets[c]:offsets[c + 1]]. first: record
    i has the captions first[i] .. first[i + 1] - 1. image_ids: for whom they were made.
    cut: how many captions were longer than the limit. labels: (records,) the identity
    of each, `UNKNOWN` where the source does not say.
    """

    ids: np.ndarray
    offsets: np.ndarray
    first: np.ndarray
    image_ids: tuple[str, ...]
    cut: int
    labels: np.ndarray

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


def read_captions(
    source: Records, *, progress: bool
) -> tuple[list, list[str], list[int]]:
    """Every record's captions, image id and label, in order."""
    rows = tqdm(
        range(len(source)),
        desc="reading captions",
        unit=" records",
        delay=2,
        disable=not progress,
    )
    captions, image_ids, labels = [], [], []
    for index in rows:
        record = source[index]
        captions.append(record.captions)
        image_ids.append(record.image_id)
        labels.append(getattr(record, "label", UNKNOWN))  # caption records have none
    return captions, image_ids, labels


def token_table(source: Records, tokenizer: Tokenizer, limit: int, progress: bool):
    """Reads and tokenises the captions of a split of person or caption records."""
    captions, image_ids, labels = read_captions(source, progress=progress)
    ids, cut = tokenizer.encode([c for group in captions for c in group], limit)
    counts = [len(group) for group in captions]
    return TokenTable(
        ids=np.concatenate([*ids, np.zeros(0, np.int32)]),
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(int),
        first=np.concatenate([[0], np.cumsum(counts)]).astype(int),
        image_ids=tuple(image_ids),
        cut=cut,
        labels=np.array(labels, int),
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
    *global* batch. "lengths" (G,) are the token counts of all its texts.

    With `labelled` it has "label" (b,) int32 too: the identity's class, 0 to
    `classes` - 1. With `identities` = P a global batch of G has P identities, drawn
    without repetition until all were drawn, with G / P samples each: different ones, as
    long as the identity has so many. (A batch that ends one round and begins the next
    may have a person of both.)
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
        labelled: bool = False,
        hold_out: float = 0.0,
        identities: int = 0,
    ) -> None:
        """records: person records. captions: caption records made for them, or None
        where the records hold their own. rows: which rows this process reads. size:
        height and width. cache: keep decoded images in memory. labelled: the batches
        have classes. hold_out: the share of the identities that is left out, see
        `held_out`. identities: of a batch, P; 0 takes samples as they come.
        Raises UserError for captions that do not belong to the records, records
        without captions or, where `labelled`, without identity, and fewer samples than
        `batch_size`.
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
        if labelled and captions is not None:  # which do not say who it is
            labels = read_captions(records, progress=progress)[2]
            self.table = dataclasses.replace(self.table, labels=np.array(labels, int))
        self.held_out = self._class = np.zeros(0, int)
        self.classes = 0
        self._identities = identities
        if labelled:
            self._know_identities(hold_out)
            self._check_identities()
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

    def _know_identities(self, hold_out: float) -> None:
        """Chooses the labels that are held out, and numbers the others without a gap."""
        labels = self.table.labels
        unknown = int((labels[self._samples[:, 0]] == UNKNOWN).sum())
        where = f"split '{self._records.split}' of {self._records.folder}"
        if unknown:
            raise UserError(
                f"{unknown} of {len(self._samples)} samples in {where} have no "
                "identity, which fine-tuning needs; prepare a set that has, or leave "
                "them out of the split"
            )
        known = np.unique(labels[self._samples[:, 0]])  # of images with a caption
        count = round(hold_out * len(known))
        if hold_out and not 0 < count < len(known):
            raise UserError(
                f"evaluate.hold_out={hold_out} of the {len(known)} identities in {where} "
                f"are {count}; at least one must be held out, and one must stay"
            )
        # Not from the run's seed: runs that differ in it are selected on the same ones.
        drawn = np.random.default_rng(0).permutation(known)[:count]
        self.held_out = np.sort(drawn)
        stays = np.setdiff1d(known, self.held_out)
        self._samples = self._samples[np.isin(labels[self._samples[:, 0]], stays)]
        self._class = np.searchsorted(stays, labels)
        self.classes = len(stays)
        if self.classes == 1:
            raise UserError(
                f"one identity is left to train on in {where}, {count} held out; "
                "fine-tuning tells identities apart, and needs two or more"
            )

    def _check_identities(self) -> None:
        """Sorts the samples by identity, where batches are drawn so."""
        p = self._identities
        if not p:
            return
        if p < 0 or self._batch_size % p or p == self._batch_size:
            raise UserError(
                f"data.identities={p} must divide batch_size={self._batch_size} into "
                "two samples of an identity or more; 0 takes samples as they come"
            )
        if p > self.classes:
            raise UserError(
                f"data.identities={p}, but there are {self.classes} identities; use "
                "fewer"
            )
        of_sample = self._class[self._samples[:, 0]]
        self._samples = self._samples[np.argsort(of_sample, kind="stable")]
        of_sample = self._class[self._samples[:, 0]]
        self._first = np.searchsorted(of_sample, np.arange(self.classes + 1))

    def __len__(self) -> int:
        """Samples an epoch."""
        return len(self._samples)

    @property
    def without_caption(self) -> int:
        """Images left out because they have no caption."""
        return int((np.diff(self.table.first) == 0).sum())

    def _plan(self) -> grain.MapDataset:
        """Element s: the (G, 2) record and caption numbers of global batch s."""
        size, many = self._batch_size, len(self._samples)
        if self._identities:
            size, many = self._identities, self.classes
        order = grain.MapDataset.range(many).seed(self._seed)
        return order.shuffle().repeat().batch(size).random_map(self._draw)

    def _draw(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(G,) samples, or (P,) identities, -> (G, 2) record and caption numbers."""
        if self._identities:
            order = self._draw_samples(order, rng)
        return self._draw_captions(order, rng)

    def _draw_samples(self, people: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(P,) identities -> (G,) samples of theirs, G / P each, side by side."""
        share, drawn = self._batch_size // self._identities, []
        for person in people:
            samples = np.arange(self._first[person], self._first[person + 1])
            rounds = -(-share // len(samples))  # each once, before any is taken again
            drawn += [rng.permutation(samples) for _ in range(rounds - 1)]
            rest = share - (rounds - 1) * len(samples)
            drawn.append(rng.permutation(samples)[:rest])
        return np.concatenate(drawn)

    def _draw_captions(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        index, caption = self._samples[np.asarray(order)].T
        first, end = self.table.first[index], self.table.first[index + 1]
        drawn = first + (rng.random(len(index)) * (end - first)).astype(int)
        return np.stack([index, np.where(caption < 0, drawn, caption)], axis=1)

    def _load(self, plan: np.ndarray) -> dict[str, np.ndarray]:
        lengths = self.table.lengths(plan[:, 1])  # of the global batch
        length = bucket(lengths.max(), self._lengths)
        mine = plan[self._rows]
        pictures = np.empty((len(mine), *self._size, 3), np.uint8)
        for row, index in zip(pictures, mine[:, 0].tolist(), strict=True):
            self._read(index, row)
        batch = {"image": pictures, "lengths": lengths}
        batch["tokens"] = self.table.padded(mine[:, 1], length, self._pad)
        if len(self._class):
            batch["label"] = self._class[mine[:, 0]].astype(np.int32)
        return batch

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
