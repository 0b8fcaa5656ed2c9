"""A page is shown the crops of an index, and nothing else that lies on the disk."""

import io
import os
import shutil

import captioning
import numpy as np
import pyarrow as pa
import pytest
import searching
from PIL import Image

from unipt_jax.data import images
from unipt_jax.search import crops, index, scan

BOXES = [None, (10, 20, 30, 60), (70, 90, 30, 30)]


@pytest.fixture
def made(tmp_path):
    """An index of a picture of 100x120 that lies on its side: all of it, and two boxes."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    upright = Image.fromarray(captioning.pixels(0, 120, 100))
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "own").mkdir()
    file = tmp_path / "own" / "a.png"
    file.write_bytes(captioning.encode(lying, "PNG", exif=exif))
    searching.write_crops(tmp_path / "secret", 1)
    boxes = [box or (0, 0, 100, 120) for box in BOXES]
    asked = [b"1" if box else b"" for box in BOXES]
    sides = dict(zip("xywh", zip(*boxes, strict=True), strict=True))
    known = file.stat()
    table = searching.entries(
        [b"a.png"] * 3,
        **sides,
        asked=asked,
        bytes=[known.st_size] * 3,
        mtime_ns=[known.st_mtime_ns] * 3,
    )
    fields = dict(entries=table, folders=[str(tmp_path / "own")])
    return searching.write_index(tmp_path / "index", count=3, **fields)


def opened(shown):
    return np.asarray(Image.open(io.BytesIO(shown.jpeg)).convert("RGB"), np.float32)


@pytest.mark.parametrize("number", range(3))
def test_a_crop_is_its_box_of_the_upright_picture(made, number):
    x, y, w, h = BOXES[number] or (0, 0, 100, 120)
    wanted = captioning.pixels(0, 120, 100)[y : y + h, x : x + w].astype(np.float32)
    found = opened(crops.read(made, number))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).mean() < 3  # of 255: a JPEG's
    assert not crops.read(made, number).changed


def test_a_crop_is_made_as_small_as_is_asked(made):
    assert opened(crops.read(made, 1, 20)).shape == (20, 10, 3)


def test_a_file_that_was_changed_since_is_told(made):
    file = made.file(0)
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert crops.read(made, 0).changed
    Image.new("RGB", (60, 60), "red").save(file)
    assert crops.read(made, 0).changed
    assert opened(crops.read(made, 1)).shape == (40, 30, 3)  # what is left of the box
    with pytest.raises(OSError, match="no part of the box"):
        crops.read(made, 2)
    file.write_bytes(b"no picture")
    with pytest.raises(OSError, match="cannot identify it as a picture"):
        crops.read(made, 0)


def test_what_is_gone_or_no_file_any_more_is_not_shown(made):
    file = made.file(0)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        crops.read(made, 0)
    os.mkfifo(file)
    with pytest.raises(OSError, match=scan.NO_FILE):
        crops.read(made, 0)


def test_what_has_become_a_link_out_is_not_shown(made, tmp_path):
    file = made.file(0)
    file.unlink()
    file.symlink_to(tmp_path / "secret" / "000.jpg")
    with pytest.raises(OSError, match=scan.OUTSIDE):
        crops.read(made, 0)


def test_an_index_that_names_files_elsewhere_gives_none(made, tmp_path):
    wild = [b"../secret/000.jpg", os.fsencode(tmp_path / "secret" / "000.jpg")]
    field = index.ENTRIES.field("path")
    for path in wild:
        paths = pa.array([path] * 3, pa.large_binary())
        table = made.entries.set_column(1, field, paths)
        fields = dict(entries=table, folders=made.folders)
        other = searching.write_index(tmp_path / "other", count=3, **fields)
        with pytest.raises(OSError, match=scan.OUTSIDE):
            crops.read(other, 0)


def test_the_folder_of_pictures_may_have_become_a_link(made, tmp_path):
    shutil.move(tmp_path / "own", tmp_path / "moved")
    (tmp_path / "own").symlink_to("moved")
    assert not crops.read(made, 0).changed


@pytest.mark.parametrize("number", [-1, 3])
def test_an_entry_that_is_not_there_is_none(made, number):
    with pytest.raises(IndexError):
        crops.read(made, number)
