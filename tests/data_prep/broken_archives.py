"""Trees whose archives or Arrow files are wrong."""

import pyarrow as pa
from breakage import (
    Broken,
    Make,
    arrow,
    every,
    file,
    folder,
    picture,
    pipe,
    tarred,
    zipped,
)
from broken_pictures import CUT, LUPERSON, LUPERSON_T, MLLM

TWO = {"a/1.png": picture(1, (64, 64)), "a/2.png": picture(2, (64, 64))}
DAMAGED = ("is no archive, or is damaged", "fetch it again")


def archive(name: str, make: Make, *words: str) -> Broken:
    """A folder to pre-train on that has an archive."""
    return Broken(f"luperson: {name}", LUPERSON, make, words or DAMAGED)


def _flag(data: bytes) -> bytes:
    """The bits of a zip's members that say that they are encrypted."""
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        places = [i for i in range(len(data)) if data.startswith(mark, i)]
        for place in places:
            data = data[: place + at] + b"\1" + data[place + at + 1 :]
    return data


def _huge(data: bytes) -> bytes:
    """A zip whose only member is said to unpack to nearly 4 GB."""
    at = data.index(b"PK\1\2") + 24
    data = data[:at] + b"\xf0\xff\xff\xff" + data[at + 4 :]
    return data[:22] + b"\xf0\xff\xff\xff" + data[26:]


