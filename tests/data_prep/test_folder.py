"""A folder of pictures with captions.csv: what is read, and what is refused how."""

import csv
import io

import pytest
from PIL import Image

from data_prep import folder
from unipt_jax.data import images, records, tokenizers
from unipt_jax.data.records import UNKNOWN, PersonRecord, Records
from unipt_jax.errors import UserError

HEADER = ["path", "caption", "person_id", "split"]


def picture(path, value, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 12), (value, 10, 20)).convert(mode).save(path, **options)


def write(raw, rows, header=HEADER, encoding="utf-8"):
    """captions.csv with these rows, and a picture for each path that has none."""
    raw.mkdir(parents=True, exist_ok=True)
    with (raw / "captions.csv").open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    for value, row in enumerate(rows):
        if not (raw / row[0]).exists():
            picture(raw / row[0], value)


def refused(raw, rows=None, text=None):
    """The one sentence with which reading ends."""
    raw.mkdir(exist_ok=True)
    if rows is not None:
        lines = [",".join(HEADER), *rows]
        text = "".join(f"{line}\n" for line in lines)
    if text is not None:
        (raw / "captions.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        folder.build(raw, raw.parent / "out")
    assert not (raw.parent / "out").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read --------------------------------------------------------------------


def test_pictures_captions_persons_and_splits_arrive_in_the_order_of_the_file(tmp_path):
    rows = [
        ["cam 1/ä.jpg", "A man, tall, in red.", "12", "train"],
        ["b.png", 'She said "hello".', "7", "train"],
        ["cam 1/ä.jpg", "Second caption\nover two lines", "12", "train"],
        ["c.jpeg", "一个人", "12", "test"],
        ["d.jpg", "no person", "", "train"],
        ["cam 1/ä.jpg", "Third", "12", "train"],
        ["e.jpg", "no split", "30", ""],
    ]
    write(tmp_path / "raw", rows)
    folder.build(tmp_path / "raw", tmp_path / "out")
    train = list(Records(tmp_path / "out", "train", PersonRecord))
    (test,) = Records(tmp_path / "out", "test", PersonRecord)
    assert [r.image_id for r in train] == ["cam 1/ä.jpg", "b.png", "d.jpg", "e.jpg"]
    assert [r.file_path for r in train] == [r.image_id for r in train]
    assert [r.person_id for r in train] == [12, 7, UNKNOWN, 30]
    assert [r.label for r in train] == [1, 0, UNKNOWN, 2]
    assert train[0].captions == (
        "A man, tall, in red.",
        "Second caption\nover two lines",
        "Third",
    )
    assert train[1].captions == ('She said "hello".',)
    assert [r.attributes.get("person") for r in train] == ["12", "7", None, "30"]
    assert (test.person_id, test.label, test.captions) == (12, 0, ("一个人",))
    for record in (*train, test):
        raw = (tmp_path / "raw" / record.file_path).read_bytes()
        assert record.image == raw  # plain RGB files pass unchanged
    assert records.metadata(tmp_path / "out")["set"] == "folder"


def test_persons_with_names_are_numbered_in_sorted_order_over_all_splits(tmp_path):
    persons = [("zoe", "train"), ("10", "test"), ("Bob", "train"), ("zoe", "test")]
    rows = [[f"{i}.png", "x", name, split] for i, (name, split) in enumerate(persons)]
    write(tmp_path / "raw", rows)
    folder.build(tmp_path / "raw", tmp_path / "out")
    train = list(Records(tmp_path / "out", "train", PersonRecord))
    test = list(Records(tmp_path / "out", "test", PersonRecord))
    assert [(r.person_id, r.label) for r in train] == [(2, 1), (1, 0)]
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
    entries = folder.read_captions(tmp_path / "raw")
    assert entries == [
        folder.Entry("a.png", "", "train", ("x",)),
        folder.Entry("b.png", "", "train", ("y",)),
    ]


def test_pictures_that_are_not_plain_rgb_are_stored_upright_and_rgb(tmp_path):
    raw = tmp_path / "raw"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(raw / "turned.jpg", 200, exif=exif)
    picture(raw / "grey.png", 200, "L")
    picture(raw / "clear.png", 200, "RGBA")
    write(raw, [["turned.jpg", "x"], ["grey.png", "x"], ["clear.png", "x"]], HEADER[:2])
    folder.build(raw, tmp_path / "out")
    sizes = {}
    for record in Records(tmp_path / "out", "train", PersonRecord):
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


def test_check_counts_what_there_is_and_what_is_left_out(tmp_path, capsys):
    rows = [
        ["a.png", "x", "1", "train"],
        ["a.png", "y", "1", "train"],
        ["b.png", "x", "2", "train"],
        ["c.png", "x", "", "pretrain"],
    ]
    write(tmp_path / "raw", rows)
    picture(tmp_path / "raw" / "more" / "d.JPG", 0)
    (tmp_path / "raw" / "notes.txt").write_text("x")
    entries = folder.check(tmp_path / "raw")
    assert [entry.path for entry in entries] == ["a.png", "b.png", "c.png"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [
        ["split", "images", "persons", "captions"],
        ["train", "2", "2", "3"],
        ["pretrain", "1", "-", "1"],
    ]
    assert lines[3][:2] == ["1", "pictures"]


def test_a_vocabulary_is_trained_on_the_captions_of_the_set(tmp_path):
    rows = [[f"{i}.png", f"a zebra number {i}", "1", "train"] for i in range(5)]
    write(tmp_path / "raw", rows)
    folder.build(tmp_path / "raw", tmp_path / "out", vocabulary=60)
    tokenizer = tokenizers.load(tmp_path / "out" / "tokenizer")
    assert len(tokenizer) <= 60
    vocabulary = tokenizer.backend.get_vocab()
    assert "zebra" in vocabulary
    (row,), _ = tokenizer.encode(["A zebra number 3"], 64)
    assert vocabulary["[UNK]"] not in row
    (row,), _ = tokenizer.encode(["xylophone"], 64)
    assert vocabulary["[UNK]"] in row


def test_a_link_that_leads_out_of_the_folder_is_followed(tmp_path):
    """Only the text of a path is held to the folder: links are the user's own."""
    picture(tmp_path / "outside.png", 9)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "link.png").symlink_to(tmp_path / "outside.png")
    write(tmp_path / "raw", [["link.png", "x", "", ""]])
    folder.build(tmp_path / "raw", tmp_path / "out")
    (record,) = Records(tmp_path / "out", "train", PersonRecord)
    assert record.image == (tmp_path / "outside.png").read_bytes()


# --- what is refused -----------------------------------------------------------------


def test_a_folder_without_captions_is_told_what_to_write(tmp_path):
    text = refused(tmp_path / "raw")
    assert text.startswith(f"no {tmp_path / 'raw' / 'captions.csv'}")
    assert "path,caption" in text


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("path,person_id\na.png,1\n", "lacks caption"),
        ("file,text\na.png,x\n", "columns file, text; it lacks caption, path"),
        ("path;caption\na.png;x\n", "lacks caption, path"),
        ("", "columns none; it lacks caption, path"),
    ],
)
def test_missing_columns_are_named(tmp_path, text, lacks):
    assert lacks in refused(tmp_path / "raw", text=text)


