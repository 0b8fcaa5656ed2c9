"""Trees whose captions.csv, captions.jsonl or splits are wrong."""

import json

from breakage import (
    GONE,
    Broken,
    entry,
    every,
    file,
    folder,
    link,
    nothing,
    path_of,
    picture,
    pictures,
    pipe,
)

HEAD = "path,caption,person_id,split\n"
HERE = pictures("a.png", "b.png")


def csv(name: str, content: str | bytes, *words: str) -> Broken:
    """A folder with two pictures and this captions.csv."""
    make = every(HERE, file("captions.csv", content))
    return Broken(f"folder: CSV {name}", "folder", make, ("captions.csv", *words))


def jsonl(name: str, content: str | bytes, *words: str) -> Broken:
    """A folder with two pictures and this captions.jsonl."""
    make = every(HERE, file("captions.jsonl", content))
    return Broken(f"folder: JSONL {name}", "folder", make, ("captions.jsonl", *words))


CSV = [
    csv("empty", "", "has the columns none", "it lacks caption, path"),
    csv("without rows", HEAD, "has no rows", "write one"),
    csv(
        "without a caption column",
        "path,text\na.png,x\n",
        "path, text",
        "lacks caption",
    ),
    csv("with semicolons", "path;caption\na.png;a man\n", "lacks caption, path"),
    csv("without a head", "a.png,a man\nb.png,a woman\n", "lacks caption, path"),
    csv("with a quote not closed", f'{HEAD}a.png,"a man,1,train\n', "quote not closed"),
    csv("with text after a quote", f'{HEAD}a.png,"a" man,1,train\n', "line 2"),
    csv(
        "with a comma not quoted",
        f"{HEAD}a.png,a man, tall,1,train\n",
        "line 2",
        "quote",
    ),
    csv("with a huge field", f"{HEAD}a.png,{'a' * 200_000},1,train\n", "line 2"),
    csv("with a huge head", f"path,caption,{'a' * 200_000}\n", "line 1"),
    csv("with two columns of one name", "path,caption,path\na.png,a,b.png\n", "twice"),
    csv("with half a row", f"{HEAD}a.png\n", "line 2", "must not be empty"),
    csv("with an empty path", f"{HEAD},a man,1,train\n", "line 2", "must not be empty"),
    csv("with an empty caption", f"{HEAD}a.png,  ,1,train\n", "line 2", "empty"),
    csv(
        "with split dev", f"{HEAD}a.png,a man,1,dev\n", "line 2", "'dev'", "train, val"
    ),
    csv("with a path out", f"{HEAD}../a.png,a man,1,train\n", "line 2", "leads out"),
    csv("with NUL in a path", f"{HEAD}a\0.png,a man,1,train\n", "line 2", "leads out"),
    csv(
        "in Latin-1", f"{HEAD}a.png,caf\xe9,1,train\n".encode("latin-1"), "is not UTF-8"
    ),
    csv("in UTF-16", f"{HEAD}a.png,a man,1,train\n".encode("utf-16"), "is not UTF-8"),
    csv("that is a picture", picture(), "is not UTF-8", "save it as UTF-8"),
    csv("of zeros", bytes(9000), "it lacks caption, path"),
    csv("with terminal codes", "\x1b[2J,\u202e\na,b\n", r"\x1b[2J, \u202e", "lacks"),
    csv(
        "with a split of 10,000 letters",
        f"{HEAD}a.png,a man,1,{'z' * 10_000}\n",
        "zzz...",
        "is not one of",
    ),
    csv("with 100,000 columns", ",".join("abcdefgh" * 12_500), "...", "lacks"),
    csv(
        "with a picture of two persons",
        f"{HEAD}a.png,a man,1,train\na.png,a man,2,train\n",
        "line 3: a.png has person_id '2'",
        "line 2",
    ),
    csv(
        "with a picture in two splits",
        f"{HEAD}a.png,a man,1,train\na.png,a boy,1,test\n",
        "line 3: a.png has split 'test'",
    ),
]
CSV += [
    Broken(
        "folder: CSV with a person in two splits",
        "folder",
        every(
            HERE,
            file("captions.csv", f"{HEAD}a.png,a man,1,train\nb.png,a boy,1,test\n"),
        ),
        ("1 identity is in more than one split: 1 (test and train)",),
    ),
    Broken(
        "folder: CSV that names a picture that is not there",
        "folder",
        every(HERE, file("captions.csv", f"{HEAD}a.png,a man,,\nc.png,a boy,,\n")),
        ("is missing: c.png",),
    ),
    Broken(
        "folder: CSV that names a bad picture",
        "folder",
        every(
            HERE,
            file("c.png", b"x"),
            file("captions.csv", f"{HEAD}a.png,a man,,\nc.png,a boy,,\n"),
        ),
        ("1 image cannot be read: c.png (",),
    ),
    Broken(
        "folder: all of one split are bad, and told to go on",
        "folder",
        every(
            HERE,
            file("c.png", b"x"),
            file("captions.csv", f"{HEAD}a.png,a man,,\nc.png,a boy,,test\n"),
        ),
        ("all images of test would be left out",),
        ("--allow-missing",),
    ),
    Broken(
        "folder: CSV with a person's number of 5,000 digits, and no picture",
        "folder",
        every(HERE, file("captions.csv", f"{HEAD}c.png,a man,{'7' * 5_000},train\n")),
        ("none of the images of folder (1)", "give the folder"),
    ),
    Broken(
        "folder: CSV and JSONL",
        "folder",
        every(HERE, file("captions.csv", HEAD), file("captions.jsonl", "{}")),
        ("captions.csv and captions.jsonl are both there", "keep one"),
    ),
    *(
        Broken(
            f"folder: captions.{kind} is {what}",
            "folder",
            every(HERE, make(f"captions.{kind}")),
            (f"captions.{kind} is {what}", "file"),
        )
        for kind in ("csv", "jsonl")
        for what, make in {
            "a folder": folder,
            "no file": pipe,
            "a dead link": lambda name: link(name, "gone.csv"),
        }.items()
    ),
    Broken(
        "folder: captions.csv is a link out",
        "folder",
        every(HERE, file("../c.csv", HEAD), link("captions.csv", "/c.csv")),
        ("captions.csv is a link to", "outside"),
    ),
    *(
        Broken(
            f"folder: --annotations names {what}",
            "folder",
            every(HERE, make),
            ("wrong.csv", "give a CSV or JSONL file"),
            ("--annotations", "{raw}/wrong.csv"),
        )
        for what, make in {
            "nothing": nothing,
            "a folder": folder("wrong.csv"),
            "a pipe": pipe("wrong.csv"),
            "a link to itself": link("wrong.csv", "wrong.csv"),
        }.items()
    ),
]

