"""The files of the house, and what a user's own file adds to them or takes away."""

import hashlib
import pathlib

import lexicons
import pytest

from unipt_jax.captions import reading
from unipt_jax.captions.lexicon import OPTIONAL, PAPER, REQUIRED

HOUSE = pathlib.Path(reading.__file__).parent


@pytest.fixture(scope="module")
def asked():
    """The lexicon of the house, with every prompt."""
    return reading.read(prompts="all")


def phrase_of(words, attribute, value):
    [phrase] = [p for p in words.attributes[attribute].phrases if p.value == value]
    return phrase


def values(words, attribute):
    return [phrase.value for phrase in words.attributes[attribute].phrases]


# --- the files of the house ----------------------------------------------------------


def test_there_are_the_papers_14_attributes_of_which_6_are_required(words):
    required = ["age", "gender", "upper", "lower", "action", "hair"]
    things = ["bag", "glasses", "smoke", "hat"]
    things += ["cellphone", "umbrella", "gloves", "vehicle"]
    assert list(words.attributes) == required + things
    assert [a.name for a in words.attributes.values() if a.optional] == things
    assert (list(REQUIRED), list(OPTIONAL)) == (required, things)


def test_clothes_have_well_over_a_hundred_phrases_each(words):
    for name in ("upper", "lower"):
        assert len(words.attributes[name].phrases) > 150


def test_every_phrase_has_a_value_of_its_own_and_a_prompt_of_its_own(words):
    for name, attribute in words.attributes.items():
        present = [p for p in attribute.phrases if p]
        assert len({p.value for p in present}) == len(present)
        prompts = [p.prompts[0] for p in attribute.phrases]
        assert len(set(prompts)) == len(prompts), name


def test_every_optional_attribute_has_phrases_for_there_and_for_not_there(words):
    for name in OPTIONAL:
        present = [p for p in words.attributes[name].phrases if p]
        absent = [p for p in words.attributes[name].phrases if not p]
        assert present
        assert absent
        assert all(p.facts == {name: ""} for p in absent)
        assert all(p.facts == {name: p.value} for p in present)


def test_no_required_attribute_can_be_absent(words):
    assert all(all(words.attributes[name].phrases) for name in REQUIRED)


def test_every_optional_attribute_has_a_sentence_of_its_own(words):
    for name in OPTIONAL:
        for extra in words.extras[name]:
            assert f"{{{name}" in extra.source.lower()
            assert not any(f"{{{n}" in extra.source for n in OPTIONAL if n != name)


def test_the_papers_shares_are_its_counts_over_1_3_million_images():
    counts = {"bag": 221750, "glasses": 99492, "smoke": 693, "hat": 97063}
    counts |= {"cellphone": 118686, "umbrella": 1578, "gloves": 16259}
    counts |= {"vehicle": 24736}
    assert {name: round(share * 1.3e6) for name, share in PAPER.items()} == counts


@pytest.mark.parametrize(
    "attribute, value, facts, prompt",
    [
        (
            "upper",
            "orange T-shirt",
            {"colour": "orange", "pattern": "plain", "type": "T-shirt"},
            "A photo of a person wearing an orange T-shirt.",
        ),
        (
            "upper",
            "navy checked shirt",
            {"colour": "navy", "pattern": "checked", "type": "shirt"},
            "A photo of a person wearing a navy blue checked shirt.",
        ),
        (
            "upper",
            "white logo hoodie",
            {"colour": "white", "pattern": "logo", "type": "hoodie"},
            "A photo of a person wearing a white hoodie with a logo.",
        ),
        (
            "lower",
            "light blue jeans",
            {"colour": "light blue", "pattern": "plain", "type": "jeans"},
            "A photo of a person wearing light blue jeans.",
        ),
        (
            "lower",
            "orange floral skirt",
            {"colour": "orange", "pattern": "floral", "type": "skirt"},
            "A photo of a person wearing an orange floral skirt.",
        ),
    ],
)
def test_clothes_say_colour_pattern_and_type(words, attribute, value, facts, prompt):
    phrase = phrase_of(words, attribute, value)
    assert phrase.facts == {f"{attribute}_{k}": v for k, v in facts.items()}
    assert phrase.prompts == (prompt,)


@pytest.mark.parametrize(
    "attribute, value, prompt",
    [
        ("age", "elderly", "A photo of an elderly person."),
        ("age", "young", "A photo of a young adult."),
        ("gender", "man", "A photo of a man."),
        ("action", "walking", "A photo of a person who is walking."),
        ("hair", "short", "A photo of a person with short hair."),
        ("hair", "bald", "A photo of a person with a bald head."),
        ("bag", "backpack", "A photo of a person carrying a backpack."),
        ("glasses", "glasses", "A photo of a person wearing glasses."),
        ("smoke", "cigarette", "A photo of a person smoking a cigarette."),
        ("umbrella", "umbrella", "A photo of a person holding an umbrella."),
        ("vehicle", "bicycle", "A photo of a person riding a bicycle."),
    ],
)
def test_other_prompts_read_as_english(words, attribute, value, prompt):
    phrase = phrase_of(words, attribute, value)
    assert phrase.facts == {attribute: value}
    assert phrase.prompts == (prompt,)


