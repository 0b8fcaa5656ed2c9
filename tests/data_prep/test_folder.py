"""A folder of one's own pictures, with captions.csv, captions.jsonl or neither: what is
read. What is refused, and how, is in test_folder_refusals.py."""

import io
import json

import building
import pytest
from building import HEADER, write
from PIL import Image

from data_prep import folder
from data_prep.entries import Counts
from unipt_jax.data import images, records, tokenizers
from unipt_jax.data.records import UNKNOWN, PersonRecord, Records

FILES = ["captions.csv", "captions.jsonl"]


def built(tmp_path, *options):
    """The set's folder."""
    out = tmp_path / "out"
    code, _, err = building.here(
        "folder", "--raw", tmp_path / "raw", "--out", out, *options
    )
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("file", FILES)
def test_pictures_captions_persons_and_splits_arrive_in_the_order_of_the_file(
    tmp_path, file
):
    rows = [
        ["cam 1/ä.jpg", "A man, tall, in red.", "12", "train"],
        ["b.png", 'She said "hello".', "7", "train"],
        ["cam 1/ä.jpg", " Second  caption\nover two lines ", "12", "train"],
        ["c.jpeg", "一个人", "40", "test"],
        ["d.jpg", "no person", "", "train"],
        ["cam 1/ä.jpg", "Third", "12", "train"],
        ["e.jpg", "no split", "30", ""],
    ]
    write(tmp_path / "raw", rows, file=file)
    out = built(tmp_path)
    train = list(Records(out, "train", PersonRecord))
    (test,) = Records(out, "test", PersonRecord)
    assert [r.image_id for r in train] == ["cam 1/ä.jpg", "b.png", "d.jpg", "e.jpg"]
    assert [r.file_path for r in train] == [r.image_id for r in train]
    assert [r.person_id for r in train] == [12, 7, UNKNOWN, 30]
    assert [r.label for r in train] == [1, 0, UNKNOWN, 2]
    assert train[0].captions == (
        "A man, tall, in red.",
        "Second caption over two lines",
        "Third",
    )
    assert train[1].captions == ('She said "hello".',)
    assert [r.attributes.get("person") for r in train] == ["12", "7", None, "30"]
    assert (test.person_id, test.label, test.captions) == (40, 0, ("一个人",))
    for record in (*train, test):
        raw = (tmp_path / "raw" / record.file_path).read_bytes()
        assert record.image == raw  # plain RGB files pass unchanged
    made = records.metadata(out)
    assert made["set"] == "folder"
    assert list(made["sources"]) == [file]