ROW = '{"path": "a.png", "caption": "a man"}\n'
JSONL = [
    jsonl("empty", "", "has no rows", "write one"),
    jsonl("of blank lines", "\n \n\t\n", "has no rows", "write one"),
    jsonl(
        "cut off", f'{ROW}{{"path": "b.pn', "line 2", "is no JSON", "write one object"
    ),
    jsonl(
        "with a trailing comma", f'{ROW}{{"path": "b.png",}}', "line 2", "is no JSON"
    ),
    jsonl("that is a list", f"[{ROW}]", "line 1", "is no JSON"),
    jsonl("of a list in a line", f"[{ROW.strip()}]", "line 1", "expected an object"),
    jsonl("of texts", f'{ROW}"a man"\n', "line 2", "expected an object"),
    jsonl("of null", "null\n", "line 1", "expected an object"),
    jsonl("without a caption", '{"path": "a.png"}\n', "line 1", "expected an object"),
    jsonl("with a caption in a list", '{"path": "a.png", "caption": ["a"]}', "line 1"),
    jsonl("with NaN", '{"path": "a.png", "caption": NaN}', "line 1", "expected"),
    jsonl("with null for a caption", '{"path": "a.png", "caption": null}', "line 1"),
    jsonl("with true for a path", '{"path": true, "caption": "a"}', "line 1", "a text"),
    jsonl("100,000 brackets deep", "[" * 100_000, "line 1", "is no JSON"),
    jsonl(
        "with a number of 5,000 digits",
        f'{{"path": "a.png", "caption": "a", "person_id": {"7" * 5_000}}}',
        "line 1",
        "digits",
    ),
    jsonl(
        "with a name twice",
        f'{ROW}{{"path": "a.png", "path": "b.png", "caption": "a man"}}',
        "line 2",
        "'path' twice",
    ),
    jsonl(
        "with half a letter in a caption",
        '{"path": "a.png", "caption": "a \\ud83d man"}',
        "line 1",
        r"\ud83d",
    ),
    jsonl(
        "with half a letter in a path",
        '{"path": "a\\udcff.png", "caption": "a man"}',
        "line 1",
        r"\udcff",
    ),
    jsonl(
        "with half a letter in a person",
        '{"path": "a.png", "caption": "a man", "person_id": "\\udcff"}',
        "line 1",
        r"\udcff",
    ),
    jsonl("in UTF-16", ROW.encode("utf-16"), "is not UTF-8", "save it"),
    jsonl(
        "with a path out", '{"path": "/a.png", "caption": "a"}', "line 1", "leads out"
    ),
    jsonl(
        "with 1 MB in a line",
        json.dumps({"path": "a.png", "text": "x" * 1_000_000}),
        "line 1",
        "xxx...",
    ),
]


