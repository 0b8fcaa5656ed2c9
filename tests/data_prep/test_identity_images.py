"""Images of the identity sets that are copies, cannot be read, or are to have another
size. What is said, and what is written."""

import io
import struct
import zlib

import pytest
import trees
from PIL import Image

from unipt_jax.data import records

# --- copies --------------------------------------------------------------------------


def copied(tree, first, second):
    """Gives the second entry the picture of the first; what is said of that."""
    tree.drawn[second["file_path"]] = tree.drawn[first["file_path"]]
    done = tree.write().check()
    assert done.code == 0
    return [note for note in done.notes() if "to the byte" in note]


def test_copies_are_noted_and_kept(make):
    tree = make("icfg_pedes")
    a, b = tree.of("train")[:2]
    assert copied(tree, a, b) == [
        f"1 image is a copy of another, to the byte: {a['file_path']} = "
        + b["file_path"]
    ]
    assert tree.built() == tree.planted()


def test_copies_across_identities_are_told(make):
    tree = make("icfg_pedes")
    (note,) = copied(tree, tree.of("train")[0], tree.of("train")[-1])
    assert note.endswith("; 1 of them across identities")


def test_copies_across_splits_are_told(make):
    tree = make("icfg_pedes")
    (note,) = copied(tree, tree.of("train")[0], tree.of("test")[0])
    assert note.endswith("; 1 of them across splits; 1 of them across identities")


# --- images that cannot be read ------------------------------------------------------


def bomb():
    """A PNG of a hundred bytes that claims to hold 60,000 x 60,000 pixels."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(lambda image: image[: len(image) // 2], "truncated", id="cut off"),
        pytest.param(lambda image: image[:-30], "truncated", id="its end cut off"),
        pytest.param(lambda image: b"", "cannot identify", id="empty"),
        pytest.param(
            lambda image: b"<!DOCTYPE html><html>404 Not Found</html>",
            "cannot identify",
            id="html",
        ),
        pytest.param(lambda image: bomb(), "bomb", id="bomb"),
    ],
)
def test_an_image_that_cannot_be_read_is_named_and_left_out(make, spoil, why):
    tree = make("rstp_reid").write()
    path = tree.images[3]
    file = tree.raw / "imgs" / path
    file.write_bytes(spoil(file.read_bytes()))
    (problem,) = tree.check().problems()
    assert problem.startswith(f"1 image cannot be read: {path} (")
    assert why in problem.lower()
    tree.refused(problem)
    del tree.entries[3]
    assert tree.built("--allow-missing") == tree.planted()
    (said,) = tree.left_out().items()
    assert said[0] == path and why in said[1].lower()
    assert records.metadata(tree.out)["counts"]["train"]["images"] == 14


def test_a_bitmap_is_stored_as_a_jpeg_that_looks_the_same(cuhk):
    found = cuhk.write().built()
    some = [r for split in found.values() for r in split if r.image_id.endswith("bmp")]
    assert len(some) == 6
    for record in some:
        before = Image.open(cuhk.raw / "imgs" / record.image_id)
        after = Image.open(io.BytesIO(record.image))
        assert (before.format, after.format) == ("BMP", "JPEG")
        assert after.size == before.size
        out = io.BytesIO()
        before.save(out, "JPEG", quality=95)
        assert record.image == out.getvalue()


# --- sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [95, 60])
def test_images_are_stored_at_the_size_that_is_asked_for(make, quality):
    def picture(number, person, path):
        size = (16, 32) if number % 3 == 0 else (20 + number, 50)
        return trees.picture(number, person, path, size)

    tree = make("rstp_reid", picture=picture).write()
    found = tree.built("--height", 32, "--width", 16, "--quality", quality)
    for record in (r for split in found.values() for r in split):
        encoded = (tree.raw / "imgs" / record.image_id).read_bytes()
        with Image.open(io.BytesIO(encoded)) as image:
            if image.size == (16, 32):
                assert record.image == encoded  # unchanged
                continue
            resized = image.resize((16, 32), Image.Resampling.BICUBIC)
        assert record.image == trees.encode(resized, "JPEG", quality=quality)
    meta = records.metadata(tree.out)
    assert (meta["height"], meta["width"]) == (32, 16)
    wanted = f"32x16, resized by PIL, bicubic, as JPEG of quality {quality}"
    assert meta["images"] == wanted
