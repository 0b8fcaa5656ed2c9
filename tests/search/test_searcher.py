"""What is found equals numpy's ranking of the same vectors, on 1 and on 8 devices."""

import dataclasses
import shutil
from unittest import mock

import answering
import helpers
import numpy as np
import pytest
from PIL import Image

import unipt_jax
from unipt_jax.errors import UserError
from unipt_jax.search import searcher as searchers
from unipt_jax.search.gallery import Gallery
from unipt_jax.search.index import Index

SENTENCES = ["a woman with a black bag", "an old man", "a man on a red bike", "hat"]


@pytest.fixture(scope="module")
def encoder(clip):
    """The small CLIP on one device."""
    return unipt_jax.load(clip, mesh=helpers.mesh_of(1))


@pytest.fixture(scope="module")
def folder(encoder, clip, crops, tmp_path_factory):
    """An index of the 20 crops."""
    folder = tmp_path_factory.mktemp("searcher") / "index"
    answering.write_index(folder, encoder, clip, crops)
    return folder


@pytest.fixture(scope="module", params=[1, 8])
def searcher(request, folder):
    """It, opened on 1 and on 8 devices."""
    return unipt_jax.open_index(folder, mesh=helpers.mesh_of(request.param))


@pytest.fixture(scope="module")
def rows(encoder, crops):
    """(20, P) embeddings of the crops, in the order of their names."""
    files = answering.pictures(crops)
    return encoder.encode_image([answering.opened(file) for file in files])


def check(hits, scores, k):
    """Hits are the k best of (N) scores; equal but for rounding."""
    order = np.argsort(-scores, kind="stable")[:k]
    assert [hit.rank for hit in hits] == list(range(1, k + 1))
    assert [hit.number for hit in hits] == order.tolist()
    np.testing.assert_allclose([hit.score for hit in hits], scores[order], atol=2e-5)


def test_sentences_find_what_numpy_finds(searcher, encoder, rows):
    scores = encoder.encode_text(SENTENCES) @ rows.T
    found = searcher.by_text(SENTENCES, 7)
    assert len(found) == len(SENTENCES)
    for hits, row in zip(found, scores, strict=True):
        check(hits, row, 7)


def test_a_sentence_alone_finds_what_it_finds_among_a_hundred(searcher):
    many = searcher.by_text([SENTENCES[0], *(f"a bag {i}" for i in range(99))], 5)
    [alone] = searcher.by_text([SENTENCES[0]], 5)
    assert len(many) == 100
    assert [hit.number for hit in many[0]] == [hit.number for hit in alone]
    np.testing.assert_allclose(
        [hit.score for hit in many[0]], [hit.score for hit in alone], atol=2e-5
    )


def test_a_crop_that_many_queries_find_is_read_once(searcher):
    with mock.patch.object(
        type(searcher.index),
        "__getitem__",
        autospec=True,
        side_effect=Index.__getitem__,
    ) as read:
        found = searcher.by_text([f"a bag {i}" for i in range(5)], 20)
    assert sorted(call.args[1] for call in read.call_args_list) == [*range(20)]
    assert {id(hit.crop) for hit in found[0]} == {id(hit.crop) for hit in found[4]}


def test_more_hits_than_memory_holds_are_refused_before_anything_is_embedded(
    searcher, monkeypatch
):
    monkeypatch.setattr(searchers, "MOST", 59)
    assert len(searcher.by_text(["a man"] * 2, 1000)) == 2  # of 20 crops each
    monkeypatch.setattr(type(searcher.encoder), "encode_text", mock.Mock())
    with pytest.raises(
        UserError, match="3 queries with k=1000 find 60 crops, more than"
    ):
        searcher.by_text(["a man"] * 3, 1000)
    assert not searcher.encoder.encode_text.called


def test_a_hit_knows_its_crop(searcher, crops):
    for hit in searcher.by_text(["a man"], 20)[0]:
        file = searcher.index.file(hit.number)
        assert file == crops / hit.crop.path and file.is_file()
        assert not hit.photograph


