"""The pictures and paths that the page's server tells of, and what it takes in."""

import base64
import io
import json
import os
import pathlib
import re
import shutil
import sys
from unittest import mock

import answering
import captioning
import pytest
from PIL import Image
from serving import LIMIT

from unipt_jax.data import images
from unipt_jax.search import crops, demo_answers, remarks, searcher

pytest.importorskip("gradio")
JOIN = "/gradio_api/queue/join"
SECRET = b"this stands in a file and in no picture"


@pytest.fixture
def folder(served):
    """Where the index and the crops lie."""
    return served.index.folder.parent


def encoded(data):
    return base64.b64encode(data).decode()


# --- pictures -------------------------------------------------------------------------


def shown(html):
    """The pictures within an answer."""
    return [base64.b64decode(x) for x in re.findall(r"base64,([^\"]+)", html)]


def test_pictures_leave_as_small_jpegs_without_what_else_their_files_hold(
    visitor, served, monkeypatch
):
    file = served.index.file(3)
    with Image.open(file) as image:
        exif = Image.Exif()
        exif[0x9286] = exif[0x010E] = SECRET.decode()  # a comment, a description
        large = image.resize((400, 1000))
    before, state = file.read_bytes(), file.stat()
    large.save(file, "JPEG", exif=exif, comment=SECRET)
    file.write_bytes(file.read_bytes() + SECRET)
    try:
        html = visitor.text("a man", 20)
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(shown(html)) == 20
    assert html.count(">changed</p>") == 1
    for jpeg in shown(html):
        assert SECRET not in jpeg
        with Image.open(io.BytesIO(jpeg)) as image:
            assert (image.format, dict(image.getexif())) == ("JPEG", {})
            assert image.height <= 256


@pytest.mark.parametrize("way", ["file", "folder", "gone", "pipe", "text"])
def test_what_took_the_place_of_a_crop_is_not_shown(visitor, served, tmp_path, way):
    file = pathlib.Path(served.index.folders[0], "anna", "004.jpg")
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in os.listdir(file.parent):
        if (file.parent / name).is_file():
            shutil.copy(file, outside / name)  # good pictures
    moved = file.parent if way == "folder" else file
    moved.rename(tmp_path / "kept")
    try:
        if way == "folder":
            moved.symlink_to(outside)
        elif way == "file":
            moved.symlink_to(outside / file.name)
        elif way == "pipe":
            os.mkfifo(moved)
        elif way == "text":
            moved.write_bytes(SECRET)
        html = visitor.text("a man", 20)
    finally:
        if moved.is_symlink() or moved.exists():
            moved.unlink()
        (tmp_path / "kept").rename(moved)
    missing = sum(served.index[i].path.startswith("anna/") for i in range(20))
    assert html.count("the file is gone") == (missing if way == "folder" else 1)
    assert SECRET.decode() not in html


def noise(height, width):
    return Image.effect_noise((width, height), 99).convert("RGB")


