"""The quick way to decode a JPEG gives PIL's own pixels, and refuses what PIL refuses."""

import io

import numpy as np
import pytest
from PIL import Image

from unipt_jax.data import images

RNG = np.random.default_rng(0)
SOFT = Image.fromarray(RNG.integers(0, 256, (24, 12, 3), np.uint8)).resize(
    (131, 397), Image.Resampling.BICUBIC
)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")
FORMS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")


def encode(image, form="JPEG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def by_pil(encoded, size):
    with images._opened(encoded) as image:
        return images.resize(image, *size)


def quickly(encoded, size):
    out = np.zeros((*size, 3), np.uint8)
    return out if images._decode_ready(encoded, out) else None


def test_every_kind_of_colour_jpeg_has_pils_pixels():
    count = 0
    for size in ((128, 384), (131, 397), (1, 1), (7, 3), (17, 33)):
        image = SOFT.resize(size)
        for sampling in (0, 1, 2):
            for quality in (5, 50, 75, 90, 98, 100):
                for more in (
                    {},
                    {"progressive": True},
                    {"restart_marker_blocks": 2},
                    {"optimize": True, "comment": b"mine", "icc_profile": b"x" * 99},
                ):
                    encoded = encode(
                        image, quality=quality, subsampling=sampling, **more
                    )
                    np.testing.assert_array_equal(
                        quickly(encoded, size[::-1]), by_pil(encoded, size[::-1])
                    )
                    count += 1
    assert count == 360


def written():
    """The same picture in every mode and form that PIL writes."""
    grey = np.asarray(SOFT.convert("L"))
    for mode in MODES:
        if mode in ("I;16", "I"):
            deep = grey.astype(np.uint16 if mode == "I;16" else np.int32) * 257
            image = Image.fromarray(deep)
        else:
            image = SOFT.convert(mode)
        for form in FORMS:
            try:
                encoded = encode(image, form)
                by_pil(encoded, (48, 16))  # Pillow 12 writes TIFFs that it cannot read
            except (OSError, ValueError, KeyError):
                continue
            yield pytest.param(encoded, id=f"{form} {mode}")


@pytest.mark.parametrize("size", [(397, 131), (48, 16)])
@pytest.mark.parametrize("encoded", written())
def test_every_mode_and_form_has_pils_pixels(encoded, size):
    wanted = by_pil(encoded, size)
    np.testing.assert_array_equal(images.decode(encoded, *size), wanted)
    out = np.zeros((2, *size, 3), np.uint8)
    images.decode(encoded, *size, out=out[1])
    np.testing.assert_array_equal(out[1], wanted)
    assert not out[0].any()


def test_what_may_be_turned_is_of_another_size_or_no_colour_jpeg_is_left_to_pil():
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x tiff:Orientation="6"/>'
    for encoded in (
        encode(SOFT, exif=exif),
        encode(SOFT, xmp=xmp),
        encode(SOFT.resize((130, 397))),
        encode(SOFT.convert("L")),
        encode(SOFT.convert("CMYK")),
        encode(SOFT, "PNG"),
        encode(SOFT, keep_rgb=True),
        encode(SOFT)[:-2],
        b"",
    ):
        assert quickly(encoded, (397, 131)) is None
    assert quickly(encode(SOFT), (397, 131)) is not None


def damaged(encoded):
    """One or two bytes changed, taken out or put in, mostly in the head; or cut."""
    out = bytearray(encoded)
    for _ in range(RNG.integers(1, 3)):
        place = int(RNG.integers(min(len(out), 700 if RNG.random() < 0.5 else 1 << 30)))
        match RNG.integers(4):
            case 0:
                out[place] = RNG.integers(256)
            case 1:
                del out[place : place + RNG.integers(1, 9)]
            case 2:
                out[place:place] = RNG.bytes(RNG.integers(1, 9))
            case 3 if RNG.random() < 0.1:
                del out[max(place, 2) :]
    return bytes(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("more", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_damaged_file_that_is_decoded_has_pils_pixels_and_is_not_refused_by_it(more):
    encoded = encode(SOFT.resize((40, 72)), quality=80, **more)
    taken = 0
    for _ in range(2_000):
        file = damaged(encoded)
        found = quickly(file, (72, 40))
        if found is not None:
            np.testing.assert_array_equal(found, by_pil(file, (72, 40)))
            taken += 1
    assert 200 < taken < 1_800
