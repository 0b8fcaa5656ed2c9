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
from unipt_jax.page import Bar, Bars, Cell, Chart, Gallery, Picture, Section, Table


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


def rendered(*parts, **values):
    section = {"title": "A part", "parts": parts, "text": "what it says"}
    section |= {k: values.pop(k) for k in ("heading", "text") if k in values}
    section["title"] = section.pop("heading", section["title"])
    defaults = {"title": "A run", "subtitle": "below", "sections": [Section(**section)]}
    return page.render(**(defaults | values))


def table(*rows, names=1):
    cells = [[Cell(text) for text in row] for row in rows]
    return Table(["name", "Rank-1"], cells, names=names)


ROWS = [
    {"step": 10, "loss": 3.0, "contrastive": 2.0, "mlm": 1.0, "lr": 0.1},
    {"step": 20, "loss": 2.0, "contrastive": 1.5, "mlm": 0.5, "lr": 0.1},
    {"step": 20, "val_rank1": 30.0, "val_map": 20.0},
    {"step": 30, "loss": 1.0, "contrastive": 0.5, "mlm": 0.5, "lr": 0.1},
]


SHARES = np.eye(2, 400, 230)


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


BAR = ("hair", "long", ["12"])
PLACES = {
    "title": lambda: rendered(title=HOSTILE),
    "subtitle": lambda: rendered(subtitle=HOSTILE),
    "warning": lambda: rendered(warnings=[HOSTILE]),
    "heading": lambda: rendered(heading=HOSTILE),
    "text": lambda: rendered(text=HOSTILE),
    "cell": lambda: rendered(table([HOSTILE])),
    "below": lambda: rendered(Table([], [[Cell("", below=HOSTILE)]])),
    "head": lambda: rendered(Table([HOSTILE], [])),
    "bar": lambda: rendered(Bars([], [Bar(HOSTILE, "", [], 1.0)], all=1.0)),
    "query": lambda: rendered(Gallery(HOSTILE, [])),
    "note": lambda: rendered(Gallery("", [], note=HOSTILE)),
    "label": lambda: rendered(Gallery("q", [Picture(file("PNG"), HOSTILE, True)])),
}


@pytest.mark.parametrize("where", PLACES)
def test_text_is_shown_as_it_is_and_never_becomes_a_tag(where):
    reader = Reader(PLACES[where]())
    assert not [tag for tag, _ in reader.tags if tag == "script"]
    assert not [a for _, a in reader.tags if "onerror" in a]
    assert [tag for tag, _ in reader.tags].count("img") == (where == "label")
    assert HOSTILE in "".join(shown for _, shown in reader.text)


def test_a_link_to_a_hostile_name_stays_a_link():
    name = '"><script>x</script>'
    reader = Reader(rendered(Table([""], [[Cell("here", link=name)]])))
    assert [a["href"] for tag, a in reader.tags if tag == "a"] == [name]
    assert "script" not in {tag for tag, _ in reader.tags}


# --- tables and bars -----------------------------------------------------------------


def test_a_table_has_its_heads_and_its_cells_in_order():
    cells = [Cell("51.24", below="± 0.31", best=True), Cell("9.10")]
    reader = Reader(rendered(Table(["Rank-1", "mAP"], [cells], names=0)))
    assert reader.of("th") == ["Rank-1", "mAP"]
    assert reader.of("td") == ["51.24", "9.10"] and reader.of("div") == ["± 0.31"]
    kinds = [a["class"].split() for tag, a in reader.tags if tag == "td"]
    assert kinds == [["best"], []]


def test_names_stand_on_the_left_and_figures_on_the_right():
    reader = Reader(rendered(table(["a", "b"], names=1)))
    for kind in ("th", "td"):
        classes = [a.get("class", "").strip() for tag, a in reader.tags if tag == kind]
        assert classes == ["left", ""]


def test_bars_fill_the_share_of_a_scale_that_holds_the_highest_end():
    bars = [
        Bar("hair", "long", ["7", "12.00"], 12.0, 4.0, 31.0),
        Bar("hair", "none", ["2", "6.00"], 6.0, faint=True),
    ]
    part = Bars(["queries", "Rank-1"], bars, all=10.0)
    assert part.scale == 40
    reader = Reader(rendered(part))
    styles = [(a["class"], a["style"]) for _, a in reader.tags if "style" in a]
    assert styles == [
        ("value", "width:30.00%"),
        ("reach", "left:10.00%;width:67.50%"),
        ("all", "left:25.00%"),
        ("value", "width:15.00%"),
        ("all", "left:25.00%"),
    ]
    assert [a.get("class") for tag, a in reader.tags if tag == "tr"][1:] == [
        None,
        "faint",
    ]


@pytest.mark.parametrize(("highest", "scale"), [(0.0, 10), (10.0, 10), (99.9, 100)])
def test_the_scale_of_bars_is_a_multiple_of_ten(highest, scale):
    assert Bars([], [Bar("", "", [], highest)], all=0.0).scale == scale


# --- pictures ------------------------------------------------------------------------


