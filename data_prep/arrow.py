"""Arrow files with pictures in them, as LUPerson-T was released: rows in and out."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from data_prep.raw import shortened
from unipt_jax.errors import UserError

_FILE = b"ARROW1"  # what the file format begins with
_END = b"\xff\xff\xff\xff\0\0\0\0"  # and the stream format ends with
COLUMNS = ("image", "caption", "image_id", "split")


def _said(error: Exception) -> str:
    return shortened((str(error) or type(error).__name__).splitlines()[0], 120)


class Batches:
    """The record batches of a file, in Arrow's file format or its stream format."""

    def __init__(self, file: str) -> None:
        """Raises UserError for a file that is neither, or has no image or caption."""
        self.file = file
        self._map = pa.memory_map(file)
        try:
            begins = self._map.read(len(_FILE))
            self._map.seek(0)
            if begins == _FILE:
                reader = pa.ipc.open_file(self._map)
                count = range(reader.num_record_batches)
                self._batches = [reader.get_batch(number) for number in count]
            else:
                self._batches = list(pa.ipc.open_stream(self._map))
                self._map.seek(self._map.size() - len(_END))
                if self._map.read() != _END:  # cut off between two batches
                    raise pa.ArrowInvalid("it ends early")
            names = self._batches[0].schema.names if self._batches else []
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file} is no Arrow file, or is damaged ({_said(error)}); fetch it "
                "again, or move it away"
            ) from error
        known = sorted(name for name in names if name in COLUMNS)
        lacks = not {"image", "caption"} <= set(known)
        if self._batches and (lacks or len(set(known)) < len(known)):
            raise UserError(
                f"{file} has the columns {shortened(', '.join(names))}; expected image "
                "and caption, and, where they are known, image_id and split, each once"
            )

    def image(self, batch: int, row: int) -> bytes:
        """The encoded picture of a row, which may be wrapped as {bytes, path}."""
        value = self._batches[batch].column("image")[row].as_py()
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise OSError("no bytes of a picture in that row")
        return value

    def rows(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Batch, row, and all but the picture of each row.

        Raises UserError for a batch that is damaged.
        """
        for number, batch in enumerate(self._batches):
            names = [n for n in COLUMNS[1:] if n in batch.schema.names]
            try:
                batch.validate(full=True)  # else a wrong length ends the process
            except pa.ArrowException as error:
                raise UserError(
                    f"{self.file}: batch {number} is damaged ({_said(error)}); fetch "
                    "the file again, or move it away"
                ) from error
            for row, values in enumerate(batch.select(names).to_pylist()):
                yield number, row, values

    def close(self) -> None:
        """Lets go of the file."""
        self._map.close()
