"""Small fakes of CUHK-PEDES, ICFG-PEDES and RSTPReid as they lie on disk.

    tree = trees.cuhk_pedes(tmp_path / "raw")
    tree.write(images="data/imgs.zip", bom=True)    # traps are keywords
    done = trees.run("cuhk_pedes", "--raw", tree.raw, "--check")

Entries may be changed, taken out and moved before they are written. Each set comes with
the counts that it has: `tree.publish(monkeypatch)` makes them the published ones.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from PIL import Image

from data_prep import build, checks, identities
from data_prep.entries import Counts, Published
from unipt_jax.data import records
from unipt_jax.data.records import PersonRecord, Records

CUHK_FOLDERS = {
    "cam_a": "{id:03d}{n:05d}_45.bmp",
    "cam_b": "{id:03d}{n:05d}_90.bmp",
    "CUHK01": "{id:04d}{n:05d}.png",
    "CUHK03": "{id}_{n}_1.png",
    "Market": "{id:04d}_c1s1_{n:06d}_00.jpg",
    "test_query": "p{id}_s{n}.jpg",
    "train_query": "p{id}_s{n}.jpg",
}
FORMATS = {".bmp": "BMP", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
COLOURS = ["red", "green", "blue", "white", "black", "yellow", "purple", "brown"]

# What the fakes have when nothing else is asked for. CUHK's first person has one image.
SMALL = {
    "cuhk_pedes": Published(
        {
            "train": Counts(13, 7, 28),
            "val": Counts(4, 2, 8),
            "test": Counts(4, 2, 8),
        },
        captions=(42,),
        first_id=1,
    ),
    "icfg_pedes": Published(
        {"train": Counts(12, 4, 12), "test": Counts(6, 2, 6)},
        images=(17,),
        captions=(17,),
    ),
    "rstp_reid": Published(
        {
            "train": Counts(15, 3, 30),
            "val": Counts(5, 1, 10),
            "test": Counts(5, 1, 10),
        }
    ),
}


class Done(NamedTuple):
    """What a command gave. error: its one sentence on stderr, or ""."""

    code: int
    out: str
    error: str

    def problems(self) -> list[str]:
        """The findings that stand in the way."""
        return [
            line.removeprefix("PROBLEM: ")
            for line in self.out.splitlines()
            if line.startswith("PROBLEM: ")
        ]

    def notes(self) -> list[str]:
        """The findings that do not."""
        return [
            line.removeprefix("note: ")
            for line in self.out.splitlines()
            if line.startswith("note: ")
        ]


def run(*args: Any) -> Done:
    """`python -m data_prep.build ARGS` in this process. On stderr there may be progress
    bars and, if the exit code is 1, one sentence."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = build.main([str(arg) for arg in args])
    said = [s for s in re.split(r"[\r\n]+", err.getvalue()) if s.strip("\x1b[A ")]
    said = [line for line in said if not line.rstrip().endswith("]")]  # a bar
    assert code in (0, 1)
    assert len(said) == code, err.getvalue()
    if code:
        assert said[0].startswith("error: ")
        said[0] = said[0].removeprefix("error: ")
    assert "Traceback" not in out.getvalue() + err.getvalue()
    return Done(code, out.getvalue(), said[0] if said else "")


def read(out: pathlib.Path) -> dict[str, list[PersonRecord]]:
    """Split -> its records."""
    names = records.splits(out)
    return {name: list(Records(out, name, PersonRecord)) for name in names}


