"""What a person and a program read of the answers: terminal, results.json, page."""

import errno
import html.parser
import io
import json
import os
import shutil
from unittest import mock

import answering
import helpers
import numpy as np
import pytest
import searching
from PIL import Image

import unipt_jax
from unipt_jax.data import images
from unipt_jax.search import answers, queries, remarks, results_page, scan, words
from unipt_jax.search import searcher as searchers

SENTENCES = ["a woman with a black bag", "an old <b>man</b> & a hat"]


@pytest.fixture(scope="module")
def encoder(clip):
    """The small CLIP on one device."""
    return unipt_jax.load(clip, mesh=helpers.mesh_of(1))


@pytest.fixture
def searcher(encoder, clip, tmp_path):
    """An index of 6 crops of its own."""
    crops = searching.write_crops(tmp_path / "crops", 6)
    index = answering.write_index(tmp_path / "index", encoder, clip, crops)
    return searchers.make(encoder, index)


def asked(*texts: str) -> list[queries.Sentence]:
    return [queries.Sentence(text) for text in texts]


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.source = [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag: str, **wanted: str) -> list[dict]:
        return [
            attributes
            for name, attributes in self.tags
            if name == tag and wanted.items() <= attributes.items()
        ]

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())


def page(searcher, found) -> Page:
    return Page(results_page.render(searcher.index, found))


# --- results.json --------------------------------------------------------------------


def test_results_json_has_all_that_was_found(searcher, tmp_path):
    found = answers.answer(searcher, asked(*SENTENCES), 4, words=True)
    said = json.loads(json.dumps(answers.record(searcher.index, found)))
    assert said["index"] == str(tmp_path / "index") and said["entries"] == 6
    assert said["model"] == searcher.encoder.name
    assert [one["query"] for one in said["queries"]] == SENTENCES
    for one, sentence in zip(said["queries"], SENTENCES, strict=True):
        hits = searcher.by_text([sentence], 4)[0]
        mattered = searcher.words(sentence, hits)
        assert one["kind"] == "sentence"
        assert [word["word"] for word in one["words"]] == sentence.split()
        means = [word["effect"] for word in one["words"]]
        np.testing.assert_allclose(means, mattered.mean, atol=2e-5)
        for i, (row, hit) in enumerate(zip(one["results"], hits, strict=True)):
            assert row["rank"] == i + 1 and row["path"] == hit.crop.path
            assert row["score"] == pytest.approx(hit.score, abs=2e-5)
            assert row["folder"] == str(tmp_path / "crops") and row["box"] is None
            assert row["note"] == ""
            np.testing.assert_allclose(row["words"], mattered.effect[:, i], atol=2e-5)


def test_pictures_and_sentences_are_answered_in_their_order(searcher, tmp_path):
    file = tmp_path / "crops" / "000.jpg"
    mixed = [*asked("a man"), *queries.read([str(file)]), *asked("a bag")]
    found = answers.answer(searcher, mixed, 2, words=True)
    said = answers.record(searcher.index, found)["queries"]
    assert [one["kind"] for one in said] == ["sentence", "picture", "sentence"]
    assert said[1]["query"] == str(file)
    assert said[1]["results"][0]["path"] == "000.jpg"
    assert said[1]["results"][0]["score"] == pytest.approx(1, abs=2e-5)
    assert said[1]["words"] == [] and said[1]["results"][0]["words"] == []
    assert len(said[2]["words"]) == 2


def test_without_words_none_are_computed(searcher):
    found = answers.answer(searcher, asked("a man"), 2, words=False)
    [one] = answers.record(searcher.index, found)["queries"]
    assert one["words"] == [] and one["results"][0]["words"] == []
    assert words.LEGEND not in answers.terminal(searcher.index, found)
    assert words.LEGEND not in page(searcher, found).said


def test_more_than_there_are_is_said(searcher):
    [one] = answers.answer(searcher, asked("a man"), 9, words=False)
    assert len(one.found) == 6
    assert one.notes == ("the index has 6 crops, fewer than k=9",)


# --- notes ---------------------------------------------------------------------------


def notes_by_path(searcher) -> dict[str, tuple[str, ...]]:
    [one] = answers.answer(searcher, asked("a man"), 6, words=False)
    return {found.hit.crop.path: found.notes for found in one.found}


