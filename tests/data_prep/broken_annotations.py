"""Trees whose annotation file is wrong: as a file, as JSON, in an entry, as a whole."""

import json

from breakage import (
    FILES,
    GONE,
    RIGHT,
    Broken,
    entries,
    entry,
    every,
    field,
    file,
    folder,
    link,
    nothing,
    path_of,
    picture,
    pictures,
    pipe,
    text,
)

DEEP = "[" * 100_000
DIGITS = "7" * 5_000
CUHK, ICFG, RSTP = "cuhk_pedes", "icfg_pedes", "rstp_reid"
LUPERSON_T, MLLM, SYNTH, MALS = "luperson_t", "luperson_mllm", "synth_pedes", "mals"


def raw(name: str, file_name: str, content: str) -> Broken:
    """An entry of an annotation as text, where json.dumps would not write it."""
    return text(
        name, f"[{content}]", f"{FILES[name]} entry 1", "expected", label=file_name
    )


FILE = [
    Broken(f"{name}: no annotation", name, pictures("a/1.png"), (words, "put it there"))
    for name, words in {
        CUHK: "expected reid_raw.json or caption_all.json",
        ICFG: "expected ICFG-PEDES.json or ICFG_PEDES.json",
        RSTP: "expected data_captions.json",
        LUPERSON_T: "expected *.json",
        MLLM: "expected *.json",
        SYNTH: "expected synthpedes_dataset.json",
        MALS: "*_attrs.json",
    }.items()
]
FILE += [
    Broken(
        "cuhk_pedes: another set's annotation",
        CUHK,
        entries(RSTP),
        ("no annotation of cuhk_pedes", "there is data_captions.json"),
    ),
    Broken(
        "cuhk_pedes: annotation is a folder",
        CUHK,
        folder("reid_raw.json"),
        ("no annotation of cuhk_pedes",),
    ),
    Broken(
        "rstp_reid: annotation is a dead link",
        RSTP,
        link("data_captions.json", "gone.json"),
        ("data_captions.json is a link to nothing",),
    ),
    Broken(
        "icfg_pedes: annotation is a named pipe",
        ICFG,
        pipe("ICFG-PEDES.json"),
        ("no annotation of icfg_pedes",),
    ),
    *(
        Broken(
            f"{name}: --annotations names {what}",
            name,
            make,
            ("wrong.json is not there, or no file", "give a JSON file"),
            ("--annotations", "{raw}/wrong.json"),
        )
        for name in (CUHK, LUPERSON_T, MLLM, SYNTH, MALS)
        for what, make in {
            "nothing": nothing,
            "a folder": folder("wrong.json"),
            "a pipe": pipe("wrong.json"),
            "a link to itself": link("wrong.json", "wrong.json"),
        }.items()
    ),
    text(CUHK, b"", "is it cut off?", "fetch it again", label="empty"),
    text(MALS, b"  \n\n \t", "line 3", "is it cut off?", label="only spaces"),
    text(
        ICFG,
        picture(),
        "is not UTF-8",
        "save it as UTF-8",
        label="a picture",
    ),
    text(SYNTH, bytes(5000), "is no JSON", "fetch it again", label="zeros"),
    text(
        RSTP,
        '[{"id": 1}]'.encode("utf-16"),
        "is not UTF-8",
        "save it as UTF-8",
        label="UTF-16",
    ),
    text(
        LUPERSON_T,
        '[{"file_path": "a.jpg", "captions": ["un caf\xe9"]}]'.encode("latin-1"),
        "is not UTF-8",
        "save it as UTF-8",
        label="Latin-1",
    ),
    text(
        CUHK,
        '[{"id": 1, "captions": ["caf\xe9'.encode()[:-1],
        "is not UTF-8",
        label="cut off within a letter",
    ),
    text(MLLM, "<html>404</html>", "<html>", "fetch it again", label="a web page"),
    text(
        LUPERSON_T,
        "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
        "version https",
        "fetch it again",
        label="a Git LFS pointer",
    ),
]

