"""Trees whose folder, pictures or links are wrong."""

import pathlib
import subprocess

from breakage import (
    Broken,
    Make,
    bomb,
    entries,
    entry,
    every,
    file,
    folder,
    link,
    nothing,
    picture,
    pictures,
    pipe,
)

LUPERSON, LUPERSON_T, MLLM = "luperson", "luperson_t", "luperson_mllm"
CUT = picture(9, (64, 128), "JPEG")[:400]


def _no_raw(name: str) -> list[Broken]:
    return [
        Broken(
            f"{name}: raw is not there",
            name,
            nothing,
            ("--raw ", "raw is not there", "give the folder"),
            ready=False,
        ),
        Broken(
            f"{name}: raw is a file",
            name,
            lambda raw: raw.write_bytes(b"x"),
            ("raw is a file", "give the folder"),
            ready=False,
        ),
        Broken(
            f"{name}: raw is a link to itself",
            name,
            lambda raw: raw.symlink_to(raw),
            ("raw is not there", "give the folder"),
            ready=False,
        ),
    ]


def _deep(raw: pathlib.Path) -> None:
    path = raw.joinpath(*"d" * 1_200)
    subprocess.run(["mkdir", "-p", path], check=True)


ROOT = [tree for name in ("cuhk_pedes", LUPERSON, "folder") for tree in _no_raw(name)]
ROOT += [
    Broken("luperson: empty", LUPERSON, nothing, ("no image in", "give the folder")),
    Broken("folder: empty", "folder", nothing, ("no image in", "give the folder")),
    Broken("luperson: 1,200 folders deep", LUPERSON, _deep, ("no image in", "give")),
    Broken(
        "luperson: pictures that do not count",
        LUPERSON,
        pictures(".hidden/1.png", "__MACOSX/2.png", "._3.png", "4.png.txt"),
        ("no image in", "at any depth", "give the folder"),
    ),
    Broken(
        "luperson: a folder, a pipe and a dead link named like pictures",
        LUPERSON,
        every(folder("1.png"), pipe("2.png"), link("3.png", "gone.png")),
        ("1 of 1 images of . is missing", "1 is a dead link"),
    ),
    Broken(
        "luperson: a link to itself",
        LUPERSON,
        link("1.png", "1.png"),
        ("1 of 1 images of . is missing", "1 is a dead link"),
    ),
]


def bad(name: str, content: bytes, *words: str, at: str = "1.png") -> Broken:
    """A folder to pre-train on with one picture in it, and that is bad."""
    return Broken(
        f"luperson: {name}",
        LUPERSON,
        file(at, content),
        (f"1 image cannot be read: {at} (", *words),
    )


BAD = [
    bad("an empty picture", b"", "cannot identify"),
    bad("a cut off picture", CUT, "runcated", at="1.jpg"),
    bad("text in place of a picture", b"404 Not Found"),
    bad("zeros in place of a picture", bytes(4096), at="1.bmp"),
    bad("a PNG of 60000x60000", bomb(60_000, 60_000), "bomb"),
    bad("a PNG of 10000x10000", bomb(10_000, 10_000), "bomb"),
    bad("a PNG of 0x0", bomb(0, 0)),
    bad("a PNG that lacks most of it", bomb(500, 500)),
    bad("a TIFF of garbage", b"II*\0\x08\0\0\0" + b"\xff" * 200, at="1.tif"),
    bad("a GIF of its head alone", b"GIF89a\xff\xff\xff\xff", at="1.gif"),
    bad("a WebP of its head alone", b"RIFF\xff\xff\xff\xffWEBPVP8 ", at="1.webp"),
    bad("a PPM with a wrong head", b"P6 99999999999999999999 9 255\n", at="1.ppm"),
]
BAD += [
    Broken(
        "luperson: a bad picture with control characters in its name",
        LUPERSON,
        file("1\n2\x1b[31m\u202e.png", b"x"),
        (r"1 image cannot be read: 1\n2\x1b[31m\u202e.png (",),
    )
]


def _odd_bytes(content: bytes) -> Make:
    """A file whose name is no UTF-8."""

    def make(raw: pathlib.Path) -> None:
        pathlib.Path(f"{raw}/caf\udce9.png").write_bytes(content)

    return make