def test_a_header_alone_is_refused(tmp_path):
    assert "no rows" in refused(tmp_path / "raw", [])


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("b.png,,1,train", "path and caption must not be empty"),
        ("b.png,   ,1,train", "path and caption must not be empty"),
        (",x,1,train", "path and caption must not be empty"),
        ("b.png", "path and caption must not be empty"),
        ("b.png,x,1,dev", "split 'dev' is not one of pretrain, train, val, test"),
        ("b.png,x,1,Train", "split 'Train' is not one of"),
        ("/etc/b.png,x,1,train", "path '/etc/b.png' must lie inside the folder"),
        ("../b.png,x,1,train", "path '../b.png' must lie inside the folder"),
        ("s/../../b.png,x,1,train", "must lie inside the folder"),
        ("b.png,red, and tall,1,train", "more fields than columns; quote captions"),
        ("a.png,y,2,train", "a.png was in split 'train' with person_id '1' above"),
        ("a.png,y,1,test", "a.png was in split 'train' with person_id '1' above"),
    ],
)
def test_a_mistake_in_a_row_is_named_with_its_line(tmp_path, row, why):
    picture(tmp_path / "raw" / "a.png", 0)
    text = refused(tmp_path / "raw", ["a.png,x,1,train", row])
    assert why in text
    assert "captions.csv line 3: " in text