def test_absent_prompts_read_as_english(words):
    prompts = [p.prompts for p in words.attributes["bag"].phrases if not p]
    assert ("A photo of a person without a bag.",) in prompts


def test_all_prompts_are_more_than_the_first_and_begin_with_it(words, asked):
    for name, attribute in asked.attributes.items():
        for one, many in zip(
            words.attributes[name].phrases, attribute.phrases, strict=True
        ):
            assert len(one.prompts) == 1
            assert many.prompts[:1] == one.prompts
            assert len(set(many.prompts)) == len(many.prompts) >= 2


def test_a_dress_says_all_of_the_clothes(words):
    without = {p.value: p.without for p in words.attributes["upper"].phrases}
    assert without["red dress"] == ("lower",)
    assert without["red T-shirt"] == ()


# --- what a user's file adds ---------------------------------------------------------


def test_a_new_phrase_is_added_and_ours_remain(words, tmp_path):
    ours = values(words, "bag")
    text = "attributes: {bag: {phrases: {tote: {words: [tote bag, tote]}}}}\n"
    new = lexicons.read(tmp_path, text)
    present = len([value for value in ours if value])
    assert values(new, "bag") == [*ours[:present], "tote", *ours[present:]]
    tote = phrase_of(new, "bag", "tote")
    assert tote.slots == (("tote bag", "tote"),)
    assert tote.prompts == ("A photo of a person carrying a tote bag.",)
    assert len(new.templates) == len(words.templates)


def test_a_garment_of_a_new_colour_is_added_to_every_other(words, tmp_path):
    text = """
attributes:
  lower:
    colours: {olive: [olive, olive green]}
    garments: {kilt: {words: [kilt], colours: [red, olive], patterns: [checked]}}
"""
    new = lexicons.read(tmp_path, text)
    added = set(values(new, "lower")) - set(values(words, "lower"))
    assert {"olive checked kilt", "red checked kilt", "olive trousers"} < added
    assert phrase_of(new, "lower", "olive checked kilt").prompts == (
        "A photo of a person wearing an olive checked kilt.",
    )
    kilts = [value for value in values(new, "lower") if value.endswith("kilt")]
    assert len(kilts) == 2


def test_a_phrase_of_the_same_name_takes_the_place_of_ours_with_all_it_has(
    words, tmp_path
):
    text = """
attributes:
  glasses: {phrases: {glasses: {words: [monocle]}}}
  action: {phrases: {walking: {verbs: {wandering: wanders}}}}
  age: {phrases: {child: {words: [tiny], is: [tiny]}}}
"""
    new = lexicons.read(tmp_path, text)
    glasses = phrase_of(new, "glasses", "glasses")
    assert (glasses.slots, glasses.number) == ((("monocle",),), "one")
    walking = phrase_of(new, "action", "walking")
    assert (walking.slots, walking.finite) == ((("wandering",),), ("wanders",))
    child = phrase_of(new, "age", "child")
    assert (child.asked, child.nouns, child.predicate) == ("", {}, ("tiny",))
    for name in ("glasses", "action", "age"):
        assert sorted(values(new, name)) == sorted(values(words, name))


def test_templates_and_extras_are_added_after_ours(words, tmp_path):
    text = """
templates: ["{The person} [wears] {upper}."]
extras: {hat: ["{Hat} suits {him}."]}
"""
    new = lexicons.read(tmp_path, text)
    ours = [t.source for t in words.templates]
    assert [t.source for t in new.templates] == [*ours, "{The person} [wears] {upper}."]
    hats = [t.source for t in words.extras["hat"]]
    assert [t.source for t in new.extras["hat"]] == [*hats, "{Hat} suits {him}."]
    assert len(new.extras["bag"]) == len(words.extras["bag"])


def test_a_group_of_synonyms_and_prompts_take_the_place_of_ours(words, tmp_path):
    text = """
synonyms: {wears: [dons], flees: [flees, runs off]}
prompts: ["Someone {says}."]
"""
    new = lexicons.read(tmp_path, text)
    assert new.synonyms["wears"] == ("dons",)
    assert set(new.synonyms) == {*words.synonyms, "flees"}
    assert phrase_of(new, "bag", "backpack").prompts == (
        "Someone carrying a backpack.",
    )


def test_replaced_phrases_begin_empty(tmp_path):
    text = """
replace: [bag]
attributes:
  bag:
    kind: thing
    says: "with {bag}"
    absent: [without any]
    phrases: {sack: {words: [sack]}}
"""
    bags = lexicons.read(tmp_path, text).attributes["bag"].phrases
    assert [(p.value, p.prompts) for p in bags] == [
        ("sack", ("A photo of a person with a sack.",)),
        ("", ("A photo of a person without any.",)),
    ]