def test_jsonl_takes_numbers_nulls_blank_lines_and_other_names(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = [
        {"path": "a.png", "caption": "x", "person_id": 3, "split": None, "more": 1},
        {"path": "b.png", "caption": "y", "person_id": None},
    ]
    text = "\n\r\n".join(map(json.dumps, rows))
    (tmp_path / "raw" / "captions.jsonl").write_text(text, encoding="utf-8-sig")
    a, b = folder.read(tmp_path / "raw").entries
    assert (a.person_id, a.split, a.captions) == (3, "train", ("x",))
    assert (b.person_id, b.split, b.captions) == (UNKNOWN, "train", ("y",))


@pytest.mark.parametrize("name", ["mine.csv", "MINE.JSONL"])
def test_annotations_may_have_another_name_and_lie_elsewhere(tmp_path, name):
    write(tmp_path / "raw", [["a.png", "not this", "1", "train"]])
    write(tmp_path, [["a.png", "this", "1", "train"]], file=name.lower())
    (tmp_path / name.lower()).rename(tmp_path / name)
    out = built(tmp_path, "--annotations", tmp_path / name)
    (record,) = Records(out, "train", PersonRecord)
    assert record.captions == ("this",)
    assert list(records.metadata(out)["sources"]) == [name]


def test_without_captions_every_picture_is_one_to_pretrain_on(tmp_path):
    raw = tmp_path / "raw"
    for name in ("b.png", "a/c.jpg", ".hidden.png"):
        building.picture(raw / name, 3)
    (raw / "notes.txt").write_text("x")
    survey = folder.read(raw)
    assert survey.counts() == {"pretrain": Counts(2, 0, 0)}
    (note,) = survey.notes
    assert "captions.csv" in note and "captions.jsonl" in note
    rows = list(Records(built(tmp_path), "pretrain", PersonRecord))
    assert [(r.image_id, r.person_id, r.label, r.captions) for r in rows] == [
        ("a/c.jpg", UNKNOWN, UNKNOWN, ()),
        ("b.png", UNKNOWN, UNKNOWN, ()),
    ]
    assert rows[1].image == (raw / "b.png").read_bytes()


def test_persons_with_names_are_numbered_in_sorted_order_over_all_splits(tmp_path):
    persons = [("zoe", "train"), ("10", "test"), ("Bob", "train"), ("amy", "test")]
    rows = [[f"{i}.png", "x", name, split] for i, (name, split) in enumerate(persons)]
    write(tmp_path / "raw", rows)
    out = built(tmp_path)
    train = list(Records(out, "train", PersonRecord))
    test = list(Records(out, "test", PersonRecord))
    assert [(r.person_id, r.label) for r in train] == [(3, 1), (1, 0)]
    assert [(r.person_id, r.label) for r in test] == [(0, 0), (2, 1)]


def test_a_byte_order_mark_other_columns_and_blank_lines_do_no_harm(tmp_path):
    write(
        tmp_path / "raw",
        [["a.png", "x", "mine"], ["b.png", " y ", "yours"]],
        header=["path", "caption", "note"],
        encoding="utf-8-sig",
    )
    file = tmp_path / "raw" / "captions.csv"
    assert file.read_bytes().startswith(b"\xef\xbb\xbfpath")
    file.write_bytes(file.read_bytes().replace(b"\r\n", b"\r\n\r\n"))
    found = [
        (e.image_id, e.split, e.captions) for e in folder.read(file.parent).entries
    ]
    assert found == [("a.png", "train", ("x",)), ("b.png", "train", ("y",))]


def test_pictures_that_are_not_plain_rgb_are_stored_upright_and_rgb(tmp_path):
    raw = tmp_path / "raw"
    exif = Image.Exif()
    exif[0x0112] = 6
    building.picture(raw / "turned.jpg", 200, exif=exif)
    building.picture(raw / "grey.png", 200, "L")
    building.picture(raw / "clear.png", 200, "RGBA")
    write(raw, [["turned.jpg", "x"], ["grey.png", "x"], ["clear.png", "x"]], HEADER[:2])
    sizes = {}
    for record in Records(built(tmp_path), "train", PersonRecord):
        with Image.open(io.BytesIO(record.image)) as image:
            sizes[record.image_id] = (image.format, image.mode, image.size)
        height, width = image.size[::-1]
        original = images.decode((raw / record.file_path).read_bytes(), height, width)
        stored = images.decode(record.image, height, width)
        assert abs(stored.astype(int) - original).max() <= 4  # a JPEG of one colour
    assert sizes == {
        "turned.jpg": ("JPEG", "RGB", (12, 6)),
        "grey.png": ("JPEG", "RGB", (6, 12)),
        "clear.png": ("JPEG", "RGB", (6, 12)),
    }


def test_check_counts_what_there_is_and_what_is_left_out(tmp_path):
    rows = [
        ["a.png", "a man x", "1", "train"],
        ["a.png", "a man y", "1", "train"],
        ["b.png", "a man x", "2", "train"],
        ["c.png", "a man x", "", "pretrain"],
    ]
    write(tmp_path / "raw", rows)
    building.picture(tmp_path / "raw" / "more" / "d.JPG", 0)
    (tmp_path / "raw" / "notes.txt").write_text("x")
    entries = folder.read(tmp_path / "raw").entries
    assert [entry.image_id for entry in entries] == ["c.png", "a.png", "b.png"]
    code, out, err = building.here("folder", "--raw", tmp_path / "raw", "--check")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[2:6] == [
        ["split", "missing", "images", "identities", "captions"],
        ["pretrain", "0", "1", "0", "1"],
        ["train", "0", "2", "2", "3"],
        ["all", "0", "3", "2", "4"],
    ]
    assert "note: 1 picture is in no annotation, and left out: more/d.JPG" in out
    assert "PROBLEM" not in out


def test_a_vocabulary_is_trained_on_the_captions_of_the_set(tmp_path):
    rows = [[f"{i}.png", f"a zebra number {i}", "1", "train"] for i in range(5)]
    write(tmp_path / "raw", rows)
    out = built(tmp_path, "--vocabulary", "60")
    tokenizer = tokenizers.load(out / "tokenizer")
    assert len(tokenizer) <= 60
    vocabulary = tokenizer.backend.get_vocab()
    assert "zebra" in vocabulary
    (row,), _ = tokenizer.encode(["A zebra number 3"], 64)
    assert vocabulary["[UNK]"] not in row
    (row,), _ = tokenizer.encode(["xylophone"], 64)
    assert vocabulary["[UNK]"] in row


def test_a_link_within_the_folder_is_followed(tmp_path):
    building.picture(tmp_path / "raw" / "real" / "a.png", 9)
    (tmp_path / "raw" / "link").symlink_to("real")
    write(tmp_path / "raw", [["link/a.png", "x", "", ""]])
    (record,) = Records(built(tmp_path), "train", PersonRecord)
    assert record.image_id == "link/a.png"
    assert record.image == (tmp_path / "raw" / "real" / "a.png").read_bytes()


def test_a_picture_written_in_two_ways_is_one_picture(tmp_path):
    building.picture(tmp_path / "raw" / "a.png", 0)
    write(tmp_path / "raw", [["a.png", "x", "1", ""], ["./a.png", "y", "1", ""]])
    (entry,) = folder.read(tmp_path / "raw").entries
    assert (entry.image_id, entry.captions) == ("a.png", ("x", "y"))


@pytest.mark.parametrize("names", [("007", "7"), ("7", "7.0"), ("1", "١"), ("a", "A")])
def test_two_persons_do_not_become_one(tmp_path, names):
    rows = [[f"{i}.png", "x", name, ""] for i, name in enumerate(names)]
    write(tmp_path / "raw", rows)
    numbers = [e.person_id for e in folder.read(tmp_path / "raw").entries]
    assert len(set(numbers)) == 2 and min(numbers) >= 0


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("digits", [19, 20, 5000])
def test_a_person_number_beyond_64_bits_is_a_name(tmp_path, file, digits):
    write(tmp_path / "raw", [["a.png", "x", "9" * digits, "train"]], file=file)
    (record,) = Records(built(tmp_path), "train", PersonRecord)
    assert record.person_id == 0
    assert record.attributes == {"person": "9" * digits}


def test_pictures_whose_name_is_no_text_are_kept_and_can_be_told_of(tmp_path):
    raw = tmp_path / "raw"
    write(raw, [["a.png", "a man x", "1", "train"]])
    building.picture(raw / "b\udce9.png", 5)
    code, out, _ = building.here("folder", "--raw", raw, "--check")
    assert code == 0 and "left out: b\\xe9.png" in out
    out.encode()
    (raw / "captions.csv").unlink()
    rows = list(Records(built(tmp_path), "pretrain", PersonRecord))
    assert [r.image_id for r in rows] == ["a.png", "b\\xe9.png"]
