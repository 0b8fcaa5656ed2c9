"""Arrow files with pictures in them, as LUPerson-T was released: rows in and out."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from unipt_jax.errors import UserError

COLUMNS = ("image", "caption", "image_id", "split")


class Batches:
    """The record batches of a file, in Arrow's file format or its stream format."""

    def __init__(self, file: str) -> None:
        """Raises UserError for a file that is neither, or has no image or caption."""
        self.file = file
        self._map = pa.memory_map(file)
        try:
            try:
                reader = pa.ipc.open_file(self._map)
                self._batches = map(reader.get_batch, range(reader.num_record_batches))
                self._batches = list(self._batches)
            except pa.ArrowInvalid:
                self._map.seek(0)
                self._batches = list(pa.ipc.open_stream(self._map))
        except (pa.ArrowException, OSError, EOFError) as error:
            raise UserError(
                f"{file} is no Arrow file, or is damaged "
                f"({str(error).splitlines()[0][:120]}); fetch it again, or move it away"
            ) from error
        names = self._batches[0].schema.names if self._batches else []
        if self._batches and not {"image", "caption"} <= set(names):
            raise UserError(
                f"{file} has the columns {', '.join(names)}; expected image and "
                "caption, and, where they are known, image_id and split"
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
        """Batch, row, and all but the picture of each row."""
        for number, batch in enumerate(self._batches):
            names = [n for n in COLUMNS[1:] if n in batch.schema.names]
            for row, values in enumerate(batch.select(names).to_pylist()):
                yield number, row, values

    def close(self) -> None:
        """Lets go of the file."""
        self._map.close()
