"""Pictures as they come: odd ones are read, bad ones are listed with the reason."""

import io
import os
import threading

import captioning
import numpy as np
import pytest
from PIL import Image

from unipt_jax.captions import pictures
from unipt_jax.captions.conquer import STEPS
from unipt_jax.captions.pictures import FilePictures, open_pictures
from unipt_jax.data import images
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError

encode = captioning.encode


def colours(grey=False):
    """A picture of few colours, upright, which every lossless format holds exactly."""
    rng = np.random.default_rng(5)
    small = rng.integers(0, 256, (8, 3, 1 if grey else 3), np.uint8)
    big = np.repeat(np.repeat(small, 6, 0), 6, 1)
    return Image.fromarray(np.broadcast_to(big, (48, 18, 3)).copy())


def turned():
    """The picture lying on its side, with the EXIF tag that says so."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    lying = colours().transpose(Image.Transpose.ROTATE_90)
    return encode(lying, "PNG", exif=exif)


def odd_pictures():
    """Name -> file, and the name of the plain file that shows the same."""
    plain, grey = colours(), colours(grey=True).convert("L")
    palette = plain.convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
    other = Image.fromarray(captioning.pixels(9, 48, 18))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = dict(save_all=True, append_images=[other], duration=100)
    animated = dict(append_images=[other.convert("P")], save_all=True, duration=100)
    rgba = plain.convert("RGBA")
    rgba.putalpha(255)
    return {
        "plain.png": (encode(plain, "PNG"), "plain.png"),
        "grey.png": (encode(colours(grey=True), "PNG"), "grey.png"),
        "palette.png": (encode(palette, "PNG"), "plain.png"),
        "rgba.png": (encode(rgba, "PNG"), "plain.png"),
        "animated.gif": (encode(palette, "GIF", **animated), "plain.png"),
        "animated.webp": (encode(plain, "WEBP", lossless=True, **frames), "plain.png"),
        "turned.png": (turned(), "plain.png"),
        "bits.bmp": (encode(plain, "BMP"), "plain.png"),
        "scan.TIFF": (encode(plain, "TIFF"), "plain.png"),
        "really a png.jpg": (encode(plain, "PNG"), "plain.png"),
        "grey.jpg": (encode(grey, "JPEG", quality=100), None),
        "grey16.png": (encode(deep, "PNG"), "grey.png"),
        "cmyk.jpg": (encode(plain.convert("CMYK"), "JPEG", quality=100), None),
    }


LONG = "ä" * 100 + ".jpg"  # 204 of the 255 bytes that a name may have
NAMES = (
    " first and last .jpg",
    "quotes'\"&<b>.jpg",
    "100%, #1; $(rm -r) *?.jpg",
    "人/👩🏽‍🦱 \u2028\u0085.JPEG",
    "tab\tnewline\n.jpg",
    "-rf.jpg",
    LONG,
)
BAD_BYTES = b"caf\xe9.jpg", "caf\\xe9.jpg"  # a name in Latin-1, and how it is told


def write(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of pictures that can all be read."""
    root = tmp_path_factory.mktemp("odd") / "images"
    for name, (content, _) in odd_pictures().items():
        write(root, name, content)
    for number, name in enumerate(NAMES):
        write(root, name, captioning.jpeg(number))
    return root