def test_pictures_are_in_the_page_in_order_framed_by_right_and_wrong():
    files = [file("PNG", 1), file("JPEG", 2), file("JPEG", 3)]
    pictures = [
        Picture(files[0], "0.912", False),
        Picture(files[1], "0.851", True),
        Picture(files[2], "0.5", False),
    ]
    galleries = [Gallery("a man, 中文", pictures[:2]), Gallery("two", pictures[2:])]
    reader = Reader(rendered(*galleries))
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
    assert reader.of("figcaption") == ["1 · 0.912", "2 · 0.851 ✓", "1 · 0.5"]


def test_the_first_right_answer_stands_behind_the_others_with_its_rank():
    first = Picture(file("PNG", 9), "0.2", True)
    shown = [Picture(file("PNG"), "0.9", False)]
    gallery = Gallery("q", shown, note="rank 57", first=first, rank=57)
    reader = Reader(rendered(gallery))
    assert reader.of("figcaption") == ["1 · 0.9", "57 · 0.2 ✓"]
    assert reader.of("span") == ["rank 57"]
    frames = [a["class"] for tag, a in reader.tags if tag == "figure"]
    assert frames == ["wrong", "right first"]


def test_nothing_is_loaded_from_elsewhere():
    gallery = Gallery("see https://example.com", [Picture(file("JPEG"), "1", True)])
    ranks = page.ranks_and_scores({"a": [1.0, 2.0]}, *SHARES)
    charts = Chart(page.curves(ROWS)), Chart(ranks)
    text = rendered(gallery, table(["a"]), *charts)
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


def test_curves_show_every_loss_and_accuracy_in_a_panel_of_its_own():
    losses = ("loss", "identity", "ranking", "pgu", "sdm")
    others = ("lr", "gradient_norm", "images_per_second", "temperature")
    values = dict.fromkeys((*losses, *others, "accuracy"), 1.0)
    svg = page.curves([{"step": i} | values for i in (1, 2)])
    at = [svg.index(f"<!-- {name} -->") for name in (*losses, "accuracy")]
    second = svg.index('id="axes_2"')
    assert all(place < second for place in at[:-1]) and at[-1] > second
    assert not any(f"<!-- {name} -->" in svg for name in others)
    assert 'id="axes_3"' not in svg


def test_curves_of_losses_alone_are_one_panel():
    svg = page.curves([{"step": i, "loss": float(i)} for i in range(1, 6)])
    assert drawn(svg)[0] == 5
    assert 'id="axes_1"' in svg and 'id="axes_2"' not in svg


@pytest.mark.parametrize("rows", [[], [{"step": 1, "lr": 0.1}]])
def test_without_losses_there_are_no_curves(rows):
    assert page.curves(rows) == ""


def test_a_chart_stands_below_its_heading():
    reader = Reader(rendered(Chart(page.curves(ROWS)), heading="Training"))
    assert "Training" in reader.of("h2")
    assert [tag for tag, _ in reader.tags].count("svg") == 1


def test_a_loss_that_is_not_a_number_leaves_a_gap():
    rows = [{"step": i, "loss": float("nan") if i == 3 else i} for i in range(1, 6)]
    assert drawn(page.curves(rows))[0] == 4


def test_curves_of_ranks_have_a_point_for_each_k():
    svg = page.ranks_and_scores({"to image": [1.0, 2.0, 3.0], "to text": [4.0, 5.0]})
    assert drawn(svg)[:2] == [3, 2]
    assert "<!-- to image -->" in svg and "<!-- to text -->" in svg
    assert 'id="axes_2"' not in svg


def test_right_and_wrong_answers_are_drawn_where_they_score():
    svg = page.ranks_and_scores({"a": [1.0, 2.0, 3.0]}, *SHARES)
    assert 'id="axes_2"' in svg
    for text in ("right answers", "wrong answers", "cosine similarity"):
        assert f"<!-- {text} -->" in svg


def test_bars_are_coarser_and_hold_all_that_the_bins_held():
    right, wrong = np.zeros((2, 400))
    right[100:300] = 1 / 200
    wrong[[100, 103, 104, 299]] = (0.1, 0.2, 0.3, 0.4)
    edges, right, wrong = page.bars_of(right, wrong)
    np.testing.assert_allclose(edges, np.linspace(-0.5, 0.5, 51), atol=1e-12)
    np.testing.assert_allclose(right, np.full(50, 2.0))
    assert dict(enumerate(wrong)) == pytest.approx(
        {0: 30.0, 1: 30.0, 49: 40.0} | dict.fromkeys(range(2, 49), 0.0)
    )


def test_a_last_bar_that_is_narrower_holds_its_own():
    shares = np.zeros(400)
    shares[0:101] = 1.0  # 33 bars of 3 bins, and one of 2
    edges, bars, none = page.bars_of(shares, 0 * shares)
    assert len(bars) == 34 and edges[-1] == pytest.approx(-1 + 101 / 200)
    np.testing.assert_allclose(bars, [*[300.0] * 33, 200.0])
    assert not none.any()