def test_a_picture_finds_itself_first_then_what_numpy_finds(searcher, crops, rows):
    files = answering.pictures(crops)
    asked = [3, 11]
    found = searcher.by_picture([answering.opened(files[i]) for i in asked], 6)
    for i, hits in zip(asked, found, strict=True):
        assert hits[0].number == i and hits[0].score == pytest.approx(1, abs=2e-5)
        check(hits, rows @ rows[i], 6)


def test_like_leaves_the_crop_itself_out(searcher, rows):
    hits = searcher.like(4, 5)
    scores = rows @ rows[4]
    scores[4] = -np.inf
    check(hits, scores, 5)
    everything = searcher.like(4, 99)
    assert sorted(hit.number for hit in everything) == [*range(4), *range(5, 20)]


def test_copies_of_a_crop_are_like_it_and_it_is_still_left_out(
    encoder, clip, crops, rows, tmp_path
):
    same = np.tile(rows[:1], (20, 1))
    index = answering.write_index(tmp_path, encoder, clip, crops, rows=[same])
    found = searchers.make(encoder, index).like(15, 3)
    assert [hit.number for hit in found] == [0, 1, 2]
    assert [hit.rank for hit in found] == [1, 2, 3]


def test_more_crops_than_there_are_is_all_of_them(searcher):
    assert len(searcher.by_text(["a man"], 1000)[0]) == 20


def test_nothing_asked_is_nothing_found(searcher):
    assert searcher.by_text([], 3) == searcher.by_picture([], 3) == []
    assert searcher.words_of([], []) == []


def test_words_equal_sentences_encoded_by_hand(searcher, encoder, rows):
    sentence = SENTENCES[0]
    hits = searcher.by_text([sentence], 4)[0]
    found = searcher.words(sentence, hits)
    assert found.words == ("a", "woman", "with", "a", "black", "bag")
    crops = rows[[hit.number for hit in hits]]
    whole = encoder.encode_text([sentence]) @ crops.T
    without = [
        "woman with a black bag",
        "a with a black bag",
        "a woman a black bag",
        "a woman with black bag",
        "a woman with a bag",
        "a woman with a black",
    ]
    for w, text in enumerate(without):
        effect = whole[0] - (encoder.encode_text([text]) @ crops.T)[0]
        np.testing.assert_allclose(found.effect[w], effect, atol=2e-5)
    np.testing.assert_allclose(found.mean, found.effect.mean(axis=1), atol=1e-6)
    assert np.abs(found.effect).max() > 1e-3  # the check above sees something


def test_words_of_many_sentences_are_those_of_each(searcher):
    hits = searcher.by_text(SENTENCES, 3)
    together = searcher.words_of(SENTENCES, hits)
    for sentence, some, found in zip(SENTENCES, hits, together, strict=True):
        alone = searcher.words(sentence, some)
        assert found.words == alone.words == tuple(sentence.split())
        np.testing.assert_allclose(found.effect, alone.effect, atol=2e-5)


def test_words_beyond_the_limit_have_no_effect_and_a_note_says_so(searcher):
    limit = searcher.encoder.lengths[-1]
    sentence = "bag " * (limit - 2) + "red hat"
    hits = searcher.by_text([sentence], 2)[0]
    found = searcher.words(sentence, hits)
    assert len(found.words) == limit and found.effect[: limit - 2].any(axis=1).all()
    assert not found.effect[limit - 2 :].any()
    [note] = searcher.notes(sentence)
    assert f"the model reads {limit}" in note and "last 2 words" in note
    assert searcher.notes(SENTENCES[0]) == []


def test_a_word_alone_is_compared_with_a_sentence_of_nothing(searcher, encoder, rows):
    hits = searcher.by_text(["hat"], 3)[0]
    crops = rows[[hit.number for hit in hits]]
    wanted = (encoder.encode_text(["hat"]) - encoder.encode_text([""])) @ crops.T
    np.testing.assert_allclose(searcher.words("hat", hits).effect, wanted, atol=2e-5)


def test_approximate_answers_are_near_the_exact_ones(searcher):
    [exact] = searcher.by_text(["a woman with a bag"], 5)
    some = searchers.make(searcher.encoder, searcher.index, approximate=True)
    [found] = some.by_text(["a woman with a bag"], 5)
    assert len({hit.number for hit in exact} & {hit.number for hit in found}) >= 4


