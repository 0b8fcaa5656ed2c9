"""The page stands alone: nothing is loaded from elsewhere, and text stays text."""

import base64
import html.parser
import io
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from unipt_jax import page
from unipt_jax.page import Gallery, Picture


def file(form, value=0):
    out = io.BytesIO()
    Image.fromarray(np.full((8, 4, 3), value, np.uint8)).save(out, form)
    return out.getvalue()


class Reader(html.parser.HTMLParser):
    """Collects the tags, with their attributes, and the text below each tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if data.strip():
            self.text.append((self._open[-1] if self._open else "", data.strip()))

    def of(self, tag):
        return [text for name, text in self.text if name == tag]


def rendered(**values):
    defaults = {
        "title": "A run",
        "subtitle": "below",
        "figures": {"Rank-1": 51.239, "queries": 12},
        "curves": "",
        "galleries": [],
    }
    return page.render(**(defaults | values))


ROWS = [
    {"step": 10, "loss": 3.0, "contrastive": 2.0, "mlm": 1.0, "lr": 0.1},
    {"step": 20, "loss": 2.0, "contrastive": 1.5, "mlm": 0.5, "lr": 0.1},
    {"step": 20, "val_rank1": 30.0, "val_map": 20.0},
    {"step": 30, "loss": 1.0, "contrastive": 0.5, "mlm": 0.5, "lr": 0.1},
]


def drawn(svg):
    """Series name -> number of points of the lines in an SVG of ours, in order."""
    root = xml.etree.ElementTree.fromstring(svg)
    counts = []
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        if re.fullmatch(r"axes_\d+", group.get("id", "")):
            for line in group:
                path = line.find("{http://www.w3.org/2000/svg}path")
                if line.get("id", "").startswith("line2d") and path is not None:
                    if "stroke-linecap: square" in path.get("style", ""):
                        counts.append(len(re.findall("[ML]", path.get("d"))))
    return counts


# --- text ----------------------------------------------------------------------------

HOSTILE = '<script>alert("x")</script> & <img src=x onerror=y> </q>'


@pytest.mark.parametrize("where", ["title", "subtitle", "query", "label", "figure"])
def test_text_is_shown_as_it_is_and_never_becomes_a_tag(where):
    values = {
        "title": {"title": HOSTILE},
        "subtitle": {"subtitle": HOSTILE},
        "query": {"galleries": [Gallery(HOSTILE, [])]},
        "label": {"galleries": [Gallery("q", [Picture(file("PNG"), HOSTILE, True)])]},
        "figure": {"figures": {HOSTILE: HOSTILE}},
    }[where]
    text = rendered(**values)
    reader = Reader(text)
    assert not [tag for tag, _ in reader.tags if tag == "script"]
    assert not [a for _, a in reader.tags if "onerror" in a]
    assert [tag for tag, _ in reader.tags].count("img") == (where == "label")
    assert HOSTILE in "".join(shown for _, shown in reader.text)


def test_figures_stand_in_a_table_and_floats_with_two_digits():
    reader = Reader(rendered())
    assert reader.of("th") == ["Rank-1", "queries"]
    assert reader.of("td") == ["51.24", "12"]
    assert reader.of("h1") == ["A run"]


# --- pictures ------------------------------------------------------------------------


def test_pictures_are_in_the_page_in_order_framed_by_right_and_wrong():
    files = [file("PNG", 1), file("JPEG", 2), file("JPEG", 3)]
    pictures = [
        Picture(files[0], "0.912", False),
        Picture(files[1], "0.851", True),
        Picture(files[2], "0.5", False),
    ]
    galleries = [Gallery("a man, 中文", pictures[:2]), Gallery("two", pictures[2:])]
    reader = Reader(rendered(galleries=galleries))
    shown = [a["src"].split(";base64,") for tag, a in reader.tags if tag == "img"]
    assert [kind for kind, _ in shown] == [
        "data:image/png",
        "data:image/jpeg",
        "data:image/jpeg",
    ]
    assert [base64.b64decode(data, validate=True) for _, data in shown] == files
    frames = [a["class"] for tag, a in reader.tags if tag == "figure"]
    assert frames == ["wrong", "right", "wrong"]
    assert reader.of("q") == ["a man, 中文", "two"]
    assert reader.of("figcaption") == ["1 · 0.912", "2 · 0.851", "1 · 0.5"]


def test_nothing_is_loaded_from_elsewhere():
    gallery = Gallery("see https://example.com", [Picture(file("JPEG"), "1", True)])
    text = rendered(curves=page.curves(ROWS), galleries=[gallery])
    reader = Reader(text)
    names = {tag for tag, _ in reader.tags}
    assert {"svg", "img", "style"} <= names
    assert not names & {"script", "link", "iframe", "object", "embed", "base"}
    for _, attributes in reader.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            assert re.match("data:|#", attributes.get(name) or "#"), attributes
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)


# --- curves --------------------------------------------------------------------------


def test_curves_draw_each_loss_and_each_validation_figure_at_its_own_rows():
    svg = page.curves(ROWS)
    assert svg.startswith("<svg")
    assert drawn(svg)[:3] == [3, 3, 3]
    for name in ("loss", "contrastive", "mlm", "val_rank1", "val_map"):
        assert f"<!-- {name} -->" in svg
    assert "<!-- lr -->" not in svg
    assert 'id="axes_2"' in svg and 'id="axes_3"' not in svg


def test_curves_of_losses_alone_are_one_panel():
    svg = page.curves([{"step": i, "loss": float(i)} for i in range(1, 6)])
    assert drawn(svg)[0] == 5
    assert 'id="axes_1"' in svg and 'id="axes_2"' not in svg


@pytest.mark.parametrize("rows", [[], [{"step": 1, "lr": 0.1}]])
def test_without_losses_there_are_no_curves_and_no_heading(rows):
    assert page.curves(rows) == ""
    assert "Training" not in Reader(rendered(curves=page.curves(rows))).of("h2")


def test_curves_stand_below_their_heading():
    reader = Reader(rendered(curves=page.curves(ROWS)))
    assert "Training" in reader.of("h2")
    assert [tag for tag, _ in reader.tags].count("svg") == 1


def test_a_loss_that_is_not_a_number_leaves_a_gap():
    rows = [{"step": i, "loss": float("nan") if i == 3 else i} for i in range(1, 6)]
    assert drawn(page.curves(rows))[0] == 4
