"""The checker finds faults that are put in, by their line, and nothing in good English."""

import collections
import pathlib
import re
import subprocess
import sys

import lexicons
import pytest

from unipt_jax.captions import check
from unipt_jax.captions.check import Agreement
from unipt_jax.captions.lexicon import OPTIONAL

ROOT = pathlib.Path(__file__).parents[2]
TEMPLATES = 456  # as many as the paper has


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The small lexicon."""
    return lexicons.read(tmp_path_factory.mktemp("small"), lexicons.whole())


@pytest.fixture(scope="module")
def agreement(words):
    return Agreement(words)


def found(folder, text):
    """(line, fault) of each fault in a file of that text."""
    file = lexicons.write(folder, text)
    faults = check.check(lexicons.read(folder, text), progress=False)
    assert all(fault.where.startswith(f"{file}:") for fault in faults), faults
    return [(int(f.where.rpartition(":")[2]), f.what) for f in faults]


# --- faults put into templates -------------------------------------------------------

# What is wrong; the template; what must be said of it, or one of several things.
FAULTS = {
    "a before a vowel": ("{He} wears a {upper.bare}.", "'a' before a vowel"),
    "an before a consonant": (
        "{He} has an {hair.bare}.",
        "'an' before a consonant",
    ),
    "a before an hour": ("{He} waits for a hour.", "'a' before the sound of a vowel"),
    "an before a uniform": (
        "{He} wears an uniform.",
        "'an' before the sound of 'you'",
    ),
    "two articles": ("{He} wears the {upper}.", "two articles in a row"),
    "an article after his": ("{He} wears {his} {upper}.", "two articles in a row"),
    "a word twice": ("{He} is is {action}.", "a word twice in a row"),
    "a word twice, the first with a capital": (
        "{He} {he} is {action}.",
        "a word twice in a row",
    ),
    "a word that a blank brings too": (
        "{His} head {hair.is}.",
        "a word twice in a row",
    ),
    "a blank that is forgotten": (
        "{He} is {action} in.",
        "a blank is empty ('in.')",
    ),
    "a blank that is forgotten, before a comma": (
        "With, {he} is {action}.",
        "a blank is empty ('With,')",
    ),
    "his of a woman": ("{He} wears his {upper.bare}.", "wrong ('his')"),
    "she of a man": ("{He} is {action}, and she has {hair}.", "wrong ('she')"),
    "herself of a man": ("{He} sees herself.", "wrong ('herself')"),
    "are of one": ("{His} {upper.noun} are {upper.colour}.", "do not agree"),
    "is of many": ("{His} {glasses.bare} is dark.", "glasses is')"),
    "is of what may be many": (
        "{He} sits, and {his} {lower.noun} is {lower.colour}.",
        "do not agree ('jeans is')",
    ),
    "are of what may be one": (
        "{The lower.bare} are {lower.colour}.",
        "do not agree ('skirt are')",
    ),
    "have of one": ("{Upper} have a stain.", "do not agree"),
    "are of hair": ("{His} {hair.bare} are in view.", "do not agree"),
    "no space after a full stop": (
        "{He} is {action}.{He} wears {upper}.",
        "no space after a mark",
    ),
    "no space after a comma": ("{He} is {action},as ever.", "no space after a mark"),
    "no space before a blank": ("{He} wears{upper}.", "no space before a blank"),
    "no space after a blank": ("{He} wears {upper}and sits.", "no space after a blank"),
    "no space between blanks": ("{He} wears {upper}{hair}.", "no space before a blank"),
    "a plural that not all take": ("The {lower.noun}s of {him}.", "after a blank"),
    "a space before a mark": ("{He} is {action} .", "a space before a mark"),
    "two full stops": ("{He} is {action}..", "two marks in a row"),
    "a comma and a full stop": ("{He} is {action},.", "two marks in a row"),
    "a second sentence without a capital": (
        "{He} is {action}. {he} wears {upper}.",
        "begins without a capital",
    ),
    "a sentence that begins with a number": (
        "2 shoes are on {his} feet.",
        "begins without a capital",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_by_its_line(fault, tmp_path):
    source, expected = FAULTS[fault]
    text = lexicons.whole([*lexicons.TEMPLATES, source])
    line = lexicons.line_of(text, f'- "{source}"')
    faults = found(tmp_path, text)
    assert {number for number, _ in faults} == {line}
    assert any(expected in what for _, what in faults), faults


def test_a_fault_in_an_extra_is_found_by_its_line(tmp_path):
    source = "{He} rides a {vehicle}."
    text = lexicons.whole(extras={"vehicle": [source]})
    line = lexicons.line_of(text, source)
    assert (line, "two articles in a row ('a a')") in found(tmp_path, text)


def test_a_fault_of_one_wording_among_many_is_found(tmp_path):
    """Of 40 ways to say one phrase, with one phrase of the attribute."""
    words = ", ".join(f"cap{n}" for n in range(39))
    text = lexicons.whole().replace("words: [cap]", f"words: [{words}, cap cap]")
    faults = found(tmp_path, text)
    assert faults
    assert all(what == "a word twice in a row ('cap cap')" for _, what in faults)


def test_a_fault_of_one_synonym_is_found(tmp_path):
    text = lexicons.whole(synonyms={"carries": ["totes", "bears", "has a"]})
    faults = found(tmp_path, text)
    sources = (lexicons.TEMPLATES[3], '- "{He} [carries] {bag}."')
    lines = {lexicons.line_of(text, source) for source in sources}
    assert {line for line, _ in faults} == lines
    assert all(what.endswith("('a a')") for _, what in faults)


def test_each_kind_of_fault_is_told_of_once_a_template(tmp_path):
    source = "{His} {upper.noun} are {upper.colour}, and she is is {action}."
    text = lexicons.whole([*lexicons.TEMPLATES, source])
    kinds = [what.split("(")[0] for _, what in found(tmp_path, text)]
    assert sorted(kinds) == [
        "a pronoun of a he is wrong ",
        "a word twice in a row ",
        "noun and verb do not agree ",
    ]


def test_templates_that_say_the_same_are_found_by_the_line_of_both(tmp_path):
    twins = ["{The person} is {action}.", "The {person} is {action}."]
    text = lexicons.whole([*lexicons.TEMPLATES, *twins])
    first, second = (lexicons.line_of(text, twin) for twin in twins)
    [(line, what)] = found(tmp_path, text)
    assert line == second
    assert re.fullmatch(rf"the same as \S+:{first} after filling", what)


def test_an_extra_that_says_what_a_template_says_is_found(tmp_path):
    text = lexicons.whole(
        extras={"bag": ["{He} [carries] {bag}.", "{He} totes {bag}."]}
    )
    assert found(tmp_path, text) == []  # "carries" is what comes first
    text = text.replace("totes {bag}", "carries {bag}")
    [(line, _)] = found(tmp_path, text)
    assert line == lexicons.line_of(text, "{He} carries {bag}.")


def test_a_group_that_no_template_uses_is_found_by_its_line(tmp_path):
    text = lexicons.whole(synonyms={"flees": ["flees", "runs off"]})
    [(line, what)] = found(tmp_path, text)
    assert lexicons.line_of(text, "flees:") in (line, line + 1)
    assert what == "no template uses [flees]"


def test_a_template_that_no_phrase_goes_with_is_found(tmp_path):
    old = "      shirt: {words: [shirt, top]}\n"
    assert old in lexicons.ATTRIBUTES
    text = lexicons.whole(
        ["{He} wears {upper}.", "{He} wears {lower} with {upper}."],
        attributes=lexicons.ATTRIBUTES.replace(old, ""),
        extras={"glasses": ["{He} wears {glasses}."], "gloves": ["{He} has {gloves}."]},
    )
    text = text.replace("[wears]", "wears")
    never = [line for line, what in found(tmp_path, text) if "never drawn" in what]
    assert never == [lexicons.line_of(text, "{He} wears {lower} with {upper}.")]


def test_a_lexicon_with_one_gender_is_checked(tmp_path):
    old = "      woman: {words: [woman, lady], pronoun: she}\n"
    assert old in lexicons.ATTRIBUTES
    text = lexicons.whole(attributes=lexicons.ATTRIBUTES.replace(old, ""))
    assert found(tmp_path, text) == []


# --- good English --------------------------------------------------------------------


def test_nothing_is_found_in_a_clean_lexicon(small):
    assert check.check(small, progress=False) == []


@pytest.mark.parametrize(
    "text",
    [
        "A man in black jeans is walking.",
        "A man with sunglasses is walking.",
        "A woman whose bag is open has waited for an hour in a uniform.",
        "A boy wears a used bag, a one-piece suit and a European hat.",
        "An honest man in a U-neck sweater is on an MP3 player.",
        "A red T-shirt with a logo is worn by a man.",
        "A red T-shirt with a logo and black jeans are worn by a man.",
        "A red T-shirt and black jeans are worn by a man.",
        "Black jeans and a red T-shirt are worn by a man.",
        "His blue jeans are long, and his T-shirt is short.",
        "His hair is short. His head is bald.",
        "What he wears is jeans.",
        "He has glasses on, and a cap on.",
        "She has with her a bag. She likes what is on her.",
        "The T-shirt is red, and the jeans are black.",
        "Her striped T-shirt is red, while her checked trousers are black.",
        "In jeans, he is on a bike.",
        "Note his jeans. He is a boy who wears one.",
        "It is 10:30, and he is 1.80 metres tall.",
        "His clothes are jeans and a coat.",
        "A man wearing gloves is smoking.",
        "Dark-red jeans are worn by the well-known man himself.",
    ],
)
def test_nothing_is_found_in_good_english(text, agreement):
    pronoun = "she" if re.search(r"(?i)\b(she|her)\b|woman", text) else "he"
    assert list(check.faults(text, pronoun, agreement)) == []


@pytest.mark.parametrize(
    "text",
    [
        "His jeans is long.",
        "He sits, and his blue denim jeans is long.",
        "The t-shirt are red.",
        "The striped T-shirt are red.",
        "His hair are short.",
        "A red T-shirt with a logo are worn by a man.",
        "He sits. Sunglasses covers his eyes.",
        "A man whose checked trousers has a hole sits, while the backpack look heavy.",
    ],
)
def test_verbs_of_the_wrong_number_are_found(text, agreement):
    assert any("do not agree" in f for f in check.faults(text, "he", agreement))


def test_a_noun_that_is_one_and_many_agrees_with_both(tmp_path):
    """Glasses, and a drinking glass that someone calls so."""
    text = "attributes: {bag: {phrases: {cup: {words: [drinking glasses]}}}}\n"
    agreement = Agreement(lexicons.read(tmp_path, text))
    for verb in ("is", "are"):
        assert not list(check.faults(f"His glasses {verb} here.", "he", agreement))


def test_a_noun_with_a_capital_in_it_is_no_trouble(tmp_path):
    text = "attributes: {vehicle: {phrases: {ebike: {words: [e-Bike]}}}}\n"
    agreement = Agreement(lexicons.read(tmp_path, text))
    assert not list(check.faults("E-Bike is what he rides.", "he", agreement))
    assert list(check.faults("The e-Bike are new.", "he", agreement))


# --- the whole of ours, and the command ----------------------------------------------


@pytest.mark.slow
def test_no_fault_is_found_in_what_the_house_says(words):
    assert [str(fault) for fault in check.check(words, progress=False)] == []


def test_there_are_as_many_templates_as_the_paper_has_in_many_patterns(words):
    templates = words.templates
    assert len(templates) >= TEMPLATES
    assert len({t.source for t in templates}) == len(templates)
    sentences = collections.Counter(len(t.source.split(". ")) for t in templates)
    assert all(sentences[n] >= 50 for n in (1, 2))
    assert sum(n for count, n in sentences.items() if count > 2) >= 20
    things = collections.Counter(t.attributes & set(OPTIONAL) for t in templates)
    assert len(things) >= 30
    assert all(things[frozenset({name})] >= 10 for name in OPTIONAL)
    required = {t.attributes - set(OPTIONAL) for t in templates}
    assert len(required) >= 5
    begin = collections.Counter(t.source.split(" ")[0] for t in templates)
    assert len(begin) >= 30
    assert max(begin.values()) < len(templates) / 2


def run(*arguments):
    """The command's exit code and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "unipt_jax.captions.check", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_the_command_is_content_with_a_clean_file(tmp_path):
    code, printed, _ = run(str(lexicons.write(tmp_path, lexicons.whole())))
    assert (code, printed) == (0, ["0 faults"])


def test_the_command_tells_of_a_fault_and_fails(tmp_path):
    source = "{He} is is {action}."
    text = lexicons.whole([*lexicons.TEMPLATES, source])
    file = lexicons.write(tmp_path, text)
    code, printed, _ = run(str(file))
    where = f"{file}:{lexicons.line_of(text, source)}"
    assert code == 1
    assert printed[0].startswith(f"{where}: a word twice in a row ('is is'): ")
    assert printed[1:] == ["1 faults"]


def test_the_command_tells_of_a_mistake_in_one_line_and_fails(tmp_path):
    file = lexicons.write(tmp_path, "phrases: {}\n")
    code, printed, errors = run(str(file))
    assert (code, printed) == (1, [])
    assert re.fullmatch(rf"error: {file}:1: unknown 'phrases'; known are .*\n", errors)