def splits(name: str, content, *words: str, entry_: dict | None = None) -> Broken:
    """CUHK-PEDES with an annotation that has no splits, and this file of them."""
    bare = entry_ or entry("cuhk_pedes", split=GONE)
    make = every(
        pictures(path_of("cuhk_pedes")),
        file("caption_all.json", [bare]),
        nothing if content is None else file("splits.json", content),
    )
    args = ("--splits", "{raw}/splits.json")
    words = ("splits.json", *words)
    return Broken(f"cuhk_pedes: splits {name}", "cuhk_pedes", make, words, args)


SPLITS = [
    splits("not there", None, "not there", "give a JSON file"),
    splits("empty", b"", "is it cut off?", "fetch it again"),
    splits("a number", 7, "expected a list or an object"),
    splits("of nothing", [], "has no split for cam_a/1.png", "give the full list"),
    splits("of other pictures", {"x.png": "train"}, "no split for cam_a/1.png"),
    splits("a list of texts", ["cam_a/1.png"], "entry 1", "expected the path"),
    splits("a list of lists", [["cam_a/1.png", "train"]], "entry 1", "expected"),
    splits("with dev", {"cam_a/1.png": "dev"}, "'cam_a/1.png'", "one of train, val"),
    splits("with null", {"cam_a/1.png": None}, "'cam_a/1.png'", "one of train, val"),
    splits("with a split of lists", {"dev": ["cam_a/1.png"]}, "'dev'", "one of train"),
    splits("of a number in train", {"train": [7]}, "'train'", "expected the path"),
    splits("of a path out", {"train": ["../1.png"]}, "'train'", "leads out"),
    splits("by a path out", {"/1.png": "train"}, "leads out", "correct it"),
    splits("entries without one", [{"file_path": "cam_a/1.png"}], "entry 1", "'split'"),
    splits(
        "that say two things of a picture",
        {"train": ["cam_a/1.png"], "test": ["./cam_a/1.png"]},
        "cam_a/1.png",
        "train",
        "test",
        "correct",
    ),
    splits(
        "that say two things of an entry",
        [entry("cuhk_pedes", split=s) for s in ("train", "val")],
        "cam_a/1.png",
        "train",
        "val",
        "correct",
    ),
    splits(
        "that contradict the annotation",
        {"cam_a/1.png": "test"},
        "says that cam_a/1.png is in test",
        "says train",
        "leave --splits out, or correct it",
        entry_=entry("cuhk_pedes"),
    ),
    splits("with half a letter", {"a\ud800.png": "train"}, r"\ud800", "correct"),
    splits("100,000 brackets deep", "[" * 100_000, "is no JSON", "fetch it again"),
]

TREES = [*CSV, *JSONL, *SPLITS]
