"""The pictures of an index for a page: the number of an entry in, a small JPEG out."""

import dataclasses

from unipt_jax.data import images
from unipt_jax.search import scan
from unipt_jax.search.index import Index


@dataclasses.dataclass(frozen=True)
class Shown:
    """jpeg: the crop, made small. changed: its file is not the one that was indexed, by
    its size or time: the vector may be of another picture."""

    jpeg: bytes
    changed: bool


def read(index: Index, i: int, height: int = 256) -> Shown:
    """The picture of entry i, at most `height` pixels high.

    Raises OSError where its file is gone, no picture, no regular file, or lies outside
    of its indexed folder by now; IndexError where there is no such entry.
    """
    crop = index[i]
    encoded, known = scan.read(index.folders[crop.folder], index.raw_path(i))
    changed = (known.st_size, known.st_mtime_ns) != (crop.bytes, crop.mtime_ns)
    return Shown(images.thumbnail(encoded, height, crop.box), changed)
