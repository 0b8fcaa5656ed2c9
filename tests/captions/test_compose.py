"""Captions from phrases: the same everywhere, each thing told of once, in good English."""

import collections
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

import lexicons
import numpy as np
import pytest

from unipt_jax.captions import compose
from unipt_jax.captions.lexicon import OPTIONAL

ROOT = pathlib.Path(__file__).parents[2]
SIGMAS = 5


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small lexicon."""
    return lexicons.read(tmp_path_factory.mktemp("small"), lexicons.whole())


def anyone(words, number, things=0.3):
    """A person by chance: attribute -> phrase."""
    rng = np.random.default_rng(number)
    out = {}
    for name, attribute in words.attributes.items():
        present = [p for p in attribute.phrases if p]
        if not attribute.optional or rng.random() < things:
            out[name] = present[rng.integers(len(present))]
    return out


def say(words, chosen, image_id, count=1, seed=0):
    """The texts of an image's captions."""
    said = compose.captions(words, chosen, seed=seed, image_id=image_id, count=count)
    return [caption.text for caption in said]


def wordings(phrase):
    """All ways to say a phrase."""
    out = [""]
    for slot in phrase.slots:
        out = [f"{before} {word}".strip() for before in out for word in slot]
    return out


# --- numbers drawn -------------------------------------------------------------------


def by_hand(seed, name, number, bounds):
    """What Draws must give: digits of a hash's number, a new hash where it runs low."""
    out, block, left, size = [], 0, 0, 1
    for n in bounds:
        if size < n * 2**64:
            data = f"{seed}/{number}/{name}/{block}".encode()
            left = int(hashlib.blake2b(data, digest_size=64).hexdigest(), 16)
            size, block = 2**512, block + 1
        out.append(left % n)
        left, size = left // n, size // n
    return out, block


@pytest.mark.parametrize("seed, name, number", [(0, "a.jpg", 0), (-7, "ä/包 1", 12)])
def test_draws_equal_hashlibs_numbers_over_many_refills(seed, name, number):
    rng = np.random.default_rng(0)
    bounds = [
        1 + (int(n) >> shift % 63)
        for shift, n in enumerate(rng.integers(2**63, size=3000))
    ]
    expected, blocks = by_hand(seed, name, number, bounds)
    assert blocks > 50
    draws = compose.Draws(seed, name, number)
    assert [draws.below(n) for n in bounds] == expected


def test_draws_are_near_uniform():
    draws, counts = compose.Draws(3, "uniform"), np.zeros(10)
    trials = 50_000
    for _ in range(trials):
        counts[draws.below(10)] += 1
    chi = ((counts - trials / 10) ** 2 / (trials / 10)).sum()
    assert abs(chi - 9) < SIGMAS * np.sqrt(2 * 9)  # mean and deviation of chi-square


def test_one_of_one_is_drawn_without_a_draw():
    draws, other = compose.Draws(0, "x"), compose.Draws(0, "x")
    assert draws.pick(["only"]) == "only"
    assert draws.below(1000) == other.below(1000)


# --- the same everywhere, and different where it should be ---------------------------

SCRIPT = """
import json, sys
sys.path.insert(0, "tests/captions")
import lexicons, test_compose
from unipt_jax.captions import reading
words = reading.read(sys.argv[1])
people = [test_compose.anyone(words, n) for n in range(40)]
said = [test_compose.say(words, p, f"{n}.jpg", 2) for n, p in enumerate(people)]
print(json.dumps(said))
"""


def test_another_process_with_another_hash_seed_says_the_same(tmp_path):
    file = lexicons.write(tmp_path, lexicons.whole())
    printed = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(file)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=True,
            text=True,
        )
        printed.append(json.loads(done.stdout.splitlines()[-1]))
    words = lexicons.read(tmp_path, lexicons.whole())
    here = [say(words, anyone(words, n), f"{n}.jpg", 2) for n in range(40)]
    assert printed == [here, here]