REFUSED = {
    "no picture": (b"hello", "cannot be read as a picture"),
    "nothing": (b"", "cannot be read as a picture"),
    "a bomb": (captioning.bomb(), "bomb"),
    "a smaller bomb": (captioning.bomb(9000), "9000x9000 pixels"),
    "cut off": (captioning.jpeg(1)[:300], "cannot be read as a picture"),
    "a rare kind": (
        captioning.encode(noise(16, 16), "ICO"),
        "cannot be read as a picture",
    ),
    "a program": (captioning.encode(noise(9, 9), "EPS"), "cannot be read as a picture"),
    "large": (bytes(LIMIT + 1), "0.3 MB; pick one of at most 0.3 MB"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_of_a_person_is_refused_in_a_sentence(visitor, case):
    data, said = REFUSED[case]
    html = visitor.picture(encoded(data))
    assert 'data-kind="error"' in html
    assert said in html


@pytest.mark.parametrize("text", ["no base64!", "\u00e4", 7, None, True])
def test_what_is_no_base64_is_refused_in_a_sentence(visitor, text):
    assert "Pick a picture; this is none." in visitor.picture(text)


def test_more_than_a_picture_is_not_even_received(visitor):
    body = json.dumps({"data": ["a" * (LIMIT * 4 // 3 + 70_000)]}).encode()
    said = {"detail": "the picture is too large for this page"}
    answer = visitor.get(JOIN, "POST", body, Content_Type="application/json")
    assert (answer[0], json.loads(answer[2])) == (413, said)
    chunked = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for part in (body[i : i + 65536] for i in range(0, len(body), 65536))
    )
    answer = visitor.get(JOIN, "POST", chunked, Transfer_Encoding="chunked")
    assert (answer[0], json.loads(answer[2])) == (413, said)


def test_an_uploaded_picture_never_lies_on_the_disk(visitor, served, folder):
    def files():
        there = pathlib.Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*")
        return [file for file in there if file.is_file()]

    # Nobody else may look into it, nor put something there.
    assert os.stat(os.environ["GRADIO_TEMP_DIR"]).st_mode & 0o077 == 0
    picture = captioning.encode(noise(300, 100), "JPEG")
    assert 'data-kind="picture"' in visitor.picture(encoded(picture))
    visitor.text("a man")
    assert files() == []


def test_a_whole_photograph_is_searched_with_a_note(visitor):
    html = visitor.picture(encoded(captioning.encode(noise(200, 300), "PNG")))
    assert remarks.ASKED_PHOTOGRAPH in html
    assert remarks.ASKED_PHOTOGRAPH not in visitor.picture(
        encoded(captioning.encode(noise(300, 100), "WEBP"))
    )


def test_a_page_that_cannot_be_put_together_is_a_sentence_too(served, monkeypatch):
    page = demo_answers.Page(served, limit=1)
    _, trail = page.text("a man", 2, ())
    _, trail = page.like(1, 2, trail)
    monkeypatch.setattr(images, "thumbnail", fail := mock.Mock(side_effect=MemoryError))
    html, _ = page.text("a man", 2, ())
    assert fail.called and html.count("the file is gone, or cannot be read") == 2
    monkeypatch.setattr(crops, "read", mock.Mock(side_effect=RuntimeError))
    for html, after in (page.text("a man", 2, trail), page.back(trail)):
        assert "the terminal that runs the page says how" in html
        assert after[-1].kind == "error"
    monkeypatch.undo()
    assert 'data-kind="text"' in page.back(after)[0]  # what failed is asked for again


def test_where_there_is_no_other_crop_the_page_says_so(clip, served, tmp_path):
    (tmp_path / "crops").mkdir()
    shutil.copy(served.index.file(3), tmp_path / "crops" / "one.jpg")
    index = answering.write_index(
        tmp_path / "index", served.encoder, clip, tmp_path / "crops"
    )
    page = demo_answers.Page(searcher.make(served.encoder, index), limit=1)
    assert "there is no other crop" in page.like(0, 5, ())[0]


# --- paths ----------------------------------------------------------------------------


def test_only_the_paths_below_the_indexed_folder_are_told(visitor, served, folder):
    places = [folder, pathlib.Path.home(), os.getcwd(), sys.prefix]
    places.append(pathlib.Path(served.index.model.said).parent)
    assert places[-1].is_dir()
    said = [visitor.get("/")[2].decode(), json.dumps(visitor.config)]
    said += [
        visitor.text("a man", 20),
        visitor.like(1),
        visitor.back(),
        visitor.text(""),
    ]
    picture = captioning.jpeg(1)
    said += [visitor.picture(encoded(picture)), visitor.picture(encoded(b"no"))]
    for text in said:
        for place in places:
            assert str(place) not in text
    assert "anna/001.jpg" in said[2]


def test_an_error_of_ours_tells_nothing_to_the_page(served, caplog):
    class Broken:
        index = served.index

        def by_text(self, *_):
            raise RuntimeError(f"at {served.index.folder}")

    html, trail = demo_answers.Page(Broken(), limit=1).text("a man", 10, ())
    assert "the terminal that runs the page says how" in html
    assert str(served.index.folder) not in html
    assert str(served.index.folder) in caplog.text
    assert len(trail) == 1


def test_crops_of_several_folders_are_told_apart(clip, served, tmp_path):
    crops = served.index.folders[0]
    index = answering.write_index(
        *(tmp_path, served.encoder, clip, pathlib.Path(crops)),
        folders=[crops, "/elsewhere/other"],
    )
    page = demo_answers.Page(
        type(served)(served.encoder, index, served.gallery), limit=1
    )
    assert page._path(1).startswith("crops/")
