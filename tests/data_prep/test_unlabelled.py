"""The sets to pre-train on, by the command line: their own layouts in, records out."""

import json
import os

import pretrain_trees as trees
import pytest
import tensorflow_datasets as tfds

from data_prep import build
from unipt_jax.data import records
from unipt_jax.data.records import PersonRecord, Records


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command on `raw`; gives the exit code, what was said, and the error."""

    def command(name, *words, out="out"):
        raw = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / out)]
        code = build.main([name, *raw, "--workers", "1", *map(str, words)])
        said, errors = capsys.readouterr()
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == code
        return code, said, lines[0] if lines else ""

    return command


def read(folder) -> list[PersonRecord]:
    """All records, which have names of their own."""
    found = list(Records(folder, "pretrain", PersonRecord))
    assert len({record.image_id for record in found}) == len(found)
    return found


def layouts():
    """Every set, in every form it is met in."""
    for name, write in trees.TREES.items():
        yield pytest.param(name, write, {}, id=name)
    for stream in (False, True):
        for wrapped in (False, True):
            for listed in (False, True):
                options = {"stream": stream, "wrapped": wrapped, "listed": listed}
                words = [word for word, on in options.items() if on]
                yield pytest.param(
                    "luperson_t",
                    trees.luperson_t_arrow,
                    options,
                    id="-".join(["luperson_t-arrow", *words]),
                )


# --- every set -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "write", "options"), layouts())
def test_images_captions_and_what_is_known_arrive_as_they_lie_on_disk(
    tmp_path, run, name, write, options
):
    wanted = write(tmp_path / "raw", **options)
    code, said, _ = run(name, "--check")
    assert (code, os.listdir(tmp_path)) == (0, ["raw"])
    assert said.splitlines()[-1] == "nothing stands in the way of training"
    assert "PROBLEM" not in said
    code, said, _ = run(name)
    assert code == 0
    assert read(tmp_path / "out") == wanted
    captions = sum(len(record.captions) for record in wanted)
    assert f"pretrain        0{len(wanted):>20}" in said
    assert "(published: about " in said
    made = records.metadata(tmp_path / "out")
    counts = {"images": len(wanted), "captions": captions}
    persons = {record.person_id for record in wanted} - {records.UNKNOWN}
    counts |= {"identities": len(persons)} if persons else {}
    assert made["counts"] == {"pretrain": counts}
    assert (made["set"], made["left_out"]) == (name, 0)
    assert f"{tmp_path}/out: {{'pretrain': {len(wanted)}}}" in said


@pytest.mark.parametrize(("name", "write", "options"), layouts())
def test_ids_and_order_are_the_same_wherever_the_folder_lies(
    tmp_path, run, name, write, options
):
    write(tmp_path / "raw", **options)
    run(name)
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    (tmp_path / "raw").symlink_to("elsewhere")
    assert run(name, "--shard-images", "2", out="again")[0] == 0
    assert read(tmp_path / "out") == read(tmp_path / "again")


@pytest.mark.parametrize("name", [name for name in trees.TREES if name != "luperson"])
def test_a_missing_image_is_refused_and_left_out_where_that_is_allowed(
    tmp_path, run, name
):
    wanted = trees.TREES[name](tmp_path / "raw")
    gone = wanted.pop(1)
    (file,) = (tmp_path / "raw").rglob(gone.file_path)
    file.unlink()
    code, said, error = run(name)
    assert code == 1
    assert f"images of {os.path.dirname(gone.image_id)} is missing" in said
    assert "go on without what is missing with --allow-missing" in error
    assert not (tmp_path / "out").exists()
    assert run(name, "--allow-missing")[0] == 0
    left = [record.image_id for record in read(tmp_path / "out")]
    assert left == [record.image_id for record in wanted]
    out = (tmp_path / "out" / "left_out.jsonl").read_text()
    assert json.loads(out) == {"image_id": gone.image_id, "why": "missing"}


@pytest.mark.parametrize("name", [name for name in trees.TREES if name != "luperson"])
def test_without_an_annotation_what_is_expected_and_what_is_there_are_named(
    tmp_path, run, name
):
    trees.loose(tmp_path / "raw", {"a.jpg": trees.picture(1)})
    code, _, error = run(name)
    assert code == 1
    assert f"no annotation of {name} in {tmp_path}/raw: expected " in error
    assert ".json" in error
    assert error.endswith("put it there, or name it with --annotations FILE")


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("luperson_t", "a.json", '[{"captions": ["x"]}]', "there is no 'file_path'"),
        ("luperson_t", "a.json", '[{"file_path": "a.jpg"}]', "there is no 'captions'"),
        ("luperson_t", "a.json", '{"a.jpg": "x"}', "expected a list of entries"),
        ("luperson_t", "a.json", "[]", "has no entries; fetch it again"),
        ("luperson_mllm", "a.json", '[{"a": 1}]', "expected an object of path: caption"),
        ("luperson_mllm", "a.json", '{"../a.jpg": "x"}', "leads out of its folder"),
        ("luperson_mllm", "a.json", '{"a.jpg": {"x": 1}}', "expected a sentence or"),
        ("synth_pedes", "synthpedes_dataset.json",
         '[{"file_path": "a.jpg", "captions": ["x"]}]', "there is no 'id'"),
        ("mals", "g_attrs.json", '[{"caption": "x"}]', "there is no 'image'"),
        ("mals", "g_attrs.json", '[{"image": "a.jpg",', "is it cut off?"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_annotation_is_named_in_one_sentence(
    tmp_path, run, name, file, text, said
):
    trees.loose(tmp_path / "raw", {file: text.encode()})
    code, _, error = run(name)
    assert code == 1
    assert error.startswith(f"error: {tmp_path}/raw/{file}")
    assert said in error


# --- captions ------------------------------------------------------------------------


def test_captions_of_all_captioners_are_merged_each_once(tmp_path, run):
    said = {"b.json": {"x.jpg": "Two.", "y.jpg": ["One.", "Three."]},
            "a.json": {"y.jpg": "One.", "x.jpg": " One.\n"},
            "c.json": {"./x.jpg": "Two."}}  # fmt: skip
    files = {name: json.dumps(value).encode() for name, value in said.items()}
    pictures = {"x.jpg": trees.picture(1), "y.jpg": trees.picture(2)}
    trees.loose(tmp_path / "raw", files | pictures)
    assert run("luperson_mllm")[0] == 0
    captions = {r.image_id: r.captions for r in read(tmp_path / "out")}
    assert captions == {"y.jpg": ("One.", "Three."), "x.jpg": ("One.", "Two.")}


def test_one_annotation_alone_is_read_where_it_is_named(tmp_path, run):
    wanted = trees.luperson_mllm(tmp_path / "raw")
    file = tmp_path / "raw" / "qwen_plain.json"
    assert run("luperson_mllm", "--annotations", file)[0] == 0
    (one,) = {len(record.captions) for record in read(tmp_path / "out")[1:]}
    assert one == 1
    assert all(
        record.captions[0] in full.captions
        for record, full in zip(read(tmp_path / "out"), wanted[1:], strict=True)
    )


def test_an_empty_caption_is_a_problem_and_never_a_caption(tmp_path, run):
    said = {"x.jpg": "A man.", "y.jpg": " "}
    pictures = {path: trees.picture(number) for number, path in enumerate(said)}
    files = {"a.json": json.dumps(said).encode()}
    trees.loose(tmp_path / "raw", pictures | files)
    code, said, _ = run("luperson_mllm")
    assert code == 1
    assert "PROBLEM: 1 image has an empty caption: y.jpg" in said
    assert run("luperson_mllm", "--allow-missing")[0] == 0
    assert [r.captions for r in read(tmp_path / "out")] == [("A man.",), ()]


def test_persons_of_synth_pedes_keep_their_numbers_and_get_labels(tmp_path, run):
    trees.synth_pedes(tmp_path / "raw")
    assert run("synth_pedes")[0] == 0
    found = [(r.person_id, r.label) for r in read(tmp_path / "out")]
    assert found == [(50, 0), (50, 0), (51, 1), (51, 1), (52, 2), (52, 2)]


# --- images that cannot be read ------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """LUPerson with six files, a whole shard of which are no pictures, and one more."""
    wanted = trees.luperson(tmp_path / "raw")
    bad = {f"cam_0/{n:03d}.jpg": b"no picture" for n in (0, 2, 4)}
    bad["deep/er/cam_1/003.jpg"] = trees.picture(9)[:400]
    trees.loose(tmp_path / "raw", bad)
    return sorted(bad), [r for r in wanted if r.image_id not in bad]


def test_damaged_images_are_refused_by_name_and_the_work_is_kept(
    tmp_path, run, damaged
):
    bad, wanted = damaged
    code, _, error = run("luperson", "--shard-images", 3)
    assert code == 1
    assert "error: 4 images cannot be read: " in error
    for name in bad:
        assert f"{name} (" in error
    assert "leave them out with --allow-missing" in error
    assert f"10 of 12 shards are kept in {tmp_path}/out.partial" in error
    assert not (tmp_path / "out").exists()
    before = {
        file.name: file.stat().st_mtime_ns
        for file in (tmp_path / "out.partial" / "set").iterdir()
    }
    assert len(before) == 10
    code, *_ = run("luperson", "--shard-images", 3, "--allow-missing")
    assert code == 0
    after = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    assert before.items() <= after.items()  # not written again
    assert read(tmp_path / "out") == wanted


def test_a_set_without_its_damaged_images_is_whole_for_tfds_and_for_records(
    tmp_path, run, damaged
):
    bad, wanted = damaged
    assert run("luperson", "--shard-images", 3, "--allow-missing")[0] == 0
    split = tfds.builder_from_directory(str(tmp_path / "out")).info.splits["pretrain"]
    assert split.shard_lengths == [0, 3, 3, 2, *[3] * 8]  # the first is all gone
    skip = {"image": tfds.decode.SkipDecoding()}
    builder = tfds.builder_from_directory(str(tmp_path / "out"))
    source = builder.as_data_source("pretrain", decoders=skip)
    assert len(source) == len(wanted) == 32
    there = [(row["image_id"].decode(), row["image"]) for row in source]
    assert there == [(record.image_id, record.image) for record in wanted]
    assert read(tmp_path / "out") == wanted
    made = records.metadata(tmp_path / "out")
    assert made["counts"] == {"pretrain": {"images": 32, "captions": 0}}
    assert (made["left_out"], made["allow_missing"]) == (4, True)
    lines = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    rows = list(map(json.loads, lines))
    assert sorted(row["image_id"] for row in rows) == bad
    assert all(row["why"] for row in rows)


def test_check_names_damaged_images_and_writes_nothing(tmp_path, run, damaged):
    bad, _ = damaged
    code, said, error = run("luperson", "--check")
    assert code == 1
    assert "PROBLEM: 4 images cannot be read: " in said
    assert all(f"{name} (" in said for name in bad)
    assert "--allow-missing" in error
    assert run("luperson", "--check", "--allow-missing")[0] == 0
    assert os.listdir(tmp_path) == ["raw"]


def test_where_no_image_can_be_read_there_is_no_set(tmp_path, run):
    trees.loose(tmp_path / "raw", {f"{n}.jpg": b"no picture" for n in range(3)})
    code, _, error = run("luperson", "--allow-missing")
    assert code == 1
    assert "none of the images of pretrain can be read (" in error
    assert not (tmp_path / "out").exists()


def test_a_damaged_member_is_one_image_and_a_damaged_archive_is_refused(tmp_path, run):
    pictures = {f"{n}.jpg": trees.picture(n) for n in range(4)}
    trees.pack(tmp_path / "raw" / "a.zip", pictures | {"2.jpg": b"no picture"})
    assert run("luperson", "--allow-missing")[0] == 0
    names = [record.image_id for record in read(tmp_path / "out")]
    assert names == ["a.zip/0.jpg", "a.zip/1.jpg", "a.zip/3.jpg"]
    trees.pack(tmp_path / "raw" / "b.tar", pictures)
    with (tmp_path / "raw" / "b.tar").open("r+b") as file:
        file.truncate(2000)
    code, _, error = run("luperson", "--allow-missing", out="other")
    assert code == 1
    assert error.startswith(f"error: {tmp_path}/raw/b.tar is no archive, or is damaged")


# --- LUPerson ------------------------------------------------------------------------


def test_links_to_nothing_are_missing_images_and_noted(tmp_path, run):
    trees.loose(tmp_path / "raw", {"a.jpg": trees.picture(1)})
    for name in ("b.jpg", "c.jpg", "part2.tar"):
        (tmp_path / "raw" / name).symlink_to("nothing")
    code, said, _ = run("luperson")
    assert code == 1
    assert "PROBLEM: 2 of 3 images of . are missing: b.jpg, c.jpg" in said
    assert "(2 are dead links)" in said
    assert "note: part2.tar is a link to nothing" in said
    assert run("luperson", "--allow-missing")[0] == 0
    assert [record.image_id for record in read(tmp_path / "out")] == ["a.jpg"]
    assert records.metadata(tmp_path / "out")["left_out"] == 2


def test_names_that_are_no_utf8_get_an_id_that_is(tmp_path, run):
    raw = os.fsencode(tmp_path / "raw")
    os.mkdir(raw)
    for number, name in enumerate((b"caf\xe9.jpg", "größe.jpg".encode())):
        with open(os.path.join(raw, name), "wb") as file:
            file.write(trees.picture(number))
    assert run("luperson", "--check")[0] == 0
    assert run("luperson")[0] == 0
    found = {record.image_id: record.image for record in read(tmp_path / "out")}
    wanted = {r"caf\xe9.jpg": trees.picture(0), "größe.jpg": trees.picture(1)}
    assert found == wanted


def test_a_folder_without_pictures_is_refused(tmp_path, run):
    trees.loose(tmp_path / "raw", {"readme.txt": b"?"})
    code, _, error = run("luperson")
    assert code == 1
    assert f"no image in {tmp_path}/raw (.jpg, " in error