# What the small lexicon says, written down once: a change here means that every
# set of captions made with a seed is another one now.
GOLDEN = {
    ("a.jpg", 0): [
        "The little girl is wearing a crimson striped top, black jeans and eyeglasses.",
        "The little girl is wearing a red striped shirt, black jeans and glasses.",
        "The little girl wears a crimson striped shirt, black jeans and glasses.",
    ],
    ("b.jpg", 0): [
        "The little girl wears a red striped shirt, black jeans and glasses.",
        "The little girl is wearing a crimson striped top, black jeans and eyeglasses.",
        "The little girl wears a crimson striped top, black jeans and eyeglasses.",
    ],
    ("a.jpg", 1): [
        "Her head is bald. The little girl is only a child, walking in a crimson striped shirt. Her glasses are dark.",
        "The little girl is wearing a red striped shirt, a pair of black jeans and glasses.",
        "The little girl wears a red striped shirt, black jeans and eyeglasses.",
    ],
}


def golden_person(words):
    return lexicons.chosen(
        words, upper="red striped shirt", gender="woman", glasses="glasses"
    )


@pytest.mark.parametrize("image_id, seed", GOLDEN)
def test_a_seed_and_an_id_give_the_captions_they_always_gave(small, image_id, seed):
    said = say(small, golden_person(small), image_id, 3, seed)
    assert said == GOLDEN[image_id, seed]


def test_other_ids_and_other_seeds_say_other_things(words):
    person = lexicons.chosen(words, bag="backpack")
    ids = [say(words, person, f"{n}.jpg")[0] for n in range(200)]
    seeds = [say(words, person, "0.jpg", seed=n)[0] for n in range(200)]
    assert len(set(ids)) > 190
    assert len(set(seeds)) > 190
    assert say(words, person, "0.jpg") == say(words, person, "0.jpg")


def test_more_captions_of_an_image_begin_with_the_fewer(words):
    person = lexicons.chosen(words)
    many = say(words, person, "0.jpg", 10)
    assert say(words, person, "0.jpg", 3) == many[:3]
    assert len(set(many)) == 10


def test_captions_are_fewer_only_where_there_are_no_more_ways(tmp_path):
    text = lexicons.whole(["{The gender} [wears] {upper}."])
    words = lexicons.read(tmp_path, text)
    person = lexicons.chosen(words, gender="man", age="adult", upper="orange shirt")
    ways = {
        f"The {noun} {verb} an orange {shirt}."
        for noun in ("man", "gentleman")
        for verb in ("wears", "is wearing")
        for shirt in ("shirt", "top")
    }
    for count in (1, 5, 8, 20):
        said = say(words, person, "0.jpg", count)
        assert len(said) == min(count, 8)
        assert set(said) <= ways


# --- what is told of -----------------------------------------------------------------


def test_every_thing_found_is_told_of_once_and_no_other(words):
    """By the words that things have, in captions that name nothing else so."""
    ways = {
        name: [w for p in words.attributes[name].phrases if p for w in wordings(p)]
        for name in OPTIONAL
    }
    every = [(w, name) for name, group in ways.items() for w in group]
    longest = sorted(every, key=lambda pair: -len(pair[0]))
    pattern = re.compile(
        "|".join(rf"\b{re.escape(w)}\b" for w, _ in longest), re.IGNORECASE
    )
    owner = {w.lower(): name for w, name in every}
    seen = collections.Counter()
    for number in range(3000):
        person = anyone(words, number)
        found = {name for name in OPTIONAL if name in person}
        [text] = say(words, person, f"{number}.jpg")
        told = [owner[m.lower()] for m in pattern.findall(text)]
        assert set(told) == found, text
        twice = [n for n, count in collections.Counter(told).items() if count > 1]
        assert not twice, text
        seen.update(told)
    assert set(seen) == set(OPTIONAL)


def test_the_template_that_is_given_is_the_one_that_was_drawn(small):
    for number in range(200):
        person = anyone(small, number)
        [caption] = compose.captions(small, person, seed=0, image_id=str(number))
        told = small.templates[caption.template].attributes & set(OPTIONAL)
        assert told <= set(person)