def bad_pictures():
    jpeg = captioning.jpeg(7)
    png = encode(Image.fromarray(captioning.pixels(8)), "PNG")
    return {
        "a/empty.jpg": (b"", "cannot identify"),
        "a/truncated.jpg": (jpeg[: len(jpeg) // 2], "runcated"),
        "b/truncated.png": (png[: len(png) // 2], ""),
        "b/text.jpg": (b"this is no picture\n" * 40, "cannot identify"),
        "html.jpeg": (b"<!doctype html><title>404</title>", "cannot identify"),
        "bomb.png": (captioning.bomb(), "DecompressionBomb"),
        "zeros.png": (bytes(5000), "cannot identify"),
        "magic.gif": (b"GIF89a" + bytes(20), ""),
    }


@pytest.fixture(scope="module")
def mixed(good, tmp_path_factory):
    """The same pictures with bad ones among them, and what the job makes of those."""
    root = tmp_path_factory.mktemp("mixed") / "images"
    for file in good.rglob("*"):
        if file.is_file():
            write(root, file.relative_to(good).as_posix(), file.read_bytes())
    for name, (content, _) in bad_pictures().items():
        write(root, name, content)
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "dangling.jpg").symlink_to("nowhere.jpg")
    (root / "loop.png").symlink_to("loop.png")
    (root / "folder.jpg").mkdir()
    (root / "a" / "up").symlink_to(root)  # round in circles, if one followed it
    (root / "device.png").symlink_to("/dev/zero")
    with open(os.fsencode(root) + b"/" + BAD_BYTES[0], "wb") as file:
        file.write(captioning.jpeg(3))
    return root


@pytest.fixture(scope="module")
def made(captioner, good, mixed, tmp_path_factory):
    """The folders that the job makes of the good ones, and of all."""
    place, plain = tmp_path_factory.mktemp("made"), captioner.of(calibrate__images=0)
    out = [plain.of(data__images=good).make(place / "good")]
    job = plain.of(data__images=mixed)
    thread = threading.Timer(60, open_pipe, [mixed / "a" / "pipe.jpg"])
    thread.start()  # a job that waits for the pipe shall fail, not hang
    out.append(job.make(place / "mixed"))
    thread.cancel()
    return out


def open_pipe(path):
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def assert_same_evidence(row, other):
    for name, found in row["evidence"].items():
        there = other["evidence"][name]["probability"]
        assert found["probability"] == pytest.approx(there, abs=2.1 / STEPS), name


def test_every_kind_of_picture_is_read_as_what_it_shows(made, good):
    rows = captioning.rows_of(made[0])
    assert captioning.skipped_of(made[0]) == {}
    assert set(rows) == {*odd_pictures(), *NAMES}
    assert list(rows) == sorted(rows)
    for name, (_, same) in odd_pictures().items():
        if same:
            assert_same_evidence(rows[name], rows[same])
    apart = [rows[name]["evidence"]["age"] for name in ("plain.png", "grey.png")]
    assert apart[0]["probability"] != apart[1]["probability"]


def test_what_is_kept_of_them_is_upright_rgb_in_jpeg_or_png(made, good):
    people = list(Records(made[0] / "records", "pretrain", PersonRecord))
    rows = captioning.rows_of(made[0])
    assert [person.image_id for person in people] == list(rows)
    for person in people:
        with Image.open(io.BytesIO(person.image)) as image:
            assert image.format in ("JPEG", "PNG") and image.mode == "RGB"
            assert image.getexif().get(images.ORIENTATION, 1) == 1
            found = np.asarray(image).astype(int)
        source = (good / person.image_id).read_bytes()
        with Image.open(io.BytesIO(source)) as image:
            wanted = np.asarray(images.upright_rgb(image)).astype(int)
        assert found.shape == wanted.shape
        # JPEG blurs edges between colours; of another picture it would be over 80
        assert np.abs(found - wanted).mean() < 16, person.image_id


def test_bad_pictures_are_listed_with_the_reason_and_nothing_else_is(made):
    skipped = captioning.skipped_of(made[1])
    assert all(skipped.values())
    links = {"dangling.jpg", "loop.png", "device.png", "a/pipe.jpg"}
    assert set(skipped) == {*bad_pictures(), *links}
    for name, (_, reason) in bad_pictures().items():
        assert reason in skipped[name], skipped[name]
    assert "No such file" in skipped["dangling.jpg"]
    assert "device" in skipped["a/pipe.jpg"] and "device" in skipped["device.png"]
    assert all("\n" not in reason for reason in skipped.values())


def test_bad_pictures_change_nothing_about_the_others(made):
    good, mixed = map(captioning.rows_of, made)
    for image_id, row in good.items():
        there = mixed[image_id]
        assert there["captions"] == row["captions"]
        assert_same_evidence(there, row)
    assert set(mixed) - set(good) == {BAD_BYTES[1]}
    people = list(Records(made[1] / "records", "pretrain", PersonRecord))
    captions = list(Records(made[1], "pretrain", CaptionRecord))
    ids = [person.image_id for person in people]
    assert ids == [row.image_id for row in captions] == list(mixed)
    index = [row["index"] for row in mixed.values()]
    assert index == sorted(index) and len(index) < index[-1] + 1


def test_a_name_that_is_no_utf8_is_told_in_ascii_and_its_picture_read(made, mixed):
    with open(os.fsencode(mixed) + b"/" + BAD_BYTES[0], "rb") as file:
        content = file.read()
    people = Records(made[1] / "records", "pretrain", PersonRecord)
    [person] = [p for p in people if p.image_id == BAD_BYTES[1]]
    assert person.image == content
    assert captioning.rows_of(made[1])[BAD_BYTES[1]]["file_path"] == BAD_BYTES[1]


def test_a_picture_of_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "big.jpg").write_bytes(captioning.jpeg(0))
    monkeypatch.setattr(pictures, "LARGEST", 100)
    with pytest.raises(OSError, match="is no picture"):
        open_pictures(str(tmp_path), "", "pretrain")[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_skipped_or_said(tmp_path):
    (tmp_path / "a.jpg").write_bytes(captioning.jpeg(0))
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(PermissionError):
        open_pictures(str(tmp_path), "", "pretrain")[0]
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="closed cannot be listed"):
        open_pictures(str(tmp_path), "", "pretrain")


def test_a_folder_that_cannot_be_listed_is_said_not_left_out(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").write_bytes(captioning.jpeg(0))
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="closed cannot be listed"):
        open_pictures(str(tmp_path), "", "pretrain")


def test_other_names_or_another_order_are_other_pictures(tmp_path):
    def fingerprint(*paths):
        return FilePictures("some", tmp_path, list(paths)).fingerprint()

    same = fingerprint("a.jpg", "b.jpg")
    assert same == fingerprint("a.jpg", "b.jpg") and same["images"] == 2
    others = [("b.jpg", "a.jpg"), ("a.jpg",), ("a.jpg", "c.jpg"), ("a.jpg\nb.jpg",)]
    others += [("a\udce9.jpg", "b.jpg"), ("a\udce8.jpg", "b.jpg"), ("a?.jpg", "b.jpg")]
    found = [fingerprint(*paths) for paths in others]
    assert same not in found
    assert len({str(f) for f in found}) == len(found)
