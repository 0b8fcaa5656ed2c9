"""Claims on the choice of masked words, against counts and plain Python."""

import functools

import jax
import numpy as np
import pytest
from helpers import CLS, FIRST, MASK, PAD, SEP, five_sigma, mesh_of, quick_jit, texts

from unipt_jax import masking, sharding

VOCABULARY = 200
CONTINUATION = np.arange(VOCABULARY) % 5 < 2  # two of five ids continue a word
CONTINUATION[:FIRST] = False


@functools.partial(quick_jit, static_argnames="rate")
def mask(key, tokens, continuation=None, rate=0.15):
    return masking.mask_tokens(
        key,
        tokens,
        special=(PAD, CLS, SEP),
        mask_id=MASK,
        vocabulary=VOCABULARY,
        rate=rate,
        continuation=continuation,
    )


def run(seed, tokens, continuation=None, **more):
    return [
        np.asarray(x) for x in mask(jax.random.key(seed), tokens, continuation, **more)
    ]


def wordy(counts, length, seed=0):
    """Texts whose first word starts with its first piece."""
    tokens = texts(counts, length, seed, VOCABULARY)
    tokens[:, 1] = np.where(tokens[:, 1] >= FIRST, FIRST, tokens[:, 1])
    assert not CONTINUATION[FIRST]
    return tokens


def words_of(row):
    """The places of each word's pieces."""
    words = []
    for place, token in enumerate(row):
        if CONTINUATION[token]:
            words[-1].append(place)
        elif token >= FIRST:
            words.append([place])
    return words


def check_places(tokens, masked, places, targets, used):
    """What holds for any choice: distinct words, right targets, the rest untouched."""
    for row, out, place, target, use in zip(
        tokens, masked, places, targets, used, strict=True
    ):
        chosen = place[use == 1]
        assert len(set(chosen)) == len(chosen)
        assert (row[chosen] >= FIRST).all()
        np.testing.assert_array_equal(target[use == 1], row[chosen])
        rest = np.setdiff1d(np.arange(len(row)), chosen)
        np.testing.assert_array_equal(out[rest], row[rest])


@pytest.mark.parametrize("length", [3, 4, 12, 100])
def test_exactly_the_rounded_share_of_each_text_is_chosen(length):
    counts = np.arange(1, length - 1)  # texts of 3 to `length` tokens, ends included
    tokens = texts(counts, length, vocabulary=VOCABULARY)
    for seed in range(3):
        out = run(seed, tokens)
        assert [x.shape for x in out[1:]] == [
            (len(counts), masking.slots(length, 0.15))
        ] * 3
        assert set(np.unique(out[3])) <= {0.0, 1.0}
        expected = [max(1, round(0.15 * n)) for n in counts.tolist()]
        np.testing.assert_array_equal(out[3].sum(1), expected)
        check_places(tokens, *out)


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_slots_hold_the_share_of_every_text_up_to_bert_s_length(rate):
    # One array of 512 has slots enough for all; what a text of n words and its two ends
    # then uses must also fit an array of just its length.
    counts = np.arange(1, 511)
    used = run(0, texts(counts, 512, vocabulary=VOCABULARY), rate=rate)[3].sum(1)
    slots = [masking.slots(n + 2, rate) for n in counts.tolist()]
    np.testing.assert_array_equal(used, slots)


def test_a_text_without_words_is_left_as_it_is():
    tokens = texts([0, 4], 8, vocabulary=VOCABULARY)
    for continuation in (None, CONTINUATION):
        masked, _, _, used = run(0, tokens, continuation)
        assert used[0].sum() == 0
        np.testing.assert_array_equal(masked[0], tokens[0])


def test_of_the_chosen_80_are_hidden_10_random_10_kept():
    tokens = texts([32] * 4000, 34, vocabulary=VOCABULARY)
    masked, places, targets, used = run(0, tokens)
    assert used.all()
    now = np.take_along_axis(masked, places, 1)
    trials = now.size
    assert trials == 4000 * 5
    hit = 0.1 / VOCABULARY  # a random token may be [MASK], or the token itself
    for share, p in (
        ((now == MASK).mean(), 0.8 + hit),
        ((now == targets).mean(), 0.1 + hit),
    ):
        assert abs(share - p) < five_sigma(p, trials)
    other = now[(now != MASK) & (now != targets)]
    # Uniform on 0 .. V-1: the mean is (V-1)/2, the deviation V/sqrt(12).
    sigma = VOCABULARY / np.sqrt(12 * other.size)
    assert abs(other.mean() - (VOCABULARY - 1) / 2) < 5 * sigma
    assert other.min() < 5 and other.max() >= VOCABULARY - 5


@pytest.mark.parametrize("whole", [False, True])
def test_every_word_is_as_likely_to_be_chosen(whole):
    tokens = np.full((4000, 14), FIRST, np.int32)  # 12 words of one piece, share 2
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    _, places, _, used = run(0, tokens, CONTINUATION if whole else None)
    assert used.all()
    share = np.bincount(places.ravel(), minlength=14)[1:-1] / len(tokens)
    assert np.abs(share - 2 / 12).max() < five_sigma(2 / 12, len(tokens))


def test_whole_words_are_chosen_with_all_pieces_or_none_within_the_share():
    counts = np.arange(1, 99)
    tokens = wordy(counts, 100)
    share = np.array([max(1, round(0.15 * n)) for n in counts.tolist()])
    taken, split = np.zeros(len(counts)), 0
    for seed in range(3):
        out = run(seed, tokens, CONTINUATION)
        check_places(tokens, *out)
        for i, row in enumerate(tokens):
            chosen = set(out[1][i][out[3][i] == 1])
            words = [set(word) for word in words_of(row)]
            assert all(word <= chosen or not word & chosen for word in words)
            split += sum(len(word) > 1 and word <= chosen for word in words)
            left = share[i] - len(chosen)
            assert left >= 0
            # No word that was left out would still have fitted.
            assert all(len(word) > left for word in words if not word & chosen)
            taken[i] += len(chosen) / 3
    assert split > 100  # words of more than one piece are among the chosen
    assert taken[share > 3].sum() > 0.95 * share[share > 3].sum()


def test_whole_words_hide_each_piece_by_the_same_80_10_10_rule():
    tokens = wordy([30] * 800, 32)
    masked, places, _, used = run(0, tokens, CONTINUATION)
    now = np.take_along_axis(masked, places, 1)[used == 1]
    p = 0.8 + 0.1 / VOCABULARY
    assert abs((now == MASK).mean() - p) < five_sigma(p, now.size)


@pytest.mark.parametrize("whole", [False, True])
def test_the_choice_is_the_same_on_8_devices_as_on_1(whole):
    tokens = wordy([3, 9, 14, 30] * 4, 32)
    continuation = CONTINUATION if whole else None
    placed = jax.device_put(tokens, sharding.batch_sharding(mesh_of(8)))
    for one, eight in zip(
        run(7, tokens, continuation), run(7, placed, continuation), strict=True
    ):
        np.testing.assert_array_equal(one, eight)


@pytest.mark.parametrize("whole", [False, True])
def test_two_keys_choose_differently_and_one_key_the_same(whole):
    tokens = wordy([30] * 16, 32)
    continuation = CONTINUATION if whole else None
    first, again, other = (run(seed, tokens, continuation) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any(axis=1).all()
    # Texts of one batch are masked independently of each other.
    assert len({tuple(sorted(row)) for row in first[1]}) > 4
