"""The work of an update: files and boxes in, the rows of those that can be read out."""

import collections
import contextlib
import functools
import hashlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from unipt_jax import sharding
from unipt_jax.data import images
from unipt_jax.data.folders import patiently, read_ahead
from unipt_jax.data.images import Box
from unipt_jax.encoder import Encoder
from unipt_jax.errors import Stopped, UserError
from unipt_jax.search import scan
from unipt_jax.search.parts import UNREAD, Parts, Row

SECONDS = 10.0  # of work that a kill may cost


class Item(NamedTuple):
    """What shall be an entry: a file, or a box of the picture in it."""

    file: scan.File
    box: Box | None

    @property
    def asked(self) -> bytes:
        """The box as `ENTRIES` keeps it."""
        return ",".join(map(str, self.box)).encode() if self.box else b""

    @property
    def state(self) -> tuple:
        """As `Row.state`."""
        folder, path, size, mtime_ns = self.file
        return folder, path, self.asked, size, mtime_ns

    @property
    def label(self) -> str:
        """What a person reads."""
        path = scan.shown(self.file.path)
        return f"{path} [{self.asked.decode()}]" if self.box else path


class _Read(NamedTuple):
    """What reading an item gave. row: without its embedding. pixels: as the tower takes
    them; None where that content is known, or, with the reason, where it is unreadable."""

    row: Row
    pixels: np.ndarray | None = None
    reason: str = ""


