"""A folder as people have it on disk: its files by path, archives read in place.

In: a folder. Out: where each file lies, and its bytes. Nothing is unpacked, nothing is
written, and nothing outside of the folder is read: a link that leads out is refused.
"""

import bz2
import collections
import gzip
import lzma
import os
import pathlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from unipt_jax.data import images
from unipt_jax.errors import UserError

TAR = {
    ".tar": open,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
    ".tar.xz": lzma.open,
    ".txz": lzma.open,
}
ARROW = ".arrow"
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError)
_DAMAGED += (OSError, ValueError, NotImplementedError)
_STARTS = 50  # folders that paths are looked for in
_SAMPLE = 20  # paths of each first folder that are looked for anywhere


class Place(NamedTuple):
    """Where an image lies.

    file: a path below the folder. member: in an archive, its name there. start, size:
    in a tar the bytes, unpacked; in an Arrow file the batch and the row.
    """

    file: str
    member: str = ""
    start: int = -1
    size: int = -1


def readable(path: str) -> str:
    """A path as text: bytes of it that are no UTF-8 stand as \\xe9."""
    if path.isascii():
        return path  # the very object: there may be millions
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """A text in one line that any terminal shows: what is no such character stands as
    \\n or \\x1b."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def shortened(text: str, most: int = 160) -> str:
    """A text as an error shows it: its beginning, where it is long."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def inside(path: str, where: str) -> str:
    """The path in its plain form, a/b for ./a//b and a\\b.

    Raises UserError, which begins with `where`, for one that leads out of its folder.
    """
    plain = path if "/" in path else path.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    absolute = plain.startswith("/") or pathlib.PureWindowsPath(plain).drive
    if absolute or ".." in parts or "\0" in plain or not parts:
        raise UserError(
            f"{where}: the path '{shortened(readable(path))}' leads out of its folder, "
            "or nowhere; only paths below it are read: correct it"
        )
    return "/".join(parts)


def hidden(path: str) -> bool:
    """Whether a path is of a hidden file, or one of those that macOS leaves behind."""
    parts = path.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def tails(path: str) -> Iterator[str]:
    """The path, then without its first folder, its first two ..."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield path


def as_it_lies(place: Place) -> tuple[str, int]:
    """Sorts places in the order in which an archive has them."""
    return place.file, place.start


def is_wound(place: Place) -> bool:
    """Whether it lies in an archive that is compressed as a whole: to go back in it is
    to unpack it from its beginning."""
    return archive_suffix(place.file) in TAR.keys() - {".tar"} and bool(place.member)


def archive_suffix(name: str) -> str | None:
    """`.tar.gz` and the like where the name is an archive's, else None."""
    lower = name.lower()
    return next((s for s in (*TAR, ".zip") if lower.endswith(s)), None)