def draw(number: int, person: int = 0, size: tuple[int, int] = (24, 48)) -> Image.Image:
    """A person's colour, with a patch that no other number below 4,096 has; size: width
    and height."""
    image = Image.new("RGB", size, COLOURS[person % len(COLOURS)])
    for place in range(4):  # base 8, in blocks that a JPEG keeps apart
        value = 16 + 32 * (number >> 3 * place & 7)
        left, top = 8 * (place % 2), 8 * (place // 2)
        image.paste((value, value, value), (left, top, left + 8, top + 8))
    return image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file; kind: `JPEG`, `PNG`, `BMP`."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(number: int, person: int, path: str, size=(24, 48)) -> bytes:
    """The file that a path's suffix says."""
    kind = FORMATS[pathlib.PurePath(path).suffix.lower()]
    return encode(draw(number, person, size), kind)


def cheap(number: int, person: int, path: str) -> bytes:
    """The same small JPEG with another comment: ten thousands of them in seconds."""
    del person, path
    comment = number.to_bytes(4, "big")
    return _CHEAP[:2] + b"\xff\xfe\x00\x06" + comment + _CHEAP[2:]


_CHEAP = encode(Image.new("RGB", (16, 32), "grey"), "JPEG")


def sentences(person: int, number: int, count: int) -> list[str]:
    """Captions of an image."""
    colour = COLOURS[person % len(COLOURS)]
    return [
        f"A person in a {colour} coat is carrying bag number {number}, seen {i} times."
        for i in range(1, count + 1)
    ]


def persons(
    published: Published, singles: frozenset[int] = frozenset(), most: int = 2
) -> list[tuple[int, str, int]]:
    """Identity, split and captions of each image of a set with those counts, ordered by
    identity. singles: identities of one image. most: captions of most images."""
    out, begin = [], published.first_id
    for split, counts in published.splits.items():
        ids = range(begin, begin + counts.identities)
        begin += counts.identities
        several = [i for i in ids if i not in singles]
        mine = sorted(singles & set(ids)) + [
            several[n % len(several)]
            for n in range(counts.images - len(singles & set(ids)))
        ]
        extra = counts.captions - most * counts.images
        out += [(i, split, most + (n < extra)) for n, i in enumerate(sorted(mine))]
    return out


@dataclasses.dataclass
class Tree:
    """A set that is to be written below `raw`. entries: as the annotation has them,
    file: its name; paths: the name of the field that has the path."""

    name: str
    raw: pathlib.Path
    entries: list[dict[str, Any]]
    published: Published
    file: str
    paths: str = "file_path"
    picture: Callable[[int, int, str], bytes] = picture
    drawn: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drawn = {e[self.paths]: (n, e["id"]) for n, e in enumerate(self.entries)}

    @property
    def images(self) -> list[str]:
        """The paths of all entries."""
        return [entry[self.paths] for entry in self.entries]

    def of(self, split: str) -> list[dict[str, Any]]:
        """The entries of a split."""
        return [entry for entry in self.entries if entry["split"] == split]

    def encoded(self, path: str) -> bytes:
        """The picture of a path, whatever became of its entry since."""
        return self.picture(*self.drawn[path], path)

    def stored(self, path: str) -> bytes:
        """What a record of it holds: the file, or a JPEG where it is neither that nor a
        PNG."""
        encoded = self.encoded(path)
        if not path.lower().endswith(".bmp") or encoded.startswith(b"\xff\xd8"):
            return encoded
        with Image.open(io.BytesIO(encoded)) as image:
            return encode(image, "JPEG", quality=95)

    def planted(self) -> dict[str, list[PersonRecord]]:
        """The records that the set shall become, by its entries."""
        out = {}
        for split in self.published.splits:
            ids = sorted({entry["id"] for entry in self.of(split)})
            out[split] = [
                PersonRecord(
                    image=self.stored(entry[self.paths]),
                    image_id=entry[self.paths],
                    file_path=entry[self.paths],
                    person_id=entry["id"],
                    label=ids.index(entry["id"]),
                    captions=tuple(entry["captions"]),
                )
                for entry in self.of(split)
            ]
        return out

    @property
    def out(self) -> pathlib.Path:
        """Where `prepare` writes."""
        return self.raw.parent / "out"

    def check(self, *more: Any) -> Done:
        """What `--check` gives."""
        return run(self.name, "--raw", self.raw, "--check", *more)

    def prepare(self, *more: Any) -> Done:
        """What preparing the set into `out` gives."""
        return run(self.name, "--raw", self.raw, "--out", self.out, *more)

    def built(self, *more: Any) -> dict[str, list[PersonRecord]]:
        """The records of each split, once it is prepared."""
        done = self.prepare(*more)
        assert done.code == 0, done.error
        return read(self.out)

    def refused(self, *problems: str) -> None:
        """Checking and preparing find just these problems, and write nothing."""
        before = sorted(self.raw.parent.rglob("*"))
        for done in (self.check(), self.prepare()):
            assert (done.code, done.problems()) == (1, list(problems))
            number = checks.counted(len(problems), "problem", "problems")
            assert done.error == (
                f"{self.raw}: {number}, see above: training would "
                "suffer; mend them, or go on without what is missing with "
                "--allow-missing"
            )
        assert sorted(self.raw.parent.rglob("*")) == before

    def left_out(self) -> dict[str, str]:
        """Image id -> why, as the file beside the records says."""
        lines = (self.out / "left_out.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert all(row.keys() == {"image_id", "why"} for row in rows)
        return {row["image_id"]: row["why"] for row in rows}

    def publish(self, monkeypatch) -> None:
        """Has the tool take this set's counts for those that are published."""
        kind = dataclasses.replace(
            identities.KINDS[self.name], published=self.published
        )
        monkeypatch.setitem(identities.KINDS, self.name, kind)

    def write(self, **options: Any) -> "Tree":
        """Annotation and pictures, with the options of `annotate` and `illustrate`."""
        pictures = {"images", "without", "elsewhere"} & options.keys()
        self.illustrate(**{name: options.pop(name) for name in pictures})
        self.annotate(**options)
        return self

    def annotate(
        self,
        file: str | pathlib.Path = "",
        *,
        paths: str = "",
        split: bool = True,
        bom: bool = False,
        backslashes: bool = False,
        text_ids: bool = False,
        plain_captions: bool = False,
        prefix: str = "",
    ) -> pathlib.Path:
        """Writes the annotation. file: below `raw`. paths: what to call the path's
        field. split: whether there is one. backslashes: in paths. text_ids: "7" for 7.
        plain_captions: the first, as a sentence. prefix: before each path."""
        rows = []
        for entry in self.entries:
            row = dict(entry)
            path = prefix + row.pop(self.paths)
            row[paths or self.paths] = path.replace("/", "\\") if backslashes else path
            if not split:
                del row["split"]
            if text_ids:
                row["id"] = str(row["id"])
            if plain_captions:
                row["captions"] = row["captions"][0]
            rows.append(row)
        target = self.raw / (file or self.file)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(rows), encoding="utf-8-sig" if bom else "utf-8")
        return target

    def illustrate(
        self,
        images: str = "imgs",
        *,
        without: Callable[[str], bool] = lambda path: False,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        """Writes the pictures. images: the folder below `raw`, or a `.zip` or `.tar` of
        it. without: those that are missing. elsewhere: first folder -> the folder that
        has it instead of `images`."""
        files = {
            path: self.encoded(path)
            for path in dict.fromkeys(self.images)
            if not without(path)
        }
        self.raw.mkdir(parents=True, exist_ok=True)
        if images.endswith((".zip", ".tar")):
            (self.raw / images).parent.mkdir(parents=True, exist_ok=True)
            pack(self.raw / images, {f"imgs/{path}": f for path, f in files.items()})
            return
        for path, encoded in files.items():
            below = (elsewhere or {}).get(path.split("/")[0], images)
            target = self.raw / below / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encoded)


def pack(archive: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Writes a zip or a tar."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for name, content in files.items():
                opened.writestr(name, content)
        return
    with tarfile.open(archive, "w") as opened:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))


