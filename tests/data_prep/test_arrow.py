"""LUPerson-T's Arrow files: rows in both formats, and files that are damaged."""

import pretrain_trees as trees
import pyarrow as pa
import pytest

from data_prep import unlabelled
from data_prep.arrow import Batches
from data_prep.raw import Reader
from unipt_jax.errors import UserError


def rows(count: int, first: int = 0) -> list[dict]:
    """With image and caption alone."""
    return [
        {"image": trees.picture(n), "caption": trees.sentence(n)}
        for n in range(first, first + count)
    ]


def pictures(survey) -> list[bytes]:
    """The image of each entry."""
    reader = Reader(survey.raw.root)
    return [reader.read(entry.place) for entry in survey.entries]


@pytest.mark.parametrize("stream", [False, True])
def test_every_row_of_every_batch_is_given_with_its_own_picture(tmp_path, stream):
    trees.arrow_file(tmp_path / "a.arrow", rows(7), stream=stream, batch=3)
    batches = Batches(str(tmp_path / "a.arrow"))
    found = list(batches.rows())
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]
    assert [(batch, row) for batch, row, _ in found] == places
    assert [values["caption"] for *_, values in found] == [
        row["caption"] for row in rows(7)
    ]
    there = [batches.image(*place) for place in places]
    assert there == [row["image"] for row in rows(7)]
    batches.close()


def test_images_without_an_id_are_named_by_file_batch_and_row(tmp_path):
    trees.arrow_file(tmp_path / "a.arrow", rows(3), batch=2)
    survey = unlabelled.luperson_t(tmp_path)
    assert [entry.image_id for entry in survey.entries] == ["a/0-0", "a/0-1", "a/1-0"]


def test_files_of_one_name_in_two_folders_do_not_mix(tmp_path):
    for number, folder in enumerate(("train", "val")):
        file = tmp_path / folder / "data-00000-of-00001.arrow"
        trees.arrow_file(file, rows(3, 10 * number), stream=True)
    survey = unlabelled.luperson_t(tmp_path)
    assert len(survey.entries) == len({entry.image_id for entry in survey.entries}) == 6
    wanted = [row["image"] for row in rows(3) + rows(3, 10)]
    assert pictures(survey) == wanted


def test_rows_of_one_image_id_are_one_image_with_the_captions_of_both(tmp_path):
    same = [row | {"image_id": 5} for row in rows(2)]
    same[1]["image"] = same[0]["image"]
    trees.arrow_file(tmp_path / "a.arrow", same)
    (entry,) = unlabelled.luperson_t(tmp_path).entries
    assert entry.image_id == "a/5"
    assert entry.captions == (trees.sentence(0), trees.sentence(1))


@pytest.mark.parametrize("image", [None, {"bytes": None, "path": "a.jpg"}])
def test_a_row_without_a_picture_is_an_image_that_cannot_be_read(tmp_path, image):
    some = rows(2)
    whole = some[0]["image"]
    if image is not None:
        some[0]["image"] = {"bytes": whole, "path": None}
    some[1]["image"] = image
    trees.arrow_file(tmp_path / "a.arrow", some)
    good, bad = unlabelled.luperson_t(tmp_path).entries
    assert Reader(tmp_path).read(good.place) == whole
    with pytest.raises(OSError, match="no bytes of a picture in that row"):
        Reader(tmp_path).read(bad.place)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"caption": None}, "a.arrow row 1 of batch 0: 'caption' is null"),
        ({"caption": ["x", None]}, "expected a sentence or a list of sentences"),
    ],
)
def test_a_row_without_a_caption_is_named(tmp_path, change, said):
    some = rows(2)
    if isinstance(change["caption"], list):
        some[0]["caption"] = ["x"]
    trees.arrow_file(tmp_path / "a.arrow", [some[0], some[1] | change])
    with pytest.raises(UserError) as caught:
        unlabelled.luperson_t(tmp_path)
    assert said in str(caught.value)


def test_other_columns_are_refused_with_those_that_are_expected(tmp_path):
    trees.arrow_file(tmp_path / "a.arrow", [{"picture": b"?", "text": "?"}])
    with pytest.raises(
        UserError, match="columns picture, text; expected image and cap"
    ):
        unlabelled.luperson_t(tmp_path)


def test_a_file_without_rows_is_refused(tmp_path):
    schema = pa.schema({"image": pa.binary(), "caption": pa.string()})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink:
        pa.ipc.new_file(sink, schema).close()
    with pytest.raises(UserError, match="a.arrow has no rows; fetch it again"):
        unlabelled.luperson_t(tmp_path)


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, stream):
    file = tmp_path / "a.arrow"
    trees.arrow_file(file, rows(5), stream=stream)
    whole = file.read_bytes()
    for cut in range(len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="a.arrow is no Arrow file, or is damaged"):
            Batches(str(file))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\0" * 64])
def test_what_is_no_arrow_file_is_refused(tmp_path, content):
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(
        UserError, match="no Arrow file, or is damaged .*; fetch it aga"
    ):
        unlabelled.luperson_t(tmp_path)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "a.arrow"
    trees.arrow_file(file, [{"image": b"?", "caption": "caption of XX"}])
    file.write_bytes(file.read_bytes().replace(b"of XX", b"of \xe9X"))
    with pytest.raises(UserError, match=r"batch 0 is damaged \(.*Invalid UTF8"):
        unlabelled.luperson_t(tmp_path)
