"""Figures over captions, counted by hand; the page, which needs nothing but itself."""

import base64
import collections
import html.parser
import io
import json

import captioning
import pytest
from PIL import Image

from unipt_jax.captions import report
from unipt_jax.captions.conquer import STEPS
from unipt_jax.captions.lexicon import OPTIONAL, PAPER
from unipt_jax.captions.pictures import FilePictures
from unipt_jax.captions.report import BINS, Tally


def row(words, index, *captions, probability=0.5, templates=None, **said):
    """A line of captions.jsonl."""
    evidence = {
        name: {"phrase": "", "value": said.get(name, ""), "probability": probability}
        for name in words.attributes
    }
    templates = [index] * len(captions) if templates is None else templates
    more = dict(captions=list(captions), templates=templates, evidence=evidence)
    return {"index": index, "image_id": f"{index}.jpg"} | more


def test_figures_are_those_of_a_count_by_hand(words):
    tally = Tally(words)
    tally.add(row(words, 0, "A man walks.", "A man's T-shirt, a man!", hat="cap"))
    tally.add(row(words, 1, "A man walks.", templates=[0]))
    tally.add(row(words, 2, "Walks a\nman?", hat="helmet", bag="backpack"))
    found = tally.figures()
    # a man walks / a man's t-shirt a man / a man walks / walks a man: 14 words
    distinct = {"a", "man", "walks", "man's", "t-shirt"}
    # a-man, man-walks, a-man's, man's-t-shirt, t-shirt-a, walks-a: of 10 pairs
    assert found == {
        "captions": 4,
        "words_a_caption": 3.5,
        "vocabulary": len(distinct),
        "distinct_1": round(5 / 14, 6),
        "distinct_2": round(6 / 10, 6),
        "duplicates": 25.0,
        "templates_used": 2,
        "templates": len(words.templates),
        "found": dict.fromkeys(OPTIONAL, 0) | {"hat": 2, "bag": 1},
    }
    assert tally.images == 3
    assert tally.words == collections.Counter(
        {"a": 5, "man": 4, "walks": 3, "man's": 1, "t-shirt": 1}
    )


def test_probabilities_fall_into_bins_of_equal_width(words):
    tally = Tally(words)
    for index, probability in enumerate([0.0, 0.0499, 0.05, 0.5, 0.9999, 1.0]):
        tally.add(row(words, index, "A man.", probability=probability))
    assert BINS == 20
    expected = [2, 1, *[0] * 8, 1, *[0] * 8, 2]
    assert all(counts == expected for counts in tally.confidence.values())


def test_the_contact_sheet_is_drawn_from_all_rows_the_same_each_time(
    words, monkeypatch
):
    monkeypatch.setattr(report, "SHEET", 20)
    drawn = []
    for _ in range(2):
        tally = Tally(words)
        for index in range(1000):
            tally.add(row(words, index, "A man."))
        drawn.append([r["index"] for r in tally.sample(12)])
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert len(drawn[0]) == 12 and sum(i >= 500 for i in drawn[0]) > 2
    tally = Tally(words)
    tally.add(row(words, 0, "A man."))
    assert [r["index"] for r in tally.sample(12)] == [0]


class Links(html.parser.HTMLParser):
    """What a page would load, its pictures and its text."""

    def __init__(self):
        super().__init__()
        self.sources, self.tags, self.text = [], collections.Counter(), ""

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.sources += [v for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def parsed(page):
    links = Links()
    links.feed(page)
    return links


def render(words, folder, rows, **more):
    tally = Tally(words)
    for line in rows:
        tally.add(line)
    names = [f"{i}.jpg" for i in range(len(rows))]
    for number, name in enumerate(names):
        (folder / name).write_bytes(captioning.jpeg(number))
    fields = dict(
        title="Captions of <some> & others",
        subtitle="by it",
        source=FilePictures("some", folder, names),
        tally=tally,
        summary=dict(captioned=len(rows), skipped=0) | tally.figures(),
        thresholds=dict.fromkeys(OPTIONAL, STEPS // 2),
        paper=PAPER,
        examples=2,
    )
    return report.render(**fields | more)


def test_a_page_escapes_what_captions_say_and_is_the_same_each_time(words, tmp_path):
    said = "A man <script>alert('x')</script> & \"a\" woman"
    rows = [row(words, i, said, said + "!", hat="<b>cap</b>") for i in range(3)]
    page = render(words, tmp_path, rows)
    assert page == render(words, tmp_path, rows)
    links = parsed(page)
    assert links.tags["script"] == links.tags["b"] == 0
    assert links.text.count(f"{said} / {said}!") == 2
    assert "Captions of <some> & others" in links.text
    assert "images were skipped" not in links.text


def test_the_page_of_a_job_holds_its_pictures_and_loads_nothing(whole, photos):
    links = parsed((whole / "report.html").read_text())
    data = [s for s in links.sources if not s.startswith("#")]
    assert len(data) == links.tags["img"] == 4
    assert links.tags["link"] == links.tags["script"] == links.tags["iframe"] == 0
    assert "url(http" not in (whole / "report.html").read_text().replace('"', "")
    rows = list(captioning.rows_of(whole).values())
    shown = [r for r in rows if " / ".join(r["captions"]) in links.text]
    assert len(shown) == 4
    for source, line in zip(data, shown, strict=True):
        kind, encoded = source.split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            found = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
        with Image.open(photos / line["image_id"]) as image:
            wanted = image.resize((1, 1)).getpixel((0, 0))
        assert found == pytest.approx(wanted, abs=4)


def test_the_summary_of_a_job_says_what_its_lines_say(whole, words):
    summary = json.loads((whole / "captions.json").read_text())
    tally = Tally(words)
    for line in captioning.rows_of(whole).values():
        tally.add(line)
    assert summary == {"captioned": 43, "skipped": 0} | tally.figures()
    captions = [c for r in captioning.rows_of(whole).values() for c in r["captions"]]
    assert summary["captions"] == len(captions) == 129
    duplicates = 1 - len(set(captions)) / 129
    assert summary["duplicates"] == pytest.approx(100 * duplicates, abs=1e-4)