def test_float16_rows_find_the_same_crops(encoder, clip, crops, rows, tmp_path):
    index = answering.write_index(tmp_path, encoder, clip, crops, dtype="float16")
    [hits] = searchers.make(encoder, index).by_text(["a woman with a bag"], 20)
    row = encoder.encode_text(["a woman with a bag"])[0]
    stored = rows.astype(np.float16).astype(np.float32)
    check(hits, stored @ row, 20)


def test_a_landscape_picture_is_said_to_be_no_crop(encoder, clip, crops, tmp_path):
    index = answering.write_index(tmp_path, encoder, clip, crops)
    wide = dataclasses.replace(index[0], height=480, width=640)

    class Changed:
        """The index, but for the shape of its crops."""

        embeddings, model, folders = index.embeddings, index.model, index.folders

        def __len__(self):
            return len(index)

        def __getitem__(self, i):
            return wide if i == 0 else index[i]

    hits = searchers.make(encoder, Changed()).by_text(["a man"], 20)[0]
    assert [hit.number for hit in hits if hit.photograph] == [0]


# --- refused -------------------------------------------------------------------------


def test_k_below_1_is_refused(searcher):
    for ask in (
        lambda: searcher.by_text(["a man"], 0),
        lambda: searcher.like(3, 0),
        lambda: searcher.by_picture([], -2),
    ):
        with pytest.raises(UserError, match="must be 1 or more"):
            ask()


def test_a_sentence_that_is_in_no_list_is_not_read_letter_by_letter(searcher):
    with pytest.raises(UserError, match=r"give a list of sentences.*\['a man'\]"):
        searcher.by_text("a man", 3)


@pytest.mark.parametrize("number", [-1, 20])
def test_a_crop_that_is_not_there_has_none_like_it(searcher, number):
    with pytest.raises(UserError, match=f"no crop {number}; it has 20"):
        searcher.like(number, 3)


def test_a_sentence_of_nothing_is_refused(searcher):
    for text in ("", "  ", "\u200b"):
        with pytest.raises(UserError, match="nothing that the model reads"):
            searcher.by_text(["a man", text], 3)


def test_another_model_is_refused_by_name_and_in_what_it_differs(
    encoder, clip, crops, tmp_path
):
    parts = encoder.identity | {"weights": "x", "fit": "pad"}
    model = answering.model_of(
        encoder, clip, said="runs/a step 3", fingerprint="x", parts=parts
    )
    answering.write_index(tmp_path, encoder, clip, crops, model=model)
    with pytest.raises(UserError) as refused:
        unipt_jax.open_index(tmp_path)
    said = str(refused.value)
    assert "made with runs/a step 3" in said and str(clip) in said
    assert (
        "differ in fit (pad and squeeze) and weights," in said
        and "overwrite=True" in said
    )


def test_a_model_that_is_gone_is_said_to_be_and_may_lie_elsewhere(
    encoder, clip, crops, tmp_path
):
    gone = tmp_path / "gone"
    folder = tmp_path / "index"
    answering.write_index(folder, encoder, gone, crops)
    with pytest.raises(UserError, match="which is gone; bring it back"):
        unipt_jax.open_index(folder)
    shutil.copytree(clip, tmp_path / "moved")
    moved = unipt_jax.open_index(folder, model=str(tmp_path / "moved"))
    assert len(moved.by_text(["a man"], 3)[0]) == 3


def test_what_is_no_list_of_pictures_or_no_number_is_told(searcher):
    picture = Image.new("RGB", (20, 50))
    for amiss in (picture, "a.jpg", ["a.jpg"], [np.asarray(picture)]):
        with pytest.raises(UserError, match="give a list of PIL pictures"):
            searcher.by_picture(amiss)
    with pytest.raises(UserError, match="k=2.5 must be 1 or more"):
        searcher.by_text(["a man"], k=2.5)


def test_damaged_embeddings_are_told(searcher):
    rows = np.array(searcher.index.embeddings)
    rows[3] = np.nan
    broken = dataclasses.replace(searcher, gallery=Gallery(rows, searcher.encoder.mesh))
    with pytest.raises(UserError, match="embeddings of the index .* are damaged"):
        broken.by_text(["a man"], k=20)


def test_a_searcher_says_little_of_itself(searcher):
    assert len(repr(searcher)) < 100