def _tokens(captions: list[str]) -> list[list[str]]:
    return [re.findall(r"[a-z0-9]+", caption.lower()) for caption in captions]


def cuhk_pedes(
    raw: pathlib.Path,
    published: Published = SMALL["cuhk_pedes"],
    singles: frozenset[int] = frozenset({1}),
    **options: Any,
) -> Tree:
    """CUHK-PEDES, its images spread over its seven folders."""
    entries, folders = [], list(CUHK_FOLDERS)
    for n, (person, split, count) in enumerate(persons(published, singles)):
        folder = folders[n % len(folders)]
        captions = sentences(person, n, count)
        entries.append(
            {
                "split": split,
                "captions": captions,
                "file_path": f"{folder}/{CUHK_FOLDERS[folder].format(id=person, n=n)}",
                "processed_tokens": _tokens(captions),
                "id": person,
            }
        )
    return Tree("cuhk_pedes", raw, entries, published, "reid_raw.json", **options)


def icfg_pedes(
    raw: pathlib.Path, published: Published = SMALL["icfg_pedes"], **options: Any
) -> Tree:
    """ICFG-PEDES, whose folders named train and test are not its splits."""
    entries = []
    for n, (person, split, count) in enumerate(persons(published, most=1)):
        captions = sentences(person, n, count)
        folder = ("train", "test")[n % 2]
        path = f"{folder}/{person:04d}/{person:04d}_{n:05d}_01_0303morning_0008_0.jpg"
        entries.append(
            {
                "split": split,
                "captions": captions,
                "file_path": path,
                "processed_tokens": _tokens(captions),
                "id": person,
            }
        )
    return Tree("icfg_pedes", raw, entries, published, "ICFG-PEDES.json", **options)


def rstp_reid(
    raw: pathlib.Path, published: Published = SMALL["rstp_reid"], **options: Any
) -> Tree:
    """RSTPReid, whose paths stand under `img_path`."""
    entries = [
        {
            "id": person,
            "img_path": f"{person:04d}_c{n % 15 + 1}_{n:04d}.jpg",
            "captions": sentences(person, n, count),
            "split": split,
        }
        for n, (person, split, count) in enumerate(persons(published))
    ]
    file = "data_captions.json"
    return Tree("rstp_reid", raw, entries, published, file, "img_path", **options)


MAKERS = {"cuhk_pedes": cuhk_pedes, "icfg_pedes": icfg_pedes, "rstp_reid": rstp_reid}