class Work:
    """Finds or makes the row of each item.

    folders: of pictures. counts, skipped: what was done, for the report.
    """

    def __init__(
        self,
        encoder: Encoder,
        parts: Parts,
        folders: Sequence[str],
        batch_size: int,
        threads: int,
        dtype: str,
    ) -> None:
        """batch_size: on all devices."""
        self.encoder, self.parts, self.folders = encoder, parts, folders
        devices = encoder.mesh.size
        self.batch_size = -(-batch_size // devices) * devices
        self.threads, self.dtype = threads, dtype
        self.counts: collections.Counter[str] = collections.Counter()
        self.skipped: list[tuple[str, str]] = []
        self._alone = threading.Lock()

    def skip(self, folder: int, label: str, reason: str) -> None:
        """Notes what cannot be read."""
        path = scan.shown(os.fsencode(os.path.join(self.folders[folder], "")))
        self.skipped.append((path + label, scan.plain(" ".join(reason.split()))[:300]))

    def run(self, items: Sequence[Item], content: bool) -> np.ndarray:
        """The numbers, in `parts`, of the rows of all items that can be read."""
        numbers: dict[Item, int] = {}
        again, new = [], []
        for item in items:
            row = None if content else self.parts.unchanged(item.state)
            if row is not None:
                numbers[item] = row
                self.counts["kept" if row < self.parts.old else "earlier"] += 1
            elif self.parts.unread(item.state) and not content:
                again.append(item)
            else:
                new.append(item)
        # What could not be read before the update was killed is tried again, apart: all
        # others keep their places in their batches, and so the same vectors to the bit.
        groups = [
            *_in_groups(again, self.batch_size),
            *_in_groups(new, self.batch_size),
        ]
        if groups:
            self.parts.learn()
            with _progress(len(items), len(numbers)) as bar:
                self._embed_all(groups, numbers, bar)
        ordered = (numbers[item] for item in items if item in numbers)
        return np.fromiter(ordered, np.int64, len(numbers))

    def _embed_all(self, groups, numbers: dict[Item, int], bar: tqdm) -> None:
        """Adds the rows of all groups to `numbers`, and writes parts of them.

        Raises Stopped after a SIGTERM.
        """
        written = time.monotonic()
        ahead = read_ahead(map(self._reads, groups), self.threads)
        with _stoppable() as stop, contextlib.closing(ahead) as read:
            try:
                for group, files in zip(groups, read, strict=True):
                    found = list(itertools.chain.from_iterable(files))
                    self._finish(group, found, numbers)
                    bar.update(len(group))
                    if stop or time.monotonic() - written > SECONDS:
                        self.parts.flush()
                        written = time.monotonic()
                    if stop:
                        raise Stopped(
                            "stopped; what is embedded is kept, and the same command "
                            "goes on from there"
                        )
            except (KeyboardInterrupt, UserError):
                self.parts.flush()
                raise
        self.parts.flush()

    def _finish(self, group, found: Sequence[_Read], numbers: dict[Item, int]) -> None:
        """Adds the rows of one group: a batch, or less at the end."""
        wanted = np.zeros(len(group), bool)
        for place, (row, pixels, _) in enumerate(found):
            known = self.parts.same(row.digest, row.asked) is not None
            wanted[place] = pixels is not None and not known
        if wanted.any():
            vectors = self._embed([r.pixels for r in found], wanted)
        for place, (item, (row, _, reason)) in enumerate(
            zip(group, found, strict=True)
        ):
            if reason:
                self.parts.add(row)
                self.skip(item.file.folder, item.label, reason)
                continue
            same = self.parts.same(row.digest, row.asked)
            before = self.parts.unchanged(item.state)  # where all is read, by choice
            if same is None:
                row = row._replace(embedding=vectors[place].tobytes())
                done = "embedded"
            else:
                row = _taken_over(row, self.parts[same])
                as_it_was = (
                    before is not None and self.parts[before].digest == row.digest
                )
                done = "kept" if as_it_was else "taken over"
            self.counts[done] += 1
            numbers[item] = self.parts.add(row)

    def _embed(self, pixels: Sequence[np.ndarray | None], wanted) -> np.ndarray:
        """(n, P) vectors as the index keeps them; those that are not wanted are void."""
        encoder, size = self.encoder, self.batch_size
        batch = np.zeros((size, *encoder.size, 3), np.uint8)
        for place in np.flatnonzero(wanted):
            batch[place] = pixels[place]
        rows = sharding.local_rows(size, encoder.mesh)
        placed = sharding.place_batch(batch[rows], rows, size, encoder.mesh)
        vectors = encoder.embed_images(placed)[: len(pixels)]
        lengths = np.linalg.norm(vectors[wanted], axis=1)
        if not np.allclose(lengths, 1, atol=1e-3):  # nor of NaN
            raise UserError(
                f"{encoder.name} gives vectors of length {lengths.min():g} where 1 is "
                "expected; its weights are damaged or were never trained: look at them"
            )
        return vectors.astype(self.dtype)

    def _reads(self, group: Sequence[Item]) -> list[Callable[[], list[_Read]]]:
        """What reads a group: each of its files once."""
        files = itertools.groupby(group, key=lambda item: item.file)
        return [functools.partial(self._read, list(items)) for _, items in files]

    def _read(self, items: Sequence[Item]) -> list[_Read]:
        """Reads a file once, and of it all these items."""
        file = items[0].file
        folder = self.folders[file.folder]
        try:
            encoded, known = patiently(lambda: scan.read(folder, file.path), folder)
        except (OSError, MemoryError) as error:
            if not os.path.isdir(folder):
                raise UserError(
                    f"{scan.plain(folder)} is gone; bring it back, then run the same command again"
                ) from error
            return [_unread(item, error) for item in items]
        digest = hashlib.sha256(encoded).digest()
        image, out = None, []
        for item in items:
            state = dict(bytes=known.st_size, mtime_ns=known.st_mtime_ns)
            row = _row(item, digest=digest, **state)
            if self.parts.same(digest, row.asked) is not None:
                out.append(_Read(row))
                continue
            try:
                image = image or self._opened(encoded)
                out.append(self._fitted(row, item.box, image))
            except (OSError, ValueError, MemoryError) as error:
                out.append(_unread(item, error))
        return out

    def _opened(self, encoded: bytes) -> Image.Image:
        try:
            return images.upright(encoded)
        except MemoryError:  # other threads may have had it all
            with self._alone:
                return images.upright(encoded)

    def _fitted(self, row: Row, box: Box | None, image: Image.Image) -> _Read:
        """The row of a picture or a box of it, with its pixels."""
        inside = images.within(box or (0, 0, *image.size), image.height, image.width)
        if inside is None:
            raise OSError(f"the box lies outside of the {image.width}x{image.height}")
        part = images.cut(image, inside) if box else image
        pixels = images.fitted(part, *self.encoder.size, self.encoder.fit)
        x, y, w, h = inside
        return _Read(row._replace(x=x, y=y, w=w, h=h, height=h, width=w), pixels)


def _row(item: Item, **fields: Any) -> Row:
    """What is known of an item's file, as `scan` saw it, but for these fields."""
    nothing = dict(x=0, y=0, w=0, h=0, height=0, width=0)
    seen = dict(item.file._asdict(), asked=item.asked)
    return Row(**(nothing | seen | fields))


def _unread(item: Item, error: Exception) -> _Read:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _Read(_row(item, digest=UNREAD), reason=said)


def _taken_over(row: Row, known: Row) -> Row:
    """A row of the same content: what is known of that."""
    names = ("x", "y", "w", "h", "height", "width", "embedding")
    return row._replace(**{name: getattr(known, name) for name in names})


def _in_groups(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


@contextlib.contextmanager
def _stoppable() -> Iterator[list[int]]:
    """A list that a SIGTERM fills, in the main thread: no other can be told of one."""
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def _progress(total: int, before: int) -> tqdm:
    """Pictures a second, share done, time left."""
    seldom = 0.5 if sys.stderr.isatty() else 10
    return tqdm(
        total=total, initial=before, desc="index", unit=" images", mininterval=seldom
    )