JSON = [
    text(CUHK, '[{"id": 1, "capt', "cut off", "fetch it again", label="cut off"),
    text(ICFG, "[", "is it cut off?", label="a bracket"),
    text(
        MALS,
        json.dumps([RIGHT[MALS]])[:-1],
        "is it cut off?",
        label="never closed",
    ),
    text(MLLM, '{"a.jpg": "a man", "b.jpg"', "colon", label="cut off after a key"),
    text(
        RSTP,
        json.dumps([RIGHT[RSTP]])[:-1] + ",\n]",
        "line 2",
        "near ']'",
        label="a trailing comma",
    ),
    text(SYNTH, "[{'id': 1}]", "near \"'id'", label="single quotes"),
    text(
        CUHK,
        f"[{json.dumps(RIGHT[CUHK])}\n{{}}]",
        "line 2",
        "expected a comma",
        label="no comma",
    ),
    text(
        LUPERSON_T,
        '{"file_path": "a.jpg"}\n{"file_path": "b.jpg"}',
        "expected a list of entries",
        label="an object a line",
    ),
    text(ICFG, "[]\n[]", "expected nothing after the end", label="two lists"),
    text(RSTP, "[,]", "near ',]'", label="a comma alone"),
    text(MALS, "[\x1b[31m]", r"\x1b[31m", label="terminal codes"),
    *(
        text(name, DEEP, "is no JSON", "too many lists", label="100,000 brackets")
        for name in (CUHK, MLLM, LUPERSON_T)
    ),
    text(
        CUHK,
        '[{"file_path": "a.jpg", "id": 1, "captions": ' + "[" * 600 + "]" * 600 + "}]",
        "entry 1",
        "'captions'",
        label="captions nested 600 deep",
    ),
    Broken(
        "synth_pedes: attributes nested 600 deep",
        SYNTH,
        file(
            FILES[SYNTH],
            '[{"id": 1, "captions": [], "file_path": "a.jpg", "attributes": '
            + '{"a":' * 600
            + "1"
            + "}" * 600
            + "}]",
        ),
        ("1 image has no caption at all: a.jpg",),
    ),
    *(
        text(
            name,
            f'[{{"id": {DIGITS}, "file_path": "a.jpg"}}]',
            FILES[name],
            "a number without end",
            label="a number of 5,000 digits",
        )
        for name in (CUHK, SYNTH)
    ),
    raw(CUHK, "id is NaN", '{"id": NaN, "file_path": "a.jpg", "split": "train"}'),
    raw(RSTP, "id is -Infinity", '{"id": -Infinity, "img_path": "a.jpg"}'),
    raw(MALS, "caption is NaN", '{"image": "a.jpg", "caption": NaN}'),
    text(CUHK, "[]", "has no entries", "fetch it again", label="no entries"),
    text(MLLM, "{}", "has no entries", "fetch it again", label="no entries"),
    text(CUHK, "7", "expected a list", label="a number"),
    text(RSTP, '"data"', "expected a list", label="a text"),
    *(
        text(name, {"train": [RIGHT[name]]}, "'train'", "expected a list", label="dict")
        for name in (CUHK, ICFG, RSTP, LUPERSON_T, SYNTH, MALS)
    ),
    text(MLLM, [{"a.jpg": "a man"}], "is a list", "expected an object", label="a list"),
    *(
        text(name, [RIGHT[name], wrong], "entry 2", "expected an object", label=label)
        for name in (CUHK, RSTP, LUPERSON_T, SYNTH, MALS)
        for label, wrong in {
            "a list of texts": "a.jpg",
            "null entries": None,
            "lists in the list": ["a.jpg", "a man"],
        }.items()
    ),
    text(
        CUHK,
        '[{"id": 1, "id": 2, "split": "train", "file_path": "a.jpg", "captions": []}]',
        "line 1",
        "'id' twice",
        label="a name twice in an entry",
    ),
    text(
        LUPERSON_T,
        '[{"file_path": "a.jpg", "file_path": "b.jpg", "captions": []}]',
        "'file_path' twice",
        label="a name twice in an entry",
    ),
]