BAD += [
    Broken(
        "luperson: a bad picture with a name that is no UTF-8",
        LUPERSON,
        _odd_bytes(b"x"),
        (r"1 image cannot be read: caf\xe9.png (",),
    ),
    Broken(
        "rstp_reid: pictures in no annotation with names that are no UTF-8",
        "rstp_reid",
        every(entries("rstp_reid"), _odd_bytes(picture())),
        ("train is not as published",),
    ),
    Broken(
        "luperson: one of three is bad",
        LUPERSON,
        every(pictures("a.png", "b.png"), file("c.png", b"")),
        ("1 image cannot be read: c.png (",),
    ),
    Broken(
        "luperson: all bad, and told to go on",
        LUPERSON,
        every(file("a.png", b""), file("b.png", CUT)),
        ("none of the ", "images of ", "can be read"),
        ("--allow-missing",),
    ),
    Broken(
        "luperson_t: all missing, and told to go on",
        LUPERSON_T,
        file("a.json", [{"file_path": "x/1.png", "captions": ["a man"]}]),
        ("none of the images of luperson_t (1)", "give the folder"),
        ("--allow-missing",),
    ),
    *(
        Broken(
            f"{name}: all pictures missing",
            name,
            every(entries(name), lambda raw: _without_pictures(raw)),
            (f"none of the images of {name} (1)", "give the folder that holds them"),
        )
        for name in ("cuhk_pedes", "icfg_pedes", "rstp_reid", "synth_pedes", "mals")
    ),
    Broken(
        "synth_pedes: one of two missing",
        "synth_pedes",
        entries("synth_pedes", entry("synth_pedes", file_path="b/2.png")),
        ("1 of 1 images of b is missing, the whole folder",),
    ),
    Broken(
        "mals: the picture is a folder",
        "mals",
        every(entries("mals", entry("mals", image="a/2.png")), folder("a/2.png")),
        ("1 of 2 images of a is missing: a/2.png",),
    ),
    Broken(
        "mals: the picture is a pipe",
        "mals",
        every(entries("mals", entry("mals", image="a/2.png")), pipe("a/2.png")),
        ("1 of 2 images of a is missing: a/2.png",),
    ),
    Broken(
        "cuhk_pedes: the picture is a dead link",
        "cuhk_pedes",
        every(
            entries("cuhk_pedes", entry("cuhk_pedes", file_path="cam_a/2.png")),
            link("imgs/cam_a/2.png", "gone.png"),
        ),
        ("1 of 2 images of cam_a is missing: cam_a/2.png", "1 is a dead link"),
    ),
    Broken(
        "luperson_t: a path of 10,000 letters that is not there",
        LUPERSON_T,
        entries(LUPERSON_T, {"file_path": "a/" + "y" * 10_000, "captions": ["a man"]}),
        ("1 of 2 images of a is missing: a/yyy", "yyy..."),
    ),
    Broken(
        "luperson_mllm: a missing picture in 5,000 folders",
        MLLM,
        every(pictures("1.png"), file("a.json", {"1.png": "a", "q/" * 5_000: "a man"})),
        ("is missing",),
    ),
    Broken(
        "luperson_t: a missing picture with control characters in its name",
        LUPERSON_T,
        entries(LUPERSON_T, {"file_path": "a/\n\x1b[2J.png", "captions": ["a man"]}),
        (r"1 of 2 images of a is missing: a/\n\x1b[2J.png",),
    ),
    Broken(
        "luperson_t: a caption of 1 MB, and no picture",
        LUPERSON_T,
        entries(LUPERSON_T, {"file_path": "a/2.png", "captions": ["ab " * 350_000]}),
        ("1 of 2 images of a is missing: a/2.png",),
    ),
    Broken(
        "luperson_t: terminal codes in a caption, and no picture",
        LUPERSON_T,
        entries(
            LUPERSON_T, {"file_path": "a/2.png", "captions": ["\x1b[2J\0 a\u202e"]}
        ),
        ("1 of 2 images of a is missing: a/2.png",),
    ),
]


def _without_pictures(raw: pathlib.Path) -> None:
    for path in raw.rglob("*.png"):
        path.unlink()


LINKS = [
    Broken(
        "luperson: a link out",
        LUPERSON,
        every(pictures("1.png", "../other/2.png"), link("2.png", "/other/2.png")),
        ("2.png is a link to", "other/2.png, outside", "put the files there"),
    ),
    Broken(
        "luperson: a folder's link out",
        LUPERSON,
        every(pictures("1.png", "../other/2.png"), link("more", "/other")),
        ("more is a link to", "other, outside", "put the files there"),
    ),
    Broken(
        "luperson: a link out with control characters",
        LUPERSON,
        every(pictures("1.png", "../o\n\x1b[2J/2.png"), link("2\n.png", "/o\n\x1b[2J")),
        (r"2\n.png is a link to", r"o\n\x1b[2J, outside", "put the files there"),
    ),
    Broken(
        "cuhk_pedes: imgs is a link out",
        "cuhk_pedes",
        every(
            file("reid_raw.json", [entry("cuhk_pedes")]),
            pictures("../other/cam_a/1.png"),
            link("imgs", "/other"),
        ),
        ("imgs is a link to", "outside", "put the files there"),
    ),
    Broken(
        "mals: a picture is a link out",
        "mals",
        every(
            entries("mals", entry("mals", image="a/2.png")),
            pictures("../other/2.png"),
            link("a/2.png", "/other/2.png"),
        ),
        ("a/2.png is a link to", "outside"),
    ),
    Broken(
        "rstp_reid: folders that are links to each other",
        "rstp_reid",
        every(
            entries("rstp_reid", entry("rstp_reid", img_path="a/b/2.png")),
            folder("x"),
            link("a", "x"),
            link("x/b", "../y"),
            link("y", "a/b"),
        ),
        ("1 of 1 images of a/b is missing",),
    ),
]

TREES = [*ROOT, *BAD, *LINKS]