def test_changed_and_vanished_files_are_said_to_be(searcher, tmp_path):
    crops = tmp_path / "crops"
    assert set(notes_by_path(searcher).values()) == {()}
    (crops / "000.jpg").unlink()
    before = (crops / "003.jpg").stat()
    (crops / "003.jpg").write_bytes(searching.jpeg(99))
    os.utime(crops / "003.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (crops / "003.jpg").stat().st_size != before.st_size
    os.utime(crops / "anna" / "001.jpg", ns=(1, 1))
    said = notes_by_path(searcher)
    assert said.pop("000.jpg") == (remarks.GONE,)
    assert said.pop("003.jpg") == said.pop("anna/001.jpg") == (remarks.CHANGED,)
    assert set(said.values()) == {()} and len(said) == 3


def test_a_file_that_may_not_be_looked_at_is_not_said_to_be_gone(searcher):
    refused = PermissionError(errno.EACCES, "Permission denied")
    with mock.patch.object(os, "stat", side_effect=refused):
        said = set(notes_by_path(searcher).values())
    assert said == {("cannot be read: Permission denied",)}


@pytest.mark.parametrize(
    ("size", "notes"), [((90, 60), (remarks.ASKED_PHOTOGRAPH,)), ((30, 60), ())]
)
def test_a_photograph_that_was_asked_with_is_said_to_be_one(
    searcher, tmp_path, size, notes
):
    file = tmp_path / "asked.png"
    Image.new("RGB", size).save(file)
    [one] = answers.answer(searcher, queries.read([str(file)]), 1, words=False)
    assert one.notes == notes


def test_a_crop_shaped_like_a_photograph_is_said_to_be(encoder, clip, tmp_path):
    crops = searching.write_crops(tmp_path / "crops", 3)
    (crops / "000.jpg").write_bytes(searching.jpeg(7, height=60, width=90))
    index = answering.write_index(tmp_path / "index", encoder, clip, crops)
    searcher = searchers.make(encoder, index)
    found = answers.answer(searcher, asked("a man"), 3, words=False)
    said = {one.hit.crop.path: one.notes for one in found[0].found}
    assert said.pop("000.jpg") == (remarks.PHOTOGRAPH,)
    assert set(said.values()) == {()}
    assert answers.terminal(index, found).count(remarks.PHOTOGRAPH) == 1
    assert page(searcher, found).said.count(remarks.PHOTOGRAPH) == 1


# --- terminal ------------------------------------------------------------------------


def test_the_terminal_has_rank_score_and_whole_path(searcher, tmp_path):
    found = answers.answer(searcher, asked(SENTENCES[0]), 3, words=True)
    title, mattered, head, *rows, blank, legend = answers.terminal(
        searcher.index, found
    ).splitlines()
    assert title == SENTENCES[0] and legend == words.LEGEND and blank == ""
    assert head.split() == ["rank", "score", "path"]
    for row, one in zip(rows, found[0].found, strict=True):
        rank, score, path = row.split(maxsplit=2)
        assert int(rank) == one.hit.rank
        assert float(score) == pytest.approx(one.hit.score, abs=6e-4)
        assert path == str(tmp_path / "crops" / one.hit.crop.path)
    means = dict(zip(found[0].words.words, found[0].words.mean, strict=True))
    first = mattered.removeprefix("  words: ").split(", ")[0].split()
    strongest = max(means, key=lambda word: abs(means[word]))
    assert first == [strongest, f"{means[strongest]:+.3f}"]
    assert len(mattered.split(", ")) == answers.TOLD


def test_words_on_the_terminal_stand_without_the_signs_around_them():
    effect = np.array([[0.1], [0.5], [-0.3]], np.float32)
    said = answers.strongest(words.Words(("a", "red,", "--"), effect))
    assert said == "red +0.500, -- -0.300, a +0.100"


def test_a_file_name_cannot_write_to_the_terminal(searcher):
    odd = "a\x1b[2Jb\n\udce9.jpg"
    assert scan.plain(odd) == "a\\x1b[2Jb\\n\\udce9.jpg"
    assert scan.plain("Žofie ä/日.jpg") == "Žofie ä/日.jpg"
    found = answers.answer(searcher, asked("a man\x1b[2J hat"), 1, words=True)
    text = answers.terminal(searcher.index, found)
    assert "\x1b" not in text and "\\x1b" in text


def test_the_terminal_and_the_page_show_50_queries_and_say_so(searcher):
    many = asked(*(f"a man {i}" for i in range(53)))
    found = answers.answer(searcher, many, 1, words=False)
    text = answers.terminal(searcher.index, found)
    assert text.count("rank   score  path") == 50
    assert text.endswith("... and 3 more queries, in results.json")
    shown = page(searcher, found)
    assert len(shown.of("section")) == 50
    assert "the first 50 of 53 queries" in shown.said
    assert len(answers.record(searcher.index, found)["queries"]) == 53


# --- results.html --------------------------------------------------------------------


def test_the_page_shows_each_crop_with_rank_score_and_path(searcher, tmp_path):
    found = answers.answer(searcher, asked(*SENTENCES), 4, words=False)
    shown = page(searcher, found)
    assert len(shown.of("section")) == 2
    assert len(shown.of("figure")) == len(shown.of("img")) == 8
    for one in found:
        for crop in one.found:
            place = str(tmp_path / "crops" / crop.hit.crop.path)
            assert shown.of("figure", title=place)
            assert f"{crop.hit.rank} · {crop.hit.score:.3f}" in shown.said
    assert str(tmp_path / "crops") in shown.said


def test_the_page_stands_alone_and_text_stays_text(searcher):
    found = answers.answer(searcher, asked(*SENTENCES), 4, words=True)
    shown = page(searcher, found)
    assert SENTENCES[1] in shown.said
    assert "<b>man" not in shown.source
    assert "http" not in shown.source and not shown.of("script")
    for image in shown.of("img"):
        assert image["src"].startswith("data:image/jpeg;base64,")


def test_words_are_tinted_by_their_mean_effect(searcher):
    found = answers.answer(searcher, asked(SENTENCES[0]), 4, words=True)
    shown = page(searcher, found)
    assert f"{words.LEGEND} {words.TINTS}" in shown.said
    tints = [span["style"] for span in shown.of("span") if "style" in span]
    mean = found[0].words.mean
    assert len(tints) == len(mean) == 6
    most = max(abs(mean).max(), 0.01)
    for tint, value in zip(tints, mean, strict=True):
        assert (words.RAISES in tint) == (value > 0)
        alpha = float(tint.rstrip(")").rsplit(", ")[-1])
        assert alpha == pytest.approx(0.6 * abs(value) / most, abs=6e-4)
        assert f"{value:+.3f}".replace("-0.000", "+0.000") in shown.said


def test_a_word_of_no_effect_has_no_tint_however_strong_it_is_among_others():
    effect = np.array([[2e-7], [-1e-7], [0.02]], np.float32)
    faint = words.tinted(words.Words(("a", "red"), effect[:2]))
    assert [one.colour.rsplit(", ")[-1] for one in faint] == ["0.000)", "0.000)"]
    assert [one.effect for one in faint] == ["+0.000", "+0.000"]
    strong = words.tinted(words.Words(("a", "red", "coat"), effect))
    assert [one.colour.rsplit(", ")[-1] for one in strong][::2] == ["0.000)", "0.600)"]
    assert words.tinted(words.Words((), np.zeros((0, 3)))) == []


def test_a_picture_that_was_asked_with_is_shown(searcher, tmp_path):
    file = tmp_path / "query.png"
    Image.new("RGB", (20, 50), (250, 10, 10)).save(file)
    found = answers.answer(searcher, queries.read([str(file)]), 2, words=True)
    shown = page(searcher, found)
    assert len(shown.of("figure", **{"class": "asked"})) == 1
    assert shown.of("img")[0]["alt"] == str(file)
    assert len(shown.of("img")) == 3


def test_where_pictures_are_gone_the_page_has_grey_fields_that_say_so(
    searcher, tmp_path
):
    found = answers.answer(searcher, asked("a man"), 6, words=True)
    (tmp_path / "crops" / "000.jpg").write_bytes(b"no picture")
    shutil.rmtree(tmp_path / "crops" / "anna")
    shown = page(searcher, found)
    assert len(shown.of("figure")) == 6 and len(shown.of("img")) == 1
    assert len(shown.of("div", **{"class": "gone"})) == 5
    assert shown.said.count("the file is gone") == 4
    assert shown.said.count("cannot be read: cannot identify") == 1


def test_a_picture_that_memory_is_too_small_for_is_a_grey_field(searcher):
    found = answers.answer(searcher, asked("a man"), 2, words=False)
    with mock.patch.object(images, "thumbnail", side_effect=MemoryError):
        shown = page(searcher, found)
    assert shown.said.count("cannot be read: out of memory") == 2
    assert len(shown.of("div", **{"class": "gone"})) == 2


# --- queries -------------------------------------------------------------------------


def test_a_text_file_is_a_sentence_a_line(tmp_path):
    file = tmp_path / "asked.txt"
    text = "\ufeffa man\r\n\r\n  a red, blue coat \n \t\nJo\u2028ann in 3.jpg"
    file.write_bytes(text.encode())
    found = queries.read([str(file), "a bag"])
    assert [one.text for one in found] == [
        "a man",
        "a red, blue coat",
        "Jo\u2028ann in 3.jpg",
        "a bag",
    ]
    assert {one.kind for one in found} == {"sentence"}


def test_a_picture_file_is_a_picture_whatever_its_case(tmp_path):
    data = io.BytesIO()
    Image.new("L", (3, 9)).save(data, "PNG")
    (tmp_path / "A man.PNG").write_bytes(data.getvalue())
    [found] = queries.read([str(tmp_path / "A man.PNG")])
    assert found.kind == "picture" and found.encoded == data.getvalue()


def test_a_sentence_may_be_longer_than_a_file_name_and_look_a_little_like_one(tmp_path):
    for text in ("hat", "a man/woman in red. He", "red " * 2000, "see 3.jpg, a man"):
        [found] = queries.read([text])
        assert found == queries.Sentence(text.strip())