def test_missing_pictures_are_counted_and_the_first_five_named(tmp_path):
    rows = [f"{i}.png,x,1,train" for i in range(8)]
    picture(tmp_path / "raw" / "3.png", 0)
    text = refused(tmp_path / "raw", rows)
    assert text.startswith(f"7 pictures of {tmp_path / 'raw'}/captions.csv are missing")
    assert "missing: 0.png, 1.png, 2.png, 4.png, 5.png ...;" in text


@pytest.mark.parametrize("kept", [0, 4, 50])
def test_pictures_that_cannot_be_read_are_named(tmp_path, kept):
    for name in ("good.png", "bad.png"):
        picture(tmp_path / "raw" / name, 0)
    whole = (tmp_path / "raw" / "bad.png").read_bytes()
    (tmp_path / "raw" / "bad.png").write_bytes(whole[:kept])
    text = refused(tmp_path / "raw", ["good.png,x,1,train", "bad.png,x,1,train"])
    assert "1 pictures of " in text
    assert "not readable: bad.png;" in text


def test_a_path_that_is_a_folder_is_missing(tmp_path):
    (tmp_path / "raw" / "a").mkdir(parents=True)
    assert "missing: a;" in refused(tmp_path / "raw", ["a,x,1,train"])


# --- not yet in one sentence ---------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_that_is_not_utf8_is_refused_by_name(tmp_path, encoding):
    write(tmp_path / "raw", [["a.png", "Hütchen", "1", "train"]], encoding=encoding)
    assert "captions.csv" in refused(tmp_path / "raw")


def test_a_quote_that_is_not_closed_is_refused_with_its_line(tmp_path):
    for name in ("a.png", "b.png"):
        picture(tmp_path / "raw" / name, 0)
    rows = ['a.png,"a man,1,train', "b.png,a woman,2,train"]
    assert "captions.csv line" in refused(tmp_path / "raw", rows)


def test_a_field_longer_than_csv_allows_is_refused(tmp_path):
    picture(tmp_path / "raw" / "a.png", 0)
    assert "captions.csv" in refused(tmp_path / "raw", [f"a.png,{'x' * 200_000},1,"])


def test_a_person_number_beyond_64_bits_is_numbered_or_refused(tmp_path):
    write(tmp_path / "raw", [["a.png", "x", "9" * 20, "train"]])
    try:
        folder.build(tmp_path / "raw", tmp_path / "out")
    except UserError as error:
        assert "9" * 20 in str(error)


def test_a_picture_written_in_two_ways_is_one_picture(tmp_path):
    picture(tmp_path / "raw" / "a.png", 0)
    write(tmp_path / "raw", [["a.png", "x", "1", ""], ["./a.png", "y", "1", ""]])
    (entry,) = folder.read_captions(tmp_path / "raw")
    assert (entry.path, entry.captions) == ("a.png", ("x", "y"))


def test_two_persons_do_not_become_one(tmp_path):
    write(tmp_path / "raw", [["a.png", "x", "007", ""], ["b.png", "x", "7", ""]])
    entries = folder.read_captions(tmp_path / "raw")
    assert len(set(folder.person_numbers(entries))) == 2
