"""Persons in photographs: an update embeds what lies in their boxes, and keeps to them."""

import contextlib
import io
import os
from unittest import mock

import captioning
import numpy as np
import pytest
import searching
from captioning import files_of
from PIL import Image
from searching import bring, labels, skipped

from unipt_jax.data import images
from unipt_jax.errors import UserError
from unipt_jax.search import index, scan


@pytest.fixture
def street(tmp_path):
    """A photograph on its side, with two persons, and one that no box is given of."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = 8
    lying = Image.fromarray(captioning.pixels(1, 200, 300)).transpose(
        Image.Transpose.ROTATE_270
    )
    (tmp_path / "photos").mkdir()
    street = captioning.encode(lying, "JPEG", quality=95, exif=exif)
    (tmp_path / "photos" / "street.jpg").write_bytes(street)
    (tmp_path / "photos" / "other.jpg").write_bytes(searching.jpeg(2, 60, 90))
    return tmp_path


def with_boxes(one, place, *rows):
    (place / "boxes.csv").write_text("\n".join(["path,x,y,w,h", *rows]))
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found = bring(
            one, place / "index", place / "photos", boxes=str(place / "boxes.csv")
        )
    return found, said.getvalue()


ROWS = "street.jpg,100,20,40,120", "street.jpg,-10,50,60,200"


def test_boxes_have_the_vectors_of_what_they_show(one, street, embedded):
    found, said = with_boxes(one, street, *ROWS, "street.jpg,300,0,5,5")
    cut = ["street.jpg [0,50,50,150]", "street.jpg [100,20,40,120]"]
    assert labels(found) == cut
    assert [(found[i].height, found[i].width) for i in range(2)] == [
        (150, 50),
        (120, 40),
    ]
    picture = images.upright((street / "photos" / "street.jpg").read_bytes())
    assert picture.size == (300, 200)
    shown = [np.asarray(picture)[50:200, 0:50], np.asarray(picture)[20:140, 100:140]]
    wanted = searching.vectors_of(one, map(Image.fromarray, shown))
    np.testing.assert_allclose(found.embeddings, wanted, atol=5e-4)
    told = {f"{street}/photos/street.jpg [300,0,5,5]"}
    assert skipped(street / "index").keys() == told
    reason = skipped(street / "index").popitem()[1]
    assert reason == "the box lies outside of the 300x200"
    assert (
        f"1 picture is left out, which {street}/boxes.csv does not name" in said
        and "note: " not in said
    )


def test_a_picture_that_is_gone_takes_its_boxes_along(one, street):
    other = "other.jpg,0,0,20,60"
    with_boxes(one, street, *ROWS, other)
    (street / "photos" / "other.jpg").unlink()
    found, said = with_boxes(one, street, *ROWS, other)
    assert [label.split()[0] for label in labels(found)] == ["street.jpg"] * 2
    assert "boxes.csv:4: 'other.jpg' is no picture" in said


def test_boxes_that_are_as_they_were_are_not_read_again(one, street, embedded):
    with_boxes(one, street, *ROWS)
    with mock.patch.object(scan, "read", None):
        _, said = with_boxes(one, street, *reversed(ROWS))
    assert "2 entries: kept 2, embedded 0" in said
    _, said = with_boxes(one, street, ROWS[0], "street.jpg,5,5,20,50")
    assert "2 entries: kept 1, embedded 1, taken over 0, dropped 1" in said
    assert embedded == [2, 1]
    os.utime(street / "photos" / "street.jpg", ns=(0, 1))
    _, said = with_boxes(one, street, *ROWS[:1])
    assert "1 entry: kept 0, embedded 0, taken over 1, dropped 1" in said


def test_an_index_of_boxes_is_not_replaced_by_whole_pictures_unasked(one, street):
    made, _ = with_boxes(one, street, *ROWS)
    assert made.boxes == index.read(street / "index").boxes == f"{street}/boxes.csv"
    before = files_of(street / "index")
    (street / "boxes.csv").rename(street / "b.csv")
    said = (
        f"in the boxes of {street}/boxes.csv, and no boxes are given: give that file, "
    )
    with pytest.raises(UserError, match=said) as raised:
        bring(one, street / "index", street / "photos")
    for remedy in ("--config.boxes=FILE", "--config.overwrite=True"):
        assert remedy in str(raised.value)
    assert files_of(street / "index") == before
    with mock.patch.object(scan, "read", None):
        options = dict(boxes=os.path.relpath(street / "b.csv"))
        moved = bring(one, street / "index", street / "photos", **options)
    assert moved.boxes == f"{street}/b.csv" and labels(moved) == labels(made)
    whole = bring(one, street / "index", street / "photos", overwrite=True)
    assert labels(whole) == ["other.jpg", "street.jpg"] and whole.boxes == ""
    assert bring(one, street / "index", street / "photos").boxes == ""