LEADS_OUT = {
    "absolute": "/etc/passwd",
    "above": "../../x.jpg",
    "above-within": "a/../../../x.jpg",
    "NUL": "a\0.jpg",
    "drive": "C:\\x.jpg",
    "drive-slashes": "C:/x.jpg",
    "share": "\\\\server\\x.jpg",
    "dots": "./.",
}
FIELDS = [
    *(field(CUHK, "id", v) for v in (1.5, -1, True, "seven", 2**70, None, [1], GONE)),
    *(field(RSTP, "id", v) for v in ("-1", "1.0", {}, "", "\u00b2", "0x1f")),
    field(ICFG, "id", DIGITS, "'id'", "expected", label="a text of 5,000 digits"),
    *(field(SYNTH, "id", v) for v in (0.0, False, GONE, 2**63)),
    *(
        field(CUHK, "captions", v)
        for v in (7, None, ["a man", None], {"a": "man"}, [["a man"]], True, GONE)
    ),
    *(field(RSTP, "captions", v) for v in ([7], GONE)),
    *(field(LUPERSON_T, "captions", v) for v in (3.5, ["a", 1], GONE)),
    *(field(SYNTH, "captions", v) for v in (None, [None])),
    *(field(MALS, "caption", v) for v in (["a", {}], 0, GONE)),
    *(field(CUHK, "split", v) for v in ("dev", None, "", 1, ["train"], "Train")),
    *(field(ICFG, "split", v) for v in ("val ", {"train": 1}, GONE)),
    *(field(RSTP, "img_path", v) for v in (7, "", "  ", None, ["a.jpg"])),
    field(RSTP, "img_path", GONE, "no 'file_path'", "as file_path or img_path"),
    *(field(LUPERSON_T, "file_path", v) for v in ({}, "", GONE)),
    *(field(MALS, "image", v) for v in (1, GONE)),
    *(
        field(name, key, path, "leads out of its folder", "correct it", label=label)
        for name, key in ((CUHK, "file_path"), (RSTP, "img_path"), (MALS, "image"))
        for label, path in LEADS_OUT.items()
    ),
    field(
        ICFG,
        "file_path",
        "../" + "x" * 10_000,
        "leads out",
        "xxx...",
        label="10,000 letters that lead out",
    ),
    field(
        SYNTH,
        "file_path",
        "../\u202e\x1b[31m\n\u2028a.jpg",
        r"\u202e\x1b[31m\n\u2028a.jpg",
        label="control characters",
    ),
    field(
        CUHK, "file_path", "a\ud800.jpg", r"\ud800", "correct", label="half a letter"
    ),
    field(
        RSTP,
        "captions",
        ["a man", "half a \ud83d face"],
        r"\ud83d",
        "without half a character; correct",
        label="half a letter",
    ),
    field(
        LUPERSON_T,
        "captions",
        "half a \udcff letter",
        r"\udcff",
        "correct",
        label="half a letter",
    ),
    field(
        SYNTH,
        "id",
        "x" * 1_000_000,
        "xxx...",
        label="1 MB of text",
    ),
    field(
        CUHK,
        "id",
        "\r\nerror: all is well\x1b[2J\x85\u2028",
        r"\r\nerror: all is well\u001b[2J\x85\u2028",
        label="terminal codes",
    ),
]
FIELDS += [
    text(
        MLLM,
        {"a/1.jpg": wrong},
        "'a/1.jpg'",
        "expected a sentence",
        label=f"caption is {wrong}",
    )
    for wrong in (None, 7, {"a": 1}, ["a", None])
]
FIELDS += [
    text(MLLM, {path: "a man"}, "leads out", label=f"path is {label}")
    for label, path in LEADS_OUT.items()
]
FIELDS += [
    text(MLLM, {"": "a man"}, "expected the path", label="path is empty"),
    text(
        MLLM,
        {"../" + "x\n" * 5_000: "a man"},
        r"x\nx\n",
        "leads out",
        label="path has 5,000 lines",
    ),
    text(MLLM, {"a\ud800.jpg": "a man"}, r"\ud800", label="path has half a letter"),
]


CONFLICTS = [
    Broken(
        f"{name}: one picture of two {what}",
        name,
        entries(name, entry(name, **{key: value})),
        (f"entry 2: {path_of(name)} has {key}", "entry 1", "correct the file"),
    )
    for name, what, key, value in (
        (CUHK, "splits", "split", "test"),
        (ICFG, "splits", "split", "test"),
    )
]
CONFLICTS += [
    Broken(
        f"{name}: one picture of two persons",
        name,
        entries(name, entry(name, id=5)),
        (f"entry 2: {path_of(name)} has person_id '5'", "entry 1", "correct the file"),
    )
    for name in (CUHK, RSTP, SYNTH)
]
CONFLICTS += [
    Broken(
        "rstp_reid: one person in two splits",
        RSTP,
        every(
            entries(RSTP, entry(RSTP, img_path="2.png", split="test")),
            pictures("1.png", "2.png"),
        ),
        ("1 identity is in more than one split: 0 (test and train)", "correct"),
    ),
    Broken(
        "cuhk_pedes: two spellings of one path, two splits",
        CUHK,
        entries(CUHK, entry(CUHK, file_path=".//cam_a//./1.png", split="val")),
        ("entry 2: ", "has split 'val'", "correct"),
    ),
    Broken(
        "rstp_reid: the same path in long, two persons",
        RSTP,
        file(
            "data_captions.json",
            [entry(RSTP, img_path="p" * 10_000, id=i) for i in range(2)],
        ),
        ("entry 2: ppp", "...", "correct the file"),
    ),
    *(
        Broken(
            f"{name}: no splits, and other identities than published",
            name,
            every(
                pictures(path_of(name)), file(FILES[name], [entry(name, split=GONE)])
            ),
            ("does not say which split", "--splits FILE"),
        )
        for name in (CUHK, ICFG, RSTP)
    ),
    Broken(
        "rstp_reid: not as published",
        RSTP,
        entries(RSTP),
        ("train is not as published: images 1 of 18,505",),
    ),
    Broken(
        "cuhk_pedes: an empty caption",
        CUHK,
        entries(CUHK, entry(CUHK, file_path="cam_a/2.png", captions=["", " \n"])),
        ("image has an empty caption: cam_a/2.png",),
    ),
    *(
        Broken(
            f"{name}: no captions at all",
            name,
            every(
                pictures(path_of(name)),
                file(FILES[name], [entry(name, **{key: []})]),
            ),
            ("1 image has no caption at all: a/1.png",),
        )
        for name, key in (
            (LUPERSON_T, "captions"),
            (SYNTH, "captions"),
            (MALS, "caption"),
        )
    ),
]

TREES = [*FILE, *JSON, *FIELDS, *CONFLICTS]
