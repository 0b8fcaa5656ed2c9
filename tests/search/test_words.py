"""Leaving one word out: what is left out, what is read, and what that is worth."""

import numpy as np
import pytest

from unipt_jax.data import tokenizers
from unipt_jax.search import words

TEXT = "a woman in a red coat, with 2 black bags."


@pytest.fixture(scope="module")
def tokenizer():
    """WordPiece of a few words; each of TEXT's is one token or more."""
    return tokenizers.train([TEXT, "abcdefghijklmnopqrstuvwxyz0123456789"], size=120)


def test_a_word_is_left_out_with_its_punctuation(tokenizer):
    read = words.parse(" a  red\tcoat, (new) \n", tokenizer, 100)
    assert read.words == ("a", "red", "coat,", "(new)")
    assert read.variants() == [
        "a red coat, (new)",
        "red coat, (new)",
        "a coat, (new)",
        "a red (new)",
        "a red coat,",
    ]


def test_words_have_as_many_tokens_as_the_sentence_of_them(tokenizer, clip_vocabulary):
    sentences = [
        TEXT,
        "it's 3/4 (of) an Über-coat , !?",
        "caf\u00e9 \u65e5\u672c red",
        "",
    ]
    for reader in (tokenizer, tokenizers.load(clip_vocabulary)):
        for sentence in sentences:
            whole = len(reader.backend.encode(sentence).ids)
            assert words.parse(sentence, reader, 100).tokens == whole, sentence


def test_only_words_wholly_within_the_limit_are_left_out(tokenizer):
    lengths = [len(tokenizer.backend.encode(word).ids) - 2 for word in TEXT.split()]
    for limit in range(2, 2 + sum(lengths) + 2):
        read = words.parse(TEXT, tokenizer, limit)
        fit = sum(2 + sum(lengths[: i + 1]) <= limit for i in range(len(lengths)))
        assert read.read == fit
        assert len(read.variants()) == 1 + fit
        assert bool(words.notes(read)) == (fit < len(lengths))


def test_the_note_on_a_long_sentence_says_how_much_is_read(tokenizer):
    read = words.parse("red " * 30, tokenizer, 12)
    [note] = words.notes(read)
    assert "32 tokens" in note and "reads 12" in note and "last 20 words" in note


def test_words_that_no_token_stands_for_are_named_once(tokenizer):
    read = words.parse("a (\u0416\u0416-red) coat; \u0416\u0416 \u2026", tokenizer, 100)
    assert read.unknown == ("\u0416\u0416",)
    assert words.notes(read) == ["the model does not know: \u0416\u0416"]
    assert words.parse("\U0001f44d !", tokenizer, 9).unknown == ("\U0001f44d",)
    many = " ".join("\u0416" * n for n in range(1, 12))
    assert words.notes(words.parse(many, tokenizer, 100))[0].endswith("and 3 more")


def test_of_white_space_and_of_signs_without_tokens_nothing_is_read(tokenizer):
    assert words.parse("", tokenizer, 9).empty
    assert words.parse("\u200b \u200e", tokenizer, 9).empty
    assert not words.parse("a", tokenizer, 9).empty


def test_effects_equal_numpy_and_words_beyond_the_limit_have_none():
    rng = np.random.default_rng(0)
    read = words.Sentence(("a", "red", "coat"), read=2, tokens=9, limit=4, unknown=())
    texts, crops = rng.standard_normal((3, 8)), rng.standard_normal((5, 8))
    found = words.effects(read, texts, crops)
    assert found.effect.shape == (3, 5) and found.effect.dtype == np.float32
    for w in range(2):
        for i in range(5):
            wanted = np.dot(texts[0], crops[i]) - np.dot(texts[w + 1], crops[i])
            np.testing.assert_allclose(found.effect[w, i], wanted, rtol=1e-6)
    assert not found.effect[2].any()
    np.testing.assert_allclose(found.mean, [*found.effect[:2].mean(1), 0], rtol=1e-6)


def test_without_crops_no_word_has_an_effect():
    read = words.Sentence(("a", "red"), read=2, tokens=4, limit=9, unknown=())
    found = words.effects(read, np.ones((3, 8)), np.ones((0, 8)))
    assert found.effect.shape == (2, 0) and found.mean.tolist() == [0, 0]
