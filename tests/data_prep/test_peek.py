"""The page to look at a set: all in one file, escaped, for any set there is."""

import base64
import html.parser
import io
import os
import re

import pretrain_trees as trees
import pytest
from PIL import Image

from data_prep import build, peek
from unipt_jax.data import records
from unipt_jax.data.records import CaptionRecord, PersonRecord
from unipt_jax.errors import UserError

EVIL = "<script>alert('x')</script> & \"a man\" $x^2$"
LOADS = {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its tags, its text, and what they load."""

    def __init__(self, file):
        super().__init__()
        self.tags, self.loads, self.text = [], [], ""
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in LOADS]
        for name, value in attrs:
            self.loads += re.findall(r"url\(([^)]*)\)", value or "")
            assert not name.startswith("on"), name

    def handle_data(self, data):
        self.text += f"{data}\n"

    def pictures(self) -> list[tuple[int, int]]:
        """The sizes of those that are shown."""
        kind = "data:image/jpeg;base64,"
        encoded = [load.removeprefix(kind) for load in self.loads if kind in load]
        opened = [Image.open(io.BytesIO(base64.b64decode(e))) for e in encoded]
        return [image.size for image in opened]


def person(number, captions=(), **options):
    return PersonRecord(
        trees.picture(number), f"im{number}", captions=captions, **options
    )


@pytest.fixture
def show(tmp_path):
    """Writes a set and its page, and reads the page."""

    def page(splits, kind=PersonRecord, metadata=None):
        metadata = {"set": "mine"} if metadata is None else metadata
        records.write_set(tmp_path / "set", kind, splits, metadata=metadata)
        peek.write(tmp_path / "set", tmp_path / "page.html")
        assert sorted(os.listdir(tmp_path)) == ["page.html", "set"]
        return Page(tmp_path / "page.html")

    return page


def persons(count, first=0):
    return [
        person(n, (trees.sentence(n), "Short."), person_id=n // 2, label=n // 2)
        for n in range(first, first + count)
    ]


def test_the_page_needs_nothing_but_itself(show):
    page = show({"train": persons(6), "test": persons(4, 10)})
    assert page.loads
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "@import" not in page.source


def test_splits_come_in_their_order_with_their_figures_pictures_and_captions(show):
    page = show(
        {"test": persons(4, 10), "train": persons(6), "pretrain": [person(50)]},
        metadata={"set": "my set", "command": "python x", "notes": [], "ok": True},
    )
    heads = re.findall(r"<h2>(.*?)</h2>", page.source)
    wanted = ["pretrain", "train", "test", "Statistics", "How it was made"]
    assert heads == wanted
    rows = re.findall(r"<td>(.*?)</td>", page.source)
    assert rows[rows.index("train") :][:4] == ["train", "6", "3", "12"]
    assert rows[rows.index("pretrain") :][:4] == ["pretrain", "1", "-", "0"]
    assert len(page.pictures()) == 11
    assert "person 0: im0" in page.text and "im50" in page.text
    for number in (*range(6), *range(10, 14)):
        assert trees.sentence(number) in page.text
    made = page.text[page.text.index("How it was made") :].split()
    assert " ".join(made[4:]) == "set my set command python x notes none ok yes"


def test_text_is_escaped_wherever_it_comes_from(show):
    page = show(
        {"train": [PersonRecord(trees.picture(1), EVIL, EVIL, captions=(EVIL,))]},
        metadata={"set": EVIL, "command": EVIL, "notes": [EVIL], EVIL: {EVIL: EVIL}},
    )
    assert "<script" not in page.source
    assert "script" not in page.tags
    assert page.text.count("<script>alert('x')</script>") >= 8


def test_captions_alone_are_shown_with_the_names_of_their_images(show):
    said = [CaptionRecord(f"im{n}", (trees.sentence(n),) * (n > 0)) for n in range(4)]
    page = show({"pretrain": said}, CaptionRecord)
    assert page.pictures() == []
    for number in range(4):
        assert f"im{number}" in page.text
        assert (trees.sentence(number) in page.text) == (number > 0)
    assert "pixels high" not in page.text and "persons" not in page.text


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize(
    "captions", [(), ("",), ("一个 男人 穿着",), ("12 34",), ("x",)]
)
def test_one_image_with_any_captions_or_none_has_a_page(show, captions):
    page = show({"train": [person(1, captions)]})
    assert len(page.pictures()) == 1
    assert all(caption in page.text for caption in captions)


def test_captions_without_an_image_of_their_own_have_a_page(show):
    page = show({"pretrain": [CaptionRecord("a", ())]}, CaptionRecord)
    assert "captions of an image" in page.source


def test_of_many_records_some_are_shown_and_that_not_all_are_counted_is_said(
    show, monkeypatch
):
    monkeypatch.setattr(peek, "READ", 50)
    page = show({"pretrain": [person(n) for n in range(80)]})
    assert len(page.pictures()) == peek.SAMPLES
    assert "50 drawn at random" in page.text
    assert len(set(re.findall(r"\bim\d+", page.text))) == peek.SAMPLES


def test_large_pictures_are_shown_small(show):
    out = io.BytesIO()
    Image.new("RGB", (1000, 2000), (9, 99, 199)).save(out, "PNG")
    page = show({"train": [PersonRecord(out.getvalue(), "large")]})
    assert page.pictures() == [(128, 256)]
    assert "2000 to 2000" in page.text


def test_the_page_of_a_set_is_the_same_each_time(show, tmp_path):
    first = show({"train": persons(40)}).source
    peek.write(tmp_path / "set", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == first


def test_where_it_fails_the_page_of_before_stays(show, tmp_path, monkeypatch):
    before = show({"train": persons(4)}).source

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(peek, "_chart", fail)
    with pytest.raises(KeyboardInterrupt):
        peek.write(tmp_path / "set", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == before
    assert sorted(os.listdir(tmp_path)) == ["page.html", "set"]


# --- by the command line -------------------------------------------------------------


def test_one_command_prepares_a_set_and_shows_it(tmp_path, capsys):
    trees.mals(tmp_path / "raw")
    out, page = tmp_path / "out", tmp_path / "new" / "folder" / "page.html"
    words = ["mals", "--raw", str(tmp_path / "raw"), "--out", str(out)]
    assert build.main([*words, "--peek", str(page)]) == 0
    assert f"{page} is written: open it in a browser" in capsys.readouterr().out
    shown = Page(page)
    assert len(shown.pictures()) == 8
    assert "g_4x_attrs.json" in shown.text
    page.unlink()
    assert build.main(["mals", "--out", str(out), "--peek", str(page)]) == 0
    assert Page(page).source == shown.source


@pytest.mark.parametrize("where", ["none", "raw", "file"])
def test_no_set_there_is_one_sentence(tmp_path, capsys, where):
    trees.loose(tmp_path, {"raw/a.jpg": trees.picture(1), "file": b""})
    words = ["--out", str(tmp_path / where), "--peek", str(tmp_path / "page.html")]
    assert build.main(["luperson", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: no record set at {tmp_path / where}")
    assert not (tmp_path / "page.html").exists()


def test_a_folder_or_a_file_in_the_way_of_the_page_is_one_sentence(
    show, tmp_path, capsys
):
    show({"train": persons(2)})
    with pytest.raises(UserError, match="is a folder; give a file, such as page.html"):
        peek.write(tmp_path / "set", tmp_path)
    for below in ("x.html", "y/x.html"):
        page = tmp_path / "page.html" / below
        capsys.readouterr()
        words = ["mals", "--out", str(tmp_path / "set"), "--peek", str(page)]
        assert build.main(words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and str(tmp_path / "page.html") in line
