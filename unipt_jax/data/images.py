"""Pictures as they come in, upright RGB out: on the host, with PIL."""

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

ORIENTATION = 0x0112  # the EXIF tag
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
# What a file may hold, whatever its name: a name must not choose among all that PIL reads,
# which hands PostScript to a program. MPO, which phones name .jpg, PIL opens as JPEG.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
LARGEST = 1 << 29  # bytes of a file
LARGEST_PIXELS = 1 << 26  # of a picture: a small file may claim to hold terabytes
Box = tuple[int, int, int, int]  # x, y, w, h in pixels of the upright picture
# PIL warns of what `_opened` refuses, in the middle of a progress bar.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where PIL finds an orientation, in `Image.info`.
_TELLS_TURN = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """The picture in a file; whatever PIL says of a bad one comes out as OSError."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST_PIXELS:
                raise OSError(
                    f"a picture of {width}x{height} pixels, more than any person's: "
                    "taken for a decompression bomb"
                )
            yield image
    except UnidentifiedImageError as error:  # PIL tells the address of our buffer
        kinds = ", ".join(FORMATS)
        raise OSError(f"cannot identify it as a picture ({kinds})") from error
    except (OSError, MemoryError):  # the latter is no fault of the file
        raise
    except Exception as error:  # SyntaxError, struct.error, DecompressionBombError ...
        raise OSError(f"{type(error).__name__}: {error}") from error


def upright(encoded: bytes) -> Image.Image:
    """The whole picture in a file, RGB, turned upright. Raises OSError if it is damaged."""
    with _opened(encoded) as image:
        return upright_rgb(image)


def within(box: Box, height: int, width: int) -> Box | None:
    """What of a box lies in a picture of that size; None where nothing does."""
    x, y, w, h = box
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + w, width), min(y + h, height)
    if right <= left or bottom <= top:
        return None
    return left, top, right - left, bottom - top


def cut(image: Image.Image, box: Box) -> Image.Image:
    """The part of an upright picture that a box inside it shows."""
    x, y, w, h = box
    return image.crop((x, y, x + w, y + h))


def upright_rgb(image: Image.Image) -> Image.Image:
    """RGB, turned as its EXIF orientation says; transparency is laid on white.

    What is turned tells of no turn any more: of what is upright it makes the same again.
    """
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, which a single tag of
    # the wrong type stops.
    image.load()  # PIL turns a TIFF here and takes its tag away
    turn = _TURN.get(image.getexif().get(ORIENTATION))
    if turn is not None:
        image = image.transpose(turn)
        for name in _TELLS_TURN:  # PIL copies them
            image.info.pop(name, None)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):  # 16-bit and float greyscale
        values = np.asarray(image, np.float32)
        top = 65535.0 if image.mode != "F" else max(float(values.max()), 1e-6)
        image = Image.fromarray((values * (255 / top)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


FITS = ("squeeze", "crop", "pad")


def resize(
    image: Image.Image, height: int, width: int, fit: str = "squeeze"
) -> np.ndarray:
    """(height, width, 3) uint8, upright: bicubic with antialiasing.

    fit: "squeeze" shows the whole picture, its shape not kept, as the field does with
    crops of persons; "crop" covers the frame and cuts off what stands out, equally on
    both sides, as CLIP's own preprocessing does (of a tall crop it cuts head and
    feet); "pad" shows the whole picture in its own shape, centred on black.
    """
    return fitted(upright_rgb(image), height, width, fit)


def fitted(
    image: Image.Image, height: int, width: int, fit: str = "squeeze"
) -> np.ndarray:
    """As `resize`, of a picture that is upright RGB: its EXIF block is not read."""
    if image.size == (width, height):
        return np.asarray(image)
    if fit == "squeeze":
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    if fit not in FITS:
        raise ValueError(f"fit '{fit}' is not one of {', '.join(FITS)}")
    w, h = image.size
    by_width = (width * h >= height * w) == (fit == "crop")  # else by height
    # Cut, not rounded, as CLIP's preprocessing does.
    w, h = (width, width * h // w) if by_width else (height * w // h, height)
    w, h = max(1, w), max(1, h)
    image = image.resize((w, h), Image.Resampling.BICUBIC)
    if fit == "crop":
        left, top = round((w - width) / 2), round((h - height) / 2)
        return np.asarray(image.crop((left, top, left + width, top + height)))
    frame = Image.new("RGB", (width, height))
    frame.paste(image, ((width - w) // 2, (height - h) // 2))
    return np.asarray(frame)


def decode(
    encoded: bytes,
    height: int,
    width: int,
    fit: str = "squeeze",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """An encoded file -> (height, width, 3) uint8. Raises OSError if it is damaged.

    out: a contiguous array of that shape to write to and return, as in NumPy.
    """
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    if not _decode_ready(encoded, out):
        with _opened(encoded) as image:
            out[...] = resize(image, height, width, fit)
    return out


_MAY_TURN = (b"Exif", b"http://ns.adobe.com/xap")  # where orientations are written


def _decode_ready(encoded: bytes, out: np.ndarray) -> bool:
    """Decodes an upright colour JPEG of the very size of `out`; False for all else.

    The same pixels as PIL's, both come from libjpeg-turbo, in two thirds of the time:
    PIL decodes to four channels and copies twice.
    """
    if any(mark in encoded for mark in _MAY_TURN):
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
        if (height, width, 3) != out.shape or colours != "YCbCr":
            return False
        simplejpeg.decode_jpeg(encoded, "RGB", buffer=out)
    except (ValueError, KeyError):  # no JPEG, a damaged or a rare one: PIL judges it
        return False
    return True


def _is_plain(image: Image.Image) -> bool:
    """Whether any reader shows a loaded file as upright RGB."""
    turned = image.getexif().get(ORIENTATION) in _TURN
    rgb = image.mode == "RGB" and not image.has_transparency_data
    return image.format in ("JPEG", "PNG") and rgb and not turned


def as_stored(
    encoded: bytes, size: tuple[int, int] | None = None, *, quality: int = 95
) -> bytes:
    """The file itself where any reader shows it as upright RGB, else a JPEG that is.

    A plain RGB JPEG or PNG without an EXIF turn passes unchanged, if it has the `size`
    (height, width) that is asked for; the rest is written anew, bicubic and at that
    `quality`. Raises OSError if the file is damaged or no picture.
    """
    with _opened(encoded) as image:
        image.load()
        shape = image.size if size is None else size[::-1]
        if image.size == shape and _is_plain(image):
            return encoded
        image = upright_rgb(image)
        if size is not None:
            image = image.resize(shape, Image.Resampling.BICUBIC)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=quality)
        return out.getvalue()


def thumbnail(encoded: bytes, height: int = 256, box: Box | None = None) -> bytes:
    """A JPEG of at most this height, for pages; of what lies in the box, if one is given.

    Raises OSError for a damaged file, and for a box that lies outside of the picture.
    """
    small = upright(encoded)
    if box is not None:
        inside = within(box, small.height, small.width)
        if inside is None:
            raise OSError(
                f"no part of the box {box} lies in {small.width}x{small.height}"
            )
        small = cut(small, inside)
    small.thumbnail((4 * height, height))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=85, comment=b"")  # PIL keeps that of the file
    return out.getvalue()


def size(encoded: bytes) -> tuple[int, int]:
    """Height and width, as the file's head says them."""
    with _opened(encoded) as image:
        return image.height, image.width


def measure(encoded: bytes) -> tuple[int, int]:
    """Height and width of a picture, all of which was read. Raises OSError if it is
    damaged."""
    return upright(encoded).size[::-1]