def test_what_the_template_leaves_out_an_extra_tells_of(small):
    person = lexicons.chosen(
        small, umbrella="umbrella", vehicle="bicycle", bag="backpack"
    )
    for number in range(100):
        [text] = say(small, person, str(number))
        assert text.count("umbrella.") == 1
        assert text.count("bicycle, and looks at it.") == 1
        assert text.count("backpack") == 1


def test_a_person_in_a_dress_wears_nothing_below(words):
    dress = [p for p in words.attributes["upper"].phrases if p.value.endswith("dress")]
    ways = {w for p in words.attributes["lower"].phrases for w in wordings(p)}
    for number in range(600):
        person = anyone(words, number) | {"upper": dress[number % len(dress)]}
        [text] = say(words, person, str(number))
        assert "dress" in text
        assert not any(way in text for way in ways)


def test_no_extra_tells_of_what_a_phrase_rules_out(tmp_path):
    """A hood hides the hair, so no sentence about a cap speaks of it."""
    hood = "      hood: {words: [hood], patterns: [plain], without: [hair]}\n"
    old = "      dress: {words: [dress], patterns: [plain], without: [lower]}\n"
    text = lexicons.whole(attributes=lexicons.ATTRIBUTES.replace(old, hood))
    words = lexicons.read(tmp_path, text)
    for value, often in (("red hood", False), ("red shirt", True)):
        person = lexicons.chosen(words, upper=value, hat="cap", hair="short")
        said = [say(words, person, str(n))[0] for n in range(200)]
        assert (sum("hair" in text for text in said) > 50) == often
        assert any("hair" in text for text in said) == often


# --- the English of it ---------------------------------------------------------------


def test_children_are_boys_and_girls_and_no_men_or_women(words):
    grown = {"man", "men", "woman", "gentleman", "lady", "male", "female"}
    for gender in ("man", "woman"):
        person = lexicons.chosen(words, age="child", gender=gender)
        allowed = person["age"].nouns[person["gender"].pronoun]
        called = collections.Counter()
        for number in range(300):
            said = set(re.findall(r"\w+", say(words, person, str(number))[0].lower()))
            assert not said & grown
            called.update(said & set(allowed))
        assert set(called) == set(allowed)


def test_pronouns_are_those_of_the_person(words):
    of = {
        "he": {"he", "his", "him", "himself"},
        "she": {"she", "her", "hers", "herself"},
    }
    for number in range(1000):
        person = anyone(words, number)
        [text] = say(words, person, str(number))
        said = set(re.findall(r"\w+", text.lower()))
        other = {"he": "she", "she": "he"}[person["gender"].pronoun]
        assert not said & of[other], text


def test_articles_go_by_the_sound_over_many_captions(words):
    for number in range(1000):
        [text] = say(words, anyone(words, number), str(number))
        for article, word in re.findall(r"\b([Aa]n?) ([\w-]+)", text):
            # No word of ours begins with a letter that sounds otherwise.
            assert (article.lower() == "an") == (word[0].lower() in "aeiou"), text


def test_a_pair_is_never_the_subject_of_a_verb_that_agrees(small, words):
    agreeing = r"(is|are|has|have|covers?|looks?|goes|go)\b"
    noun = r"(?:(?!(?:and|to|can|on)\b)[\w-]+ ){1,5}"
    clause = rf"(?:^|[.;] |, and |, while )A pair of {noun}{agreeing}"
    assert re.search(
        clause, "He sits. A pair of navy blue jeans are worn.", re.IGNORECASE
    )
    pairs = 0
    for lexicon in (small, words):
        for number in range(2000):
            [text] = say(lexicon, anyone(lexicon, number), str(number))
            assert not re.search(clause, text, re.IGNORECASE), text
            assert not re.search(
                r"\b(his|her|the|an|a a) pair of|pair of an? ", text
            ), text
            pairs += "pair of" in text
    assert pairs > 100


