"""What a file may hold to count as a picture, and that it is turned upright only once."""

import io

import numpy as np
import pytest
from PIL import Image

from unipt_jax.data import images

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 8, 3), np.uint8)
FORMS = {"JPEG": {}, "PNG": {}, "WEBP": {"lossless": True}}
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{}"/></x:xmpmeta>'


def encode(form, **options):
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, form, **options)
    return out.getvalue()


def oriented(form, value):
    exif = Image.Exif()
    exif[images.ORIENTATION] = value
    return encode(form, exif=exif, **FORMS[form])


@pytest.mark.parametrize("form", FORMS)
def test_what_was_turned_upright_is_not_turned_again(form):
    for value in range(1, 9):
        encoded = oriented(form, value)
        upright = images.upright(encoded)
        again = images.upright_rgb(upright)
        np.testing.assert_array_equal(again, upright)
        height, width = upright.height, upright.width
        assert (width > height) == (value >= 5), value
        np.testing.assert_array_equal(
            images.resize(upright, height, width), images.decode(encoded, height, width)
        )


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_nor_is_what_xmp_turned(form):
    encoded = encode(form, xmp=XMP.format(6).encode(), **FORMS[form])
    upright = images.upright(encoded)
    assert upright.size == (16, 8)
    np.testing.assert_array_equal(images.upright_rgb(upright), upright)


def test_the_picture_that_is_given_keeps_what_it_tells():
    image = Image.open(io.BytesIO(oriented("PNG", 6)))
    images.upright_rgb(image)
    assert image.getexif()[images.ORIENTATION] == 6


@pytest.mark.parametrize("form", [*images.FORMATS, "MPO"])
def test_every_format_of_a_pictures_name_is_read(form):
    assert images.upright(encode(form)).size == (8, 16)


@pytest.mark.parametrize("form", ["EPS", "ICO", "TGA", "JPEG2000"])
def test_what_else_pil_knows_is_no_picture(form):
    with pytest.raises(OSError, match=r"cannot identify it as a picture \(JPEG, PNG"):
        images.upright(encode(form))