def test_replaced_templates_are_the_users_alone(words, tmp_path):
    text = """
replace: [templates]
templates: ["{A person} has {hair}.", "{A person} has {bag}."]
"""
    new = lexicons.read(tmp_path, text)
    assert [t.source for t in new.templates] == [
        "{A person} has {hair}.",
        "{A person} has {bag}.",
    ]
    assert len(new.extras["bag"]) == len(words.extras["bag"])


def test_a_file_that_replaces_all_has_nothing_of_ours(tmp_path):
    new = lexicons.read(tmp_path, lexicons.whole())
    assert [t.source for t in new.templates] == list(lexicons.TEMPLATES)
    assert new.synonyms == {k: tuple(v) for k, v in lexicons.SYNONYMS.items()}
    for name, extras in lexicons.EXTRAS.items():
        assert [t.source for t in new.extras[name]] == extras
    lower = ["black jeans", "azure jeans", "black skirt", "azure skirt"]
    assert values(new, "lower") == lower
    assert len(values(new, "upper")) == 2 * 3 + 2  # shirts and dresses
    prompts = [p.prompts for p in new.attributes["upper"].phrases]
    assert prompts[-2:] == [
        ("A photo of someone wearing an orange dress.",),
        ("A photo of someone wearing a red dress.",),
    ]
    assert phrase_of(new, "age", "adult").prompts == ("A photo of someone adult.",)


def test_a_thing_may_be_made_of_colours_and_garments(tmp_path):
    text = """
replace: [hat]
attributes:
  hat:
    kind: clothes
    says: "wearing {hat}"
    absent: [without a hat]
    colours: {red: [red], blue: [blue]}
    patterns: {plain: {}}
    garments: {cap: {words: [cap]}}
"""
    new = lexicons.read(tmp_path, text)
    assert values(new, "hat") == ["red cap", "blue cap", ""]


def test_the_digest_is_of_the_files_as_they_are(words, tmp_path):
    ours = [HOUSE / f"{n}.yaml" for n in ("phrases", "templates", "synonyms")]
    texts = [file.read_bytes() for file in ours]
    assert words.digest == hashlib.sha256(b"\0".join(texts)).hexdigest()
    for text in ("# nothing\n", "# nothing new\n", ""):
        theirs = hashlib.sha256(b"\0".join([*texts, text.encode()])).hexdigest()
        assert lexicons.read(tmp_path, text).digest == theirs


def test_a_file_with_nothing_in_it_changes_nothing(words, tmp_path):
    for text in ("", "# nothing\n", "synonyms:\n", "attributes:\nextras:\n"):
        new = lexicons.read(tmp_path, text)
        assert new.attributes == words.attributes
        assert new.synonyms == words.synonyms


def test_a_home_folder_is_found_by_its_tilde(tmp_path, monkeypatch):
    lexicons.write(tmp_path, "synonyms: {flees: [flees]}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "flees" in reading.read("~/phrases.yaml").synonyms


# --- the traps of YAML ---------------------------------------------------------------


def test_words_that_yaml_takes_for_truth_and_numbers_stay_words(tmp_path):
    text = """
synonyms:
  no: [no, yes, on, off, true, Null, 7, 007, 1_000, 1.50, 2024-01-02, 12:30, .inf]
attributes:
  bag: {phrases: {no: {words: [no]}, 42: {words: [42]}}}
templates: ["{The person} says [no]."]
"""
    new = lexicons.read(tmp_path, text)
    said = "no yes on off true Null 7 007 1_000 1.50 2024-01-02 12:30 .inf"
    assert new.synonyms["no"] == tuple(said.split())
    assert phrase_of(new, "bag", "no").slots == (("no",),)
    assert phrase_of(new, "bag", "42").slots == (("42",),)


def test_an_alias_stands_for_what_it_names(tmp_path):
    text = """
attributes:
  upper: {colours: &mine {teal: [teal]}}
  lower: {colours: *mine}
"""
    new = lexicons.read(tmp_path, text)
    assert "teal trousers" in values(new, "lower")
    assert "teal shirt" in values(new, "upper")


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path):
    file = tmp_path / "phrases.yaml"
    file.write_bytes(b"\xef\xbb\xbfsynonyms:\r\n  flees: [flees, runs off]\r\n")
    assert reading.read(file).synonyms["flees"] == ("flees", "runs off")


def test_a_letter_of_any_language_is_kept(tmp_path):
    text = "attributes: {bag: {phrases: {étui: {words: [étui, 包]}}}}\n"
    phrase = phrase_of(lexicons.read(tmp_path, text), "bag", "étui")
    assert phrase.slots == (("étui", "包"),)
