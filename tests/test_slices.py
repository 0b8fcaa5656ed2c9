"""Each query is in just the slices that its words, length and person's images say."""

import re

import numpy as np
import pytest

from unipt_jax import slices


def members(queries, group, name, ids=None, gallery=None):
    """Which queries are in a slice; none where there is no such slice."""
    ids = np.arange(len(queries)) if ids is None else np.array(ids)
    gallery = ids if gallery is None else np.array(gallery)
    found = {
        (part.group, part.name): part.members
        for part in slices.of_queries(queries, ids, gallery)
    }
    return np.flatnonzero(found.get((group, name), [])).tolist()


def test_lengths_are_counted_in_words_and_each_query_has_one():
    counts = [1, 12, 13, 18, 19, 24, 25, 32, 33, 45, 46, 200]
    queries = ["one\ttwo  " * (n // 2) + "one" * (n % 2) for n in counts]
    parts = slices.of_queries(queries, np.arange(12), np.arange(12))
    lengths = [part for part in parts if part.group == "words in the query"]
    found = [np.array(counts)[part.members].tolist() for part in lengths]
    assert found == [[1, 12], [13, 18], [19, 24], [25, 32], [33, 45], [46, 200]]
    names = [part.name for part in lengths]
    assert names[0] == "1 to 12" and names[-1] == "46 or more"


def test_gallery_images_are_those_of_the_query_s_person():
    gallery = [7] * 1 + [3] * 2 + [9] * 4 + [-5] * 25
    queries, ids = ["a"] * 5, [9, 7, -5, 3, 9]
    group = "the person's gallery images"
    options = dict(ids=ids, gallery=gallery)
    assert members(queries, group, "1", **options) == [1]
    assert members(queries, group, "2", **options) == [3]
    assert members(queries, group, "3 to 4", **options) == [0, 4]
    assert members(queries, group, "20 or more", **options) == [2]


def test_a_person_without_gallery_images_is_in_no_slice_of_them():
    parts = slices.of_queries(["a"] * 3, np.array([1, 5, 9]), np.array([1, 9, 9]))
    of_images = [p.members for p in parts if p.group == "the person's gallery images"]
    assert np.any(of_images, axis=0).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("query", "group", "name"),
    [
        ("A BLACK coat.", "colour", "black"),
        ("dark-blue shoes", "colour", "blue"),
        ("shoes, dark-blue", "garment", "shoes"),
        ("two backpacks!", "worn or carried", "bag"),
        ("red/white dresses", "garment", "dress or skirt"),
        ("the woman's hair", "person", "woman"),
        ("the woman’s hair", "person", "hair"),
        ("a t-shirt", "garment", "shirt or top"),
        ("long-haired", "person", "hair"),
        ("short grey boots", "colour", "grey"),
        ("gray boots", "colour", "grey"),
    ],
)
def test_a_word_puts_its_query_into_its_slice(query, group, name):
    assert members([query, "somebody"], group, name) == [0]


@pytest.mark.parametrize(
    ("query", "group", "name"),
    [
        ("a short man", "garment", "shorts"),
        ("blackboard", "colour", "black"),
        ("a human", "person", "man"),
        ("a glass", "worn or carried", "glasses"),
        ("covered", "colour", "red"),
        ("a man", "person", "woman"),
    ],
)
def test_a_part_of_a_word_does_not(query, group, name):
    other = " ".join(sorted(slices.lexicon()[group][name]))
    assert members([query, other], group, name) == [1]


def test_what_has_no_word_of_a_group_is_told():
    queries = ["a red hat", "a hat", "blue shoes"]
    assert members(queries, "colour", "none of these") == [1]
    assert members(queries, "worn or carried", "none of these") == [2]


def test_a_slice_of_none_or_of_all_queries_is_left_out():
    parts = slices.of_queries(["red hat", "red shoes"], np.arange(2), np.arange(2))
    assert {(p.group, p.name) for p in parts} == {
        ("garment", "shoes"),
        ("garment", "none of these"),
        ("worn or carried", "hat"),
        ("worn or carried", "none of these"),
    }


def test_the_words_are_such_as_a_sentence_can_give():
    for group, named in slices.lexicon().items():
        assert named, group
        for name, words in named.items():
            assert name != "none of these" and words
            assert all(re.fullmatch("[a-z]+", word) for word in words), name


def test_no_word_is_in_two_slices_of_a_group():
    for group, named in slices.lexicon().items():
        words = [word for own in named.values() for word in own]
        assert len(words) == len(set(words)), group