class Raw:
    """All files below a folder; hidden ones and macOS's leftovers do not count.

    files: path -> place. dead: links to nothing. outside: links -> what they lead to
    outside of the folder. starts: what the paths that `locate` found are relative to,
    and how many to each. several: of the paths that lie in more than one place, which
    was taken. Raises UserError where there is no such folder, or one below
    it cannot be listed.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.name = os.fspath(root).rstrip("/") or "/"
        self.root = os.path.realpath(os.path.expanduser(self.name))
        if not os.path.isdir(self.root):
            what = "a file" if os.path.exists(self.root) else "not there"
            raise UserError(f"--raw {root} is {what}; give the folder with the source")
        self.files: dict[str, Place] = {}
        self.dead: list[str] = []
        self.outside: dict[str, str] = {}
        self._links: dict[str, str] = {}  # folders: path -> path without the link
        self.starts: collections.Counter = collections.Counter()
        self.several: list[str] = []
        self._archives: list[str] = []
        with tqdm(desc=f"listing {self.name}", unit=" files", delay=2) as progress:
            folders = [""]
            while folders:  # which may lie thousands deep
                folders += reversed(self._list(folders.pop(), progress))

    def _list(self, below: str, progress: tqdm) -> list[str]:
        """Adds the files of a folder; gives the folders in it."""
        folders = []
        try:
            found = sorted(os.scandir(f"{self.root}/{below}"), key=lambda e: e.name)
        except OSError as error:
            raise UserError(
                f"{error.filename} cannot be listed ({error.strerror}); let this user "
                "read it, or move it away"
            ) from error
        progress.update(len(found))
        for entry in found:
            path = below + entry.name
            if hidden(entry.name):
                continue
            if entry.is_symlink():
                self._add_link(path)
            elif entry.is_dir():
                folders.append(f"{path}/")
            elif entry.is_file():
                self._add(path)
        return folders

    def _add(self, path: str) -> None:
        if archive_suffix(path):
            self._archives.append(path)
        self.files[path] = Place(path)

    def _add_link(self, path: str) -> None:
        real = os.path.realpath(f"{self.root}/{path}")
        if not os.path.exists(real):
            self.dead.append(path)
        elif real != self.root and not real.startswith(f"{self.root}/"):
            self.outside[path] = real
        elif os.path.isdir(real):
            self._links[path] = os.path.relpath(real, self.root)
        elif stat.S_ISREG(os.stat(real).st_mode):
            self._add(path)

    def open_archives(self) -> None:
        """Adds what lies in archives: `part.tar` holds `part.tar/a.jpg`.

        Raises UserError for one that is damaged, encrypted, or has a path that leads
        out of it.
        """
        while self._archives:
            archive = self._archives.pop(0)
            del self.files[archive]
            where = f"{self.name}/{archive}"
            progress = tqdm(desc=f"listing {archive}", unit=" files", delay=2)
            try:
                for name, there in _members(f"{self.root}/{archive}", archive, where):
                    name, place = inside(name, where), there
                    if isinstance(there, str):
                        linked = f"{archive}/{there.removeprefix('./')}"
                        place = self.files.get(linked)
                    if place and not hidden(name):
                        self.files[f"{archive}/{name}"] = place
                    progress.update()
            except UserError:
                raise
            except _DAMAGED as error:
                said = str(error) or type(error).__name__
                raise UserError(
                    f"{where} is no archive, or is damaged ({said}); fetch it again, or "
                    "move it away"
                ) from error
            finally:
                progress.close()

    def images(self) -> Iterator[tuple[str, Place]]:
        """Every picture, archives opened, in the order of their paths; those of an
        archive that is wound, as they lie in it.

        Raises UserError for a link that leads out of the folder, and as
        `open_archives`.
        """
        self.open_archives()
        for path in self.outside:
            self.refuse(path)

        def order(path: str) -> tuple[str, int, str]:
            place = self.files[path]
            return place.file, place.start if is_wound(place) else -1, path

        for path in sorted(self.files, key=order):
            if path.lower().endswith(images.SUFFIXES):
                yield path, self.files[path]

    def named(self, *names: str, suffix: str = "") -> list[str]:
        """Files of these names, or with that suffix: at the top, or else one or two
        folders below it; the names' order first.

        Raises UserError for a link of such a name that leads out, or nowhere.
        """
        for path in (*self.outside, *self.dead):
            name = path.rpartition("/")[2]
            if name in names or (suffix and name.lower().endswith(suffix)):
                if path in self.outside:
                    self.refuse(path)
                raise UserError(
                    f"{self.name}/{readable(path)} is a link to nothing; put the file "
                    "there, or remove the link"
                )
        for depth in (0, 1, 2):
            level = [p for p in self.files if p.count("/") == depth]
            found = [p for name in names for p in level if p.split("/")[-1] == name]
            found += sorted(p for p in level if suffix and p.lower().endswith(suffix))
            if found:
                return found
        return []

    def refuse(self, path: str) -> None:
        """Raises UserError that names a link leading out."""
        raise UserError(
            f"{self.name}/{readable(path)} is a link to {self.outside[path]}, outside "
            f"of {self.name}: only what lies below it is read; put the files there, or "
            "give the folder that holds both as --raw"
        )

    def find(self, path: str) -> Place | None:
        """The file of that path; links of folders are followed. Raises UserError where
        the path leads through a link out of the folder."""
        for _ in range(8):  # a link through a link
            if place := self.files.get(path):
                return place
            parts = path.split("/")
            heads = ["/".join(parts[: i + 1]) for i in range(len(parts))]
            for head in heads:
                if head in self.outside:
                    self.refuse(head)
            link = next((head for head in heads if head in self._links), None)
            if link is None:
                return None
            path = (self._links[link] + path[len(link) :]).removeprefix("./")
        return None

    def locate(self, paths: Sequence[str]) -> list[Place | None]:
        """Where each of the paths lies that an annotation file names, or None.

        They may be relative to the folder, to `imgs` or to any folder below: some of
        them are looked for everywhere, which gives the folders to start from. Archives
        are opened where something is missing. Where nothing at all is found, the
        folder may be one in which all of them lie: then their first folders are left
        out, unless two paths would come to one file.
        """
        places = self._locate(paths)
        if self._archives and None in places:
            self.open_archives()
            places = self._locate(paths)
        ends = paths
        while not any(places) and any("/" in end for end in ends):
            ends = [end.partition("/")[2] or end for end in ends]
            found = [self.find(end) for end in ends]
            if some := [place for place in found if place]:
                return found if len(set(some)) == len(some) else places
        return places

    def _locate(self, paths: Sequence[str]) -> list[Place | None]:
        starts, places = self._starts(paths), []
        self.starts, self.several = collections.Counter(), []
        for path in paths:
            found = ((start, self.find(start + path)) for start in starts)
            start, place = next((f for f in found if f[1]), ("", None))
            places.append(place)
            if place:
                self.starts[start] += 1
                if other := next((p for _, p in found if p and p != place), None):
                    self.several.append(f"{place.file}, not {other.file}")
        return places

    def _starts(self, paths: Sequence[str]) -> list[str]:
        """Folders that the paths may be relative to, the likeliest first."""
        sample = collections.defaultdict(list)
        for path in paths:
            sample[path.split("/")[0] if "/" in path else ""].append(path)
        sampled = {  # from all of it: its beginning may be missing
            path
            for some in sample.values()
            for path in some[:: max(1, len(some) // _SAMPLE)]
        }
        hits = collections.Counter({"imgs/": 0, "": 0})
        for file in self.files:
            for tail in tails(file):
                if tail in sampled:
                    hits[file[: len(file) - len(tail)]] += 1
        # The annotation's own place comes first of two that hold as many.
        starts = sorted(
            hits, key=lambda s: (-hits[s], s.count("/"), s != "imgs/", len(s), s)
        )
        return starts[:_STARTS]


def _members(file: str, archive: str, where: str) -> Iterator[tuple[str, Place | str]]:
    """The regular files of an archive by name; of a tar's hard link, whose bytes lie
    there once, the name of the other file."""
    suffix = archive_suffix(archive)
    if suffix == ".zip":
        with zipfile.ZipFile(file) as opened:
            for item in opened.infolist():
                if item.flag_bits & 1:
                    raise UserError(
                        f"{where}: '{item.filename}' is encrypted; unpack the archive "
                        "with its password, then give the folder"
                    )
                inside(item.filename, where)
                if not item.is_dir():
                    yield item.filename, Place(archive, item.filename)
        return
    opener = TAR[suffix](file, "rb")
    with opener as stream, tarfile.open(fileobj=stream, mode="r:") as opened:
        for item in opened:
            opened.members.clear()  # which would hold a kilobyte for each
            if item.name not in (".", "./"):
                inside(item.name, where)
            if item.isreg():
                place = Place(archive, item.name, item.offset_data, item.size)
                yield item.name, place
            elif item.islnk():
                yield item.name, item.linkname
        _check_end(stream, opened.offset)


def _check_end(stream: BinaryIO, end: int) -> None:
    """Sees to what tarfile does not: an archive cut off between two members, a bad
    checksum of what it was packed in, and two archives in one file."""
    stream.seek(end)
    if len(block := stream.read(512)) < 512 or block.strip(b"\0"):
        raise EOFError("it ends early")
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise EOFError("there is more after its end")


class Reader:
    """Reads places of a folder; one to a thread. Archives stay open."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = os.fspath(root)
        self._open: dict[str, Any] = {}

    def read(self, place: Place) -> bytes:
        """The bytes there. Raises OSError where they cannot be read, or are too many
        for a picture."""
        file = os.path.join(self.root, place.file)
        try:
            if place.file.lower().endswith(ARROW):
                return self._of_arrow(file, place)
            suffix = archive_suffix(place.file) if place.member else None
            if suffix == ".zip":
                return self._of_zip(file, place)
            if suffix:
                return self._of_tar(file, place, TAR[suffix])
        except (OSError, MemoryError):
            raise
        except Exception as error:  # zlib, struct, pyarrow ... raise kinds of their own
            raise OSError(f"{place.file}: {type(error).__name__}: {error}") from error
        with open(file, "rb") as opened:
            _admit(os.fstat(opened.fileno()).st_size)
            return opened.read()

    def _keep(self, file: str, opened: Any) -> Any:
        if len(self._open) >= 8:
            oldest = next(iter(self._open))
            self._open.pop(oldest).close()
        self._open[file] = opened
        return opened

    def _of_zip(self, file: str, place: Place) -> bytes:
        opened = self._open.get(file) or self._keep(file, zipfile.ZipFile(file))
        _admit(opened.getinfo(place.member).file_size)
        return opened.read(place.member)

    def _of_tar(self, file: str, place: Place, opener: Any) -> bytes:
        # A compressed one is unpacked up to there; forward, it goes on where it was.
        stream: BinaryIO = self._open.get(file) or self._keep(file, opener(file, "rb"))
        _admit(place.size)
        stream.seek(place.start)
        return stream.read(place.size)

    def _of_arrow(self, file: str, place: Place) -> bytes:
        from data_prep import arrow  # few need pyarrow's 50 MB

        batches = self._open.get(file) or self._keep(file, arrow.Batches(file))
        encoded = batches.image(place.start, place.size)
        _admit(len(encoded))
        return encoded


def _admit(size: int) -> None:
    if size > images.LARGEST:
        raise OSError(f"{size >> 20} MB are no picture")