def test_what_is_many_comes_as_a_pair_one_time_in_eight(small):
    person = lexicons.chosen(small, gloves="gloves")
    said = [say(small, person, str(n))[0] for n in range(4000)]
    share = np.mean(["a pair of gloves" in text for text in said])
    assert abs(share - 1 / 8) < SIGMAS * np.sqrt(1 / 8 * 7 / 8 / len(said))


def test_verbs_and_pronouns_of_things_agree_with_their_number(tmp_path):
    template = "{The gender} has {lower}, and {lower.are} seen in {lower.them}."
    words = lexicons.read(
        tmp_path, lexicons.whole([*lexicons.TEMPLATES[1:2], template])
    )
    for value, expected in (
        ("azure skirt", "has an azure skirt, and is seen in it."),
        ("azure jeans", "has azure jeans, and are seen in them."),
    ):
        said = [
            say(words, lexicons.chosen(words, lower=value), str(n))[0]
            for n in range(40)
        ]
        told = [text for text in said if "seen" in text]
        assert told
        assert all(text.endswith(expected) for text in told)


def test_a_noun_is_no_pair_where_an_extra_calls_it_them(tmp_path):
    extra = "{He} has {bag} over {lower.them}."
    text = lexicons.whole(["{He} wears {upper}.", "{He} [wears] {lower}."])
    words = lexicons.read(
        tmp_path, text.replace("  bag:\n    - ", f'  bag:\n    - "{extra}"\n    - ')
    )
    person = lexicons.chosen(words, bag="backpack", lower="black jeans")
    said = [say(words, person, str(n))[0] for n in range(400)]
    assert any("black jeans. She has" in t or "black jeans. He has" in t for t in said)
    assert not any("pair" in text for text in said if "over them" in text)


def test_a_word_stays_the_same_within_a_caption_with_the_verb_that_is_its(tmp_path):
    template = (
        "{The person} is {action}. {He} {action.does} in {upper}: {upper.colour}."
    )
    words = lexicons.read(tmp_path, lexicons.whole([template]))
    person = lexicons.chosen(words, upper="red shirt", age="adult", gender="man")
    endings = {
        f"is {ing}. He {s} in a {colour} {shirt}: {colour}."
        for ing, s in (("walking", "walks"), ("strolling", "strolls"))
        for colour in ("red", "crimson")
        for shirt in ("shirt", "top")
    }
    said = {say(words, person, str(n))[0] for n in range(300)}
    assert {text[text.index("is ") :] for text in said} == endings


# --- how often -----------------------------------------------------------------------


@pytest.mark.parametrize("things", [(), ("bag",), ("bag", "hat", "glasses")])
def test_templates_are_drawn_as_often_as_they_should_be(words, things):
    values = {name: words.attributes[name].phrases[0].value for name in things}
    person = lexicons.chosen(words, **values)
    fit = {
        number
        for number, template in enumerate(words.templates)
        if not (template.attributes & set(OPTIONAL)) - set(things)
    }
    most = max(len(words.templates[n].attributes & set(things)) for n in fit)
    full = {n for n in fit if len(words.templates[n].attributes & set(things)) == most}
    share = 1 / compose.FULLEST  # of the captions, whatever their templates tell of
    likely = {n: share / len(fit) + (n in full) * (1 - share) / len(full) for n in fit}
    trials = round(20 / min(likely.values()))
    counts = collections.Counter(
        compose.compose(words, person, compose.Draws(1, f"{n}.jpg")).template
        for n in range(trials)
    )
    assert set(counts) <= fit
    wanted = {n: trials * chance for n, chance in likely.items()}
    chi = sum((counts[n] - mean) ** 2 / mean for n, mean in wanted.items())
    freedom = len(fit) - 1
    assert abs(chi - freedom) < SIGMAS * np.sqrt(2 * freedom)


def test_extras_come_in_any_order(small):
    person = lexicons.chosen(small, umbrella="umbrella", vehicle="bicycle")
    said = [say(small, person, str(n))[0] for n in range(1000)]
    first = np.mean([t.index("umbrella") < t.index("bicycle") for t in said])
    assert abs(first - 1 / 2) < SIGMAS * np.sqrt(1 / 4 / len(said))
