"""Images read ahead by threads: numbers in, batches of pixels and what is known out."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from unipt_jax.captions.outputs import Row
from unipt_jax.captions.pictures import Pictures
from unipt_jax.data import folders, images
from unipt_jax.data.records import PersonRecord
from unipt_jax.errors import UserError


@dataclasses.dataclass
class Loaded:
    """A batch of images. pixels: (batch_size, H, W, 3); places without one are black.

    rows: what is known of each image before it is decided about; a row with a reason
    is skipped.
    """

    pixels: np.ndarray
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class Loader:
    """Reads images of a source.

    size, fit: height and width that they come to, and how (`images.resize`). keep: rows
    carry their image, as records store it. threads: that read and decode.
    """

    source: Pictures
    size: tuple[int, int]
    fit: str
    batch_size: int
    threads: int
    keep: bool
    alone: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def _record(self, index: int) -> PersonRecord:
        """The image's file. Raises OSError for a file that cannot be read, UserError
        for a store that cannot."""
        return folders.patiently(lambda: self.source[index], self.source.name)

    def _pixels(self, encoded: bytes) -> np.ndarray:
        try:
            return images.decode(encoded, *self.size, self.fit)
        except MemoryError:  # other threads may have had it all
            with self.alone:
                return images.decode(encoded, *self.size, self.fit)

    def row(self, index: int) -> tuple[Row, np.ndarray | None]:
        """An image's row and pixels; of an image that cannot be read, why.

        Raises UserError where the source as a whole cannot be read.
        """
        image_id = self.source.image_id(index)
        try:
            record = self._record(index)
            image_id = record.image_id
            pixels = self._pixels(record.image)
            if self.keep:
                stored = images.as_stored(record.image)
                record = dataclasses.replace(record, image=stored)
        except UserError as error:
            if not self.source.aligned:
                raise
            return self._skipped(index, image_id, error), None  # a damaged record
        except (OSError, ValueError, MemoryError) as error:
            return self._skipped(index, image_id, error), None
        kept = record if self.keep else None
        return Row(index, image_id, record.file_path, record=kept), pixels

    def _skipped(self, index: int, image_id: str, error: Exception) -> Row:
        reason = " ".join(str(error).split()) or type(error).__name__
        return Row(index, image_id, image_id, reason=reason[:300])

    def batches(self, groups: Sequence[np.ndarray]) -> Iterator[Loaded]:
        """Groups of image numbers, at most a batch each, read ahead."""
        reads = (
            [functools.partial(self.row, int(i)) for i in group] for group in groups
        )
        with contextlib.closing(folders.read_ahead(reads, self.threads)) as found:
            for rows in found:
                pixels = np.zeros((self.batch_size, *self.size, 3), np.uint8)
                for place, (_, image) in enumerate(rows):
                    if image is not None:
                        pixels[place] = image
                yield Loaded(pixels, [row for row, _ in rows])
