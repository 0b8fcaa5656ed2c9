"""Trees with records, or with an OUT, that are wrong."""

import pathlib

from breakage import Broken, Make, every, file, folder, link, nothing, picture, pictures

MLLM = every(file("a.json", {"1.png": "a man in red"}))
INFO = "records/dataset_info.json"


def records_of(name: str, make: Make, *words: str, captions: Make = MLLM) -> Broken:
    """Captions alone for records that are wrong."""
    return Broken(
        f"luperson_mllm: --records {name}",
        "luperson_mllm",
        every(captions, make),
        words,
        ("--records", "{here}/records"),
        ("build",),
    )


def record_set(*image_ids: str, split: str = "pretrain", kind: str = "person") -> Make:
    """A record set beside `raw`; kind "caption": of captions without images."""

    def make(raw: pathlib.Path) -> None:
        from unipt_jax.data import shards
        from unipt_jax.data.records import CaptionRecord, PersonRecord

        kinds = {"person": PersonRecord, "caption": CaptionRecord}
        target = raw.parent / "records"
        written = shards.ShardedSet(target, kinds[kind], split, 1)
        rows = {
            "person": lambda i: PersonRecord(picture(), i),
            "caption": lambda i: CaptionRecord(i, ("a man",)),
        }
        written.write(0, map(rows[kind], image_ids))
        written.finish({})

    return make


def _damage(raw: pathlib.Path) -> None:
    (shard,) = (raw.parent / "records").glob("records-*")
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 4] + bytes(len(data) - len(data) // 4))


def _remove_shard(raw: pathlib.Path) -> None:
    (shard,) = (raw.parent / "records").glob("records-*")
    shard.unlink()


RECORDS = [
    records_of("that are not there", nothing, "no record set at", "records"),
    records_of("that are a file", file("../records", b"x"), "no record set at"),
    records_of("of nothing", folder("../records"), "no dataset_info.json there"),
    records_of("described by nothing", file(f"../{INFO}", b""), "cannot be opened"),
    records_of("described by text", file(f"../{INFO}", "hello"), "cannot be opened"),
    records_of(
        "of another split",
        record_set("1.png", split="train"),
        "no images to pre-train on, only {'train': 1}",
    ),
    records_of(
        "of captions", record_set("1.png", kind="caption"), "captions, not images"
    ),
    records_of(
        "of other pictures",
        record_set("other.png"),
        "no image of",
        "'other.png'",
        "'1.png'",
        "prepare",
    ),
    records_of("damaged", every(record_set("1.png"), _damage), "records", "prepare"),
    records_of(
        "without their file", every(record_set("1.png"), _remove_shard), "prepare"
    ),
    records_of("without records", record_set(), "records"),
    records_of(
        "and captions without any",
        record_set("1.png"),
        "no caption",
        captions=file("a.json", {"1.png": []}),
    ),
    Broken(
        "luperson: --records and no captions to write",
        "luperson",
        every(pictures("1.png"), record_set("1.png")),
        ("luperson", "no caption"),
        ("--records", "{here}/records"),
        ("build",),
    ),
]

GOOD = every(
    pictures("a.png"), file("captions.csv", "path,caption\na.png,a man in red\n")
)


def in_the_way(name: str, make: Make, *words: str, args: tuple = ()) -> Broken:
    """A good folder, and what stands where its records are to be written."""
    return Broken(
        f"folder: {name}", "folder", every(GOOD, make), words, args, ("build",)
    )


def _plan(content: str) -> Make:
    return every(
        file("../out.partial/plan.json", content), folder("../out.partial/parts")
    )


OUT = [
    in_the_way(
        "OUT is a file", file("../o", b"x"), "/o exists", args=("--out", "{here}/o")
    ),
    in_the_way(
        "OUT is a dead link",
        link("../o", "gone"),
        "/o is a dead link",
        args=("--out", "{here}/o"),
    ),
    in_the_way(
        "OUT is raw",
        nothing,
        "/raw exists already",
        args=("--out", "{raw}"),
    ),
    in_the_way(
        "OUT is below raw",
        nothing,
        "a.png/o",
        "a.png/o lies in --raw",
        args=("--out", "{raw}/a.png/o"),
    ),
    in_the_way(
        "OUT has a name of 300 letters",
        nothing,
        "the name is too long",
        args=("--out", "{here}/" + "x" * 300),
    ),
    in_the_way("OUT is here", nothing, "--out .", args=("--out", ".")),
    in_the_way("OUT is a bucket", nothing, "gs://b/o", args=("--out", "gs://b/o")),
    *(
        Broken(
            f"{name}: {option} that cannot be",
            name,
            pictures("1.png"),
            (option, "leave it out"),
            (option, "{raw}/1.png"),
        )
        for name, option in (
            ("luperson", "--annotations"),
            ("luperson", "--splits"),
            ("folder", "--splits"),
        )
    ),
    in_the_way(
        "OUT.partial is a file",
        file("../out.partial", b"x"),
        "out.partial",
    ),
    in_the_way("OUT.partial has a damaged plan", _plan("{"), "plan.json", "remove"),
    in_the_way("OUT.partial has a foreign plan", _plan("{}"), "plan.json", "remove"),
    in_the_way("OUT.partial has a list for a plan", _plan("[]"), "plan.json", "remove"),
]

TREES = [*RECORDS, *OUT]
