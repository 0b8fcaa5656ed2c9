"""The images to caption: a record set, a folder of any nesting, or a list of paths.

Each is a numbered sequence of encoded files with ids. What cannot be read raises OSError
when it is read, never before.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
from collections.abc import Sequence

from etils import epath

from unipt_jax.data import folders
from unipt_jax.data.images import LARGEST, SUFFIXES
from unipt_jax.data.records import PersonRecord, Records
from unipt_jax.errors import UserError


class Pictures(Sequence):
    """Encoded images: `pictures[i]` is a `PersonRecord`, whose image may be damaged.

    name: what they are, for people. aligned: whether a record set has them already, so
    that captions must keep its numbering; else unreadable ones are left out.
    """

    name: str
    aligned: bool

    def image_id(self, index: int) -> str:
        """An image's id where it is known without reading the image, else ""."""
        return ""

    def fingerprint(self) -> dict[str, int | str]:
        """What must be the same when a job goes on."""
        raise NotImplementedError


class RecordPictures(Pictures):
    """The images of a prepared record set."""

    aligned = True

    def __init__(self, folder: str | os.PathLike, split: str) -> None:
        self.records = Records(folder, split, PersonRecord)
        self.name = f"{folder} split {split}"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> PersonRecord:
        try:
            return self.records[index]
        except UserError as error:
            said = epath.Path(self.records.folder) / "dataset_info.json"
            if said.exists():
                raise  # the one record is damaged
            raise OSError(errno.EIO, f"{self.records.folder} is gone") from error

    def fingerprint(self) -> dict[str, int | str]:
        """The number of records, and a hash of the set's description and of three."""
        said = epath.Path(self.records.folder) / "dataset_info.json"
        digest = hashlib.sha256(said.read_bytes())
        for index in sorted({0, len(self) // 2, len(self) - 1}):
            with contextlib.suppress(UserError, IndexError):  # a damaged one
                record = self.records[index]
                digest.update(record.image_id.encode() + record.image)
        return {"images": len(self), "image_ids": digest.hexdigest()}


class FilePictures(Pictures):
    """Image files. An image's id is its path, as the folder or the list has it.

    Bytes of a path that are no UTF-8 stand as \\xe9 in the id.
    """

    aligned = False

    def __init__(self, name: str, root: pathlib.Path, paths: list[str]) -> None:
        """root: what relative paths are relative to."""
        self.name, self._root, self._paths = name, root, paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> PersonRecord:
        path = self._paths[index]
        file = self._root / path
        if not self._root.exists():
            raise UserError(
                f"{self._root} is gone; bring it back, then run the same command again"
            )
        if file.exists() and not file.is_file():  # a pipe would be waited for, for ever
            raise OSError("no file, but a folder or a device")
        if file.stat().st_size > LARGEST:
            raise OSError(f"a file of {file.stat().st_size >> 20} MB is no picture")
        name = self.image_id(index)
        return PersonRecord(image=file.read_bytes(), image_id=name, file_path=name)

    def image_id(self, index: int) -> str:
        """The id, without reading the file."""
        path = os.fsencode(self._paths[index])
        return path.decode("utf-8", "backslashreplace")

    def fingerprint(self) -> dict[str, int | str]:
        """The number of paths and a hash of them."""
        digest = hashlib.sha256(os.fsencode("\n".join(self._paths)))
        return {"images": len(self), "image_ids": digest.hexdigest()}


def open_pictures(images: str, records: str, split: str) -> Pictures:
    """The images that a config names.

    images: a folder, or a text file with a path a line (relative ones: to the file's own
    folder); "" for a record set. records, split: that set.
    Raises UserError where nothing is there, or the list names a path twice.
    """
    if images and records:
        raise UserError(
            f"both data.images={images} and data.records={records} are given; leave "
            "one of them empty"
        )
    if not images:
        if not records:
            raise UserError(
                "no images: give a folder or a list with --config.data.images=PATH, or "
                "a record set with --config.data.records=DIR"
            )
        return RecordPictures(records, split)
    path = pathlib.Path(os.path.expanduser(images))
    if path.is_dir():
        if (epath.Path(path) / "dataset_info.json").is_file():
            raise UserError(
                f"{path} is a record set; give it as --config.data.records={path} "
                "--config.data.images="
            )
        return FilePictures(str(images), path, _walk(path))
    if path.is_file():
        return FilePictures(str(images), path.parent, _listed(path))
    raise UserError(
        f"{path} is not there; give a folder of images, or a text file with a path a line"
    )


def _walk(root: pathlib.Path) -> list[str]:
    """The relative paths of all image files below a folder, sorted.

    Links are followed, but into no folder twice: they may lead round in circles.
    """
    seen = {os.path.realpath(root)}

    def enter(folder: os.DirEntry) -> bool:
        real = os.path.realpath(folder.path)
        return real not in seen and not seen.add(real)

    found = [path for path, _ in folders.pictures(root, enter=enter, unlisted=_refuse)]
    if not found:
        raise UserError(
            f"no image in {root} ({', '.join(SUFFIXES)}), at any depth; give a folder "
            "that holds some"
        )
    return sorted(found)


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed would leave its images out, unsaid."""
    raise UserError(
        f"{error.filename} cannot be listed ({error.strerror}); let this user read it, "
        "or give a list of the images that shall be captioned"
    ) from error


def _listed(file: pathlib.Path) -> list[str]:
    """The paths in a text file, a line each; empty lines do not count."""
    try:
        # Not splitlines(), which parts names at characters such as U+2028, too.
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is no text ({error}); give a folder, or a text file with the path "
            "of an image in each line"
        ) from error
    first: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if line in first:
            raise UserError(
                f"{file}:{number}: '{line}' is in line {first[line]} already; an image's "
                "path is its id, so let each stand once"
            )
        if line:
            first[line] = number
    if not first:
        raise UserError(f"{file} names no image; write the path of one in each line")
    return list(first)