ARCHIVES = [
    *(
        archive(f"{name} is {what}", file(name, content))
        for name in ("a.zip", "a.tar", "a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz")
        for what, content in (("empty", b""), ("text", b"404 Not Found" * 99))
    ),
    archive("a zip cut off", zipped("a.zip", TWO, lambda d: d[:200])),
    archive("a zip without its beginning", zipped("a.zip", TWO, lambda d: d[99:-30])),
    archive("a tar cut off in a member", tarred("a.tar", TWO, lambda d: d[:600])),
    archive("a tar cut off between", tarred("a.tar", TWO, lambda d: d[:2048])),
    *(
        archive(
            f"a tar.{kind} cut off",
            tarred(f"a.tar.{kind}", TWO, lambda d: d[: len(d) // 2], f"w:{kind}"),
        )
        for kind in ("gz", "bz2", "xz")
    ),
    archive(
        "a tar with a wrong size",
        tarred("a.tar", TWO, lambda d: d[:124] + b"77777777777" + d[135:]),
    ),
    archive("a tar.gz that is a tar", tarred("a.tar.gz", TWO)),
    archive(
        "a tar that is a tar.gz",
        tarred("a.tar", TWO, mode="w:gz"),
    ),
    archive("a zip in name alone", tarred("a.zip", TWO)),
    archive(
        "an encrypted zip",
        zipped("a.zip", TWO, _flag),
        "'a/1.png' is encrypted",
        "unpack the archive",
    ),
    *(
        archive(
            f"a {kind} that leads out by {label}",
            pack(f"a.{kind}", {"1.png": picture(), path: b"x"}),
            f"a.{kind}: the path '",
            "leads out of its folder",
            "correct it",
        )
        for kind, pack in (("zip", zipped), ("tar", tarred))
        for label, path in {
            "dots": "../../1.png",
            "its root": "/etc/1.png",
            "a drive": "C:/1.png",
            "terminal codes": "../\x1b[2J\n1.png",
        }.items()
    ),
    archive("an empty zip", zipped("a.zip", {}), "no image in", "give the folder"),
    archive("an empty tar", tarred("a.tar", {}), "no image in", "give the folder"),
    archive(
        "a zip's member damaged",
        zipped("a.zip", TWO, lambda d: d[:60] + b"\0\0\0\0" + d[64:]),
        "1 image cannot be read: a.zip/a/1.png (",
        "CRC",
    ),
    archive(
        "a zip's member of 4 GB",
        zipped("a.zip", {"1.png": picture()}, _huge),
        "1 image cannot be read: a.zip/1.png (4095 MB",
    ),
    archive(
        "a zip's member packed in no known way",
        zipped(
            "a.zip",
            {"1.png": picture()},
            lambda d: d.replace(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x63\0"),
        ),
        "1 image cannot be read: a.zip/1.png (",
    ),
    archive(
        "a tar's picture damaged",
        tarred("a.tar", {"1.png": CUT}),
        "1 image cannot be read: a.tar/1.png (",
    ),
    Broken(
        "luperson_mllm: a damaged archive where a picture is missing",
        MLLM,
        every(file("a.json", {"x/1.png": "a man"}), file("x.zip", b"PK\3\4" * 30)),
        DAMAGED,
    ),
    archive("an archive that is a folder", folder("a.zip"), "no image in"),
    archive("an archive that is a pipe", pipe("a.tar"), "no image in"),
]

ROW = {"image": [picture(1), picture(2)], "caption": ["a man", "a woman"]}
FETCH = "fetch"
NO_UTF8 = pa.array([b"a man", b"\xff\xfe"], pa.binary()).view(pa.string())


def arrows(name: str, make: Make, *words: str) -> Broken:
    """LUPerson-T with an Arrow file."""
    return Broken(f"luperson_t: Arrow {name}", LUPERSON_T, make, ("x.arrow", *words))


ARROW = [
    *(
        arrows(what, file("x.arrow", content), "is no Arrow file", FETCH)
        for what, content in {
            "empty": b"",
            "text": b"404 Not Found",
            "zeros": bytes(5000),
            "its mark alone": b"ARROW1\0\0",
            "a picture": picture(),
        }.items()
    ),
    arrows("cut off", arrow("x.arrow", ROW, change=lambda d: d[:-200]), FETCH),
    arrows(
        "cut in half", arrow("x.arrow", ROW, change=lambda d: d[: len(d) // 2]), FETCH
    ),
    arrows(
        "without batches",
        arrow("x.arrow", schema=pa.schema([("image", pa.binary())])),
        "has no rows",
        FETCH,
    ),
    arrows(
        "without rows",
        arrow(
            "x.arrow",
            {"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())},
        ),
        "has no rows",
        FETCH,
    ),
    arrows(
        "without captions",
        arrow("x.arrow", {"image": [picture()], "text": ["a man"]}),
        "has the columns image, text",
        "expected image and caption",
    ),
    arrows(
        "with captions of numbers",
        arrow("x.arrow", ROW | {"caption": [1, 2]}),
        "row 0 of batch 0",
        "'caption' is 1",
    ),
    arrows(
        "with a caption that is null",
        arrow("x.arrow", ROW | {"caption": ["a man", None]}),
        "row 1 of batch 0",
        "'caption' is null",
    ),
    arrows(
        "with captions as bytes",
        arrow("x.arrow", ROW | {"caption": [b"a man", b"\xff"]}),
        "row 0 of batch 0",
        "'caption' is",
    ),
    arrows(
        "with a list of captions, one null",
        arrow("x.arrow", ROW | {"caption": [["a man"], ["a woman", None]]}),
        "row 1 of batch 0",
        "'caption' is",
    ),
    arrows(
        "with a caption that is no UTF-8",
        arrow("x.arrow", ROW | {"caption": NO_UTF8}),
        FETCH,
    ),
    arrows(
        "with a name that is no UTF-8",
        arrow("x.arrow", ROW | {"image_id": NO_UTF8}),
        FETCH,
    ),
    arrows(
        "with a column whose name is no UTF-8",
        arrow("x.arrow", ROW, change=lambda d: d.replace(b"caption", b"capti\xff\xfe")),
        "is damaged",
        FETCH,
    ),
    arrows(
        "with two columns of one name",
        arrow(
            "x.arrow",
            pa.RecordBatch.from_arrays(
                [pa.array(ROW["image"]), pa.array(["a", "b"]), pa.array(["c", "d"])],
                names=["image", "caption", "caption"],
            ),
        ),
        "has the columns image, caption, caption",
    ),
    *(
        Broken(
            f"luperson_t: Arrow with images that are {what}",
            LUPERSON_T,
            arrow("x.arrow", ROW | {"image": images}),
            ("1 image cannot be read: x/0-1 (", words),
        )
        for what, images, words in (
            ("null", [picture(), None], "no bytes"),
            ("garbage", [picture(), b"404"], "cannot identify"),
            ("empty", [picture(), b""], "cannot identify"),
            ("wrapped nulls", [{"bytes": picture()}, {"bytes": None}], "no bytes"),
        )
    ),
    Broken(
        "luperson_t: Arrow with images that are texts",
        LUPERSON_T,
        arrow("x.arrow", {"image": ["a.png"], "caption": ["a man"]}),
        ("1 image cannot be read: x/0-0 (no bytes",),
    ),
    Broken(
        "luperson_t: an Arrow file named as annotation",
        LUPERSON_T,
        arrow("x.arrow", ROW),
        ("x.arrow is not UTF-8", "save it as UTF-8"),
        ("--annotations", "{raw}/x.arrow"),
    ),
    Broken(
        "luperson_t: one of two Arrow files is damaged",
        LUPERSON_T,
        every(arrow("a.arrow", ROW), arrow("x.arrow", ROW, change=lambda d: d[:99])),
        ("x.arrow", FETCH),
    ),
]

TREES = [*ARCHIVES, *ARROW]
