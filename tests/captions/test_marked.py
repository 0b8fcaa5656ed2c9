"""Mistakes in a user's file: each is named with its file and line, and a remedy."""

import lexicons
import pytest

from unipt_jax.captions import reading
from unipt_jax.errors import UserError

BAG = "attributes:\n  bag:\n"
GARMENT = "attributes:\n  upper:\n    garments:\n      poncho:\n"


# What is wrong; the file, in which "# here" marks the line; what the error must say.
MISTAKES = {
    "no YAML: a template without quotation marks": (
        "templates:\n  - {He} has {bag}. # here\n",
        "not YAML",
        "quotation marks",
    ),
    "no YAML: a synonym first, without quotation marks": (
        "templates:\n  - [Wearing] {upper}, {he} sits. # here\n",
        "not YAML",
        "quotation marks",
    ),
    "no YAML: a tab": (
        "synonyms:\n\tflees: [flees] # here\n",
        "not YAML",
        "quotation marks",
    ),
    "no YAML: a list left open": (
        "synonyms:\n  flees: [flees\n  runs: [runs] # here\n",
        "not YAML",
        "quotation marks",
    ),
    "no YAML: an alias of our file": (
        "attributes:\n  upper:\n    colours: *colours # here\n",
        "undefined alias",
        "quotation marks",
    ),
    "no YAML: a control character": (
        "synonyms:\n  flees: [fl\x01ees] # here\n",
        "not YAML",
        "#x0001",
    ),
    "no YAML: two documents": (
        "synonyms: {a: [a]}\n--- # here\nsynonyms: {b: [b]}\n",
        "not YAML",
        "another document",
    ),
    "a list of texts for the whole": (
        '- "{A person} sits." # here\n',
        "a list",
        "begin with `attributes:`",
    ),
    "a text for the whole": ("backpack # here\n", "a text", "begin with `attributes:`"),
    "a key twice": (
        "synonyms:\n  flees: [flees]\n  runs: [runs]\n  flees: [runs off] # here\n",
        "'flees' a second time",
        "join",
    ),
    "a section twice": (
        "synonyms: {a: [a]}\ntemplates: [A man.]\nsynonyms: {b: [b]} # here\n",
        "'synonyms' a second time",
        "join",
    ),
    "a list for a key": ("synonyms:\n  [a, b]: [c] # here\n", "a list", "a text"),
    "a blank for a key": ("extras:\n  {bag}: [c] # here\n", "a list", "a text"),
    "no key": ('synonyms:\n  "": [c] # here\n', "no text", "write one"),
    "an unknown section": ("phrase: {} # here\n", "unknown 'phrase'", "templates"),
    "an unknown attribute": (
        "attributes:\n  shoes: {kind: thing} # here\n",
        "unknown 'shoes'",
        "gloves",
    ),
    "an unknown attribute of an extra": (
        'extras:\n  bags: ["{He} has {bag}."] # here\n',
        "unknown 'bags'",
        "bag, glasses",
    ),
    "an extra of what is required": (
        'extras:\n  hair: ["{His} {hair.is}."] # here\n',
        "unknown 'hair'",
        "bag, glasses",
    ),
    "an unknown field of an attribute": (
        BAG + "    phrase: {tote: {words: [tote]}} # here\n",
        "unknown 'phrase'",
        "phrases",
    ),
    "an unknown field of a phrase": (
        BAG + "    phrases:\n      tote:\n        word: [tote] # here\n",
        "unknown 'word'",
        "words",
    ),
    "an unknown field of a garment": (
        GARMENT + "        words: [poncho]\n        pattern: [plain] # here\n",
        "unknown 'pattern'",
        "patterns",
    ),
    "an unknown side of a pattern": (
        "attributes:\n  upper:\n    patterns: {dotted: {behind: [dotted]}} # here\n",
        "unknown 'behind'",
        "before, after",
    ),
    "phrases of clothes, which have garments": (
        "attributes:\n  upper:\n    phrases: {poncho: {words: [poncho]}} # here\n",
        "unknown 'phrases'",
        "garments",
    ),
    "garments of a thing, which has phrases": (
        BAG + "    garments: {tote: {words: [tote]}} # here\n",
        "unknown 'garments'",
        "phrases",
    ),
    "absent for what no one lacks": (
        "attributes:\n  hair:\n    absent: [without hair] # here\n",
        "unknown 'absent'",
        "phrases",
    ),
    "an unknown kind": (
        BAG + "    kind: object # here\n",
        "'object' is not known",
        "clothes, thing",
    ),
    "a kind that sentences cannot do without": (
        "attributes:\n  gender:\n    kind: thing # here\n",
        "'thing' is not known",
        "write one of gender",
    ),
    "a bag that is an action": (
        BAG + "    kind: action # here\n",
        "'action' is not known",
        "clothes, thing",
    ),
    "an unknown pattern in a garment": (
        GARMENT + "        words: [poncho]\n        patterns: [plain, dotted] # here\n",
        "'dotted' is not known",
        "plain, striped",
    ),
    "an unknown colour in a garment": (
        GARMENT + "        words: [poncho]\n        colours: [teal] # here\n",
        "'teal' is not known",
        "black, white",
    ),
    "a colour that is no list": (
        "attributes:\n  upper:\n    colours: {teal: teal} # here\n",
        "no list",
        "[one, another]",
    ),
    "colours that are a list": (
        "attributes:\n  upper:\n    colours: [teal] # here\n",
        "no mapping",
        "name: value",
    ),
    "phrases that are a list": (
        BAG + "    phrases: [tote, sack] # here\n",
        "no mapping",
        "name: value",
    ),
    "a phrase that is a list": (
        BAG + "    phrases:\n      tote: [tote] # here\n",
        "no mapping",
        "name: value",
    ),
    "a phrase with nothing in it": (
        BAG + "    phrases:\n      tote: # here\n",
        "no words",
        "words: [...]",
    ),
    "an action with nothing in it": (
        "attributes:\n  action:\n    phrases:\n      dancing: # here\n",
        "'dancing' has no verbs",
        "walking: walks",
    ),
    "verbs that are a list": (
        (
            "attributes:\n  action:\n    phrases:\n      dancing:\n"
            "        verbs: [dancing] # here\n"
        ),
        "no mapping",
        "name: value",
    ),
    "a verb without its finite form": (
        (
            "attributes:\n  action:\n    phrases:\n      dancing:\n"
            "        verbs: {dancing: } # here\n"
        ),
        "no text",
        "write one",
    ),
    "an attribute with nothing in it": (
        "attributes:\n  bag: # here\n",
        "no kind",
        "kind:",
    ),
    "an attribute that is a text": (
        "attributes:\n  bag: tote # here\n",
        "no mapping",
        "name: value",
    ),
    "no garments at all": (
        (
            "replace: [upper]\nattributes:\n  upper:\n    kind: clothes # here\n"
            "    colours: {red: [red]}\n    patterns: {plain: {}}\n"
        ),
        "'upper' has no garments",
        "garments:",
    ),
    "garments in no colour": (
        (
            "replace: [upper]\nattributes:\n  upper:\n    kind: clothes # here\n"
            "    colours: {}\n    patterns: {plain: {}}\n"
            "    garments: {shirt: {words: [shirt]}}\n"
        ),
        "'upper' has no phrases",
        "write one or more",
    ),
    "no word for a thing that is not there": (
        (
            "replace: [bag]\nattributes:\n  bag:\n    kind: thing # here\n"
            "    phrases: {tote: {words: [tote]}}\n"
        ),
        "how a person without it is told",
        "absent:",
    ),
    "an absence that is a text": (
        BAG + "    absent: without a bag # here\n",
        "no list",
        "[one, another]",
    ),
    "an empty list": (
        BAG + "    phrases:\n      tote:\n        words: [] # here\n",
        "no list",
        "[one, another]",
    ),
    "an empty word": (
        BAG + '    phrases:\n      tote:\n        words: [tote, ""] # here\n',
        "no text",
        "write one",
    ),
    "an empty group": ("synonyms:\n  flees: [] # here\n", "no list", "[one, another]"),
    "templates that are one text": (
        'templates: "{A person} sits." # here\n',
        "no list",
        "[one, another]",
    ),
    "two spaces": (
        BAG + '    phrases:\n      tote:\n        words: ["tote  bag"] # here\n',
        "'tote  bag' has spaces",
        "single spaces",
    ),
    "a space at the end": (
        BAG + '    phrases:\n      tote:\n        words: ["tote "] # here\n',
        "has spaces or line ends too many",
        "single spaces",
    ),
    "a number that is none": (
        BAG + "    phrases: {tote: {words: [tote], number: 2}} # here\n",
        "'2' is not known",
        "one, many, mass",
    ),
    "a blank in a word": (
        BAG + '    phrases: {tote: {words: ["{upper.colour} tote"]}} # here\n',
        "has a bracket",
        "no blank",
    ),
    "another blank than {his} in a clause": (
        (
            "attributes:\n  age:\n    phrases:\n      old:\n        words: [old]\n"
            '        is: ["in {her} eighties"] # here\n'
        ),
        "'in {her} eighties' has a bracket",
        "no blank but {his}",
    ),
    "a blank in a synonym": (
        'synonyms:\n  flees: ["[wears] off"] # here\n',
        "has a bracket",
        "no blank",
    ),
    "no pronoun": (
        (
            "attributes:\n  gender:\n    phrases:\n      person:\n"
            "        words: [person] # here\n"
        ),
        "'person' has no pronoun",
        "pronoun: he",
    ),
    "a pronoun that is neither": (
        (
            "attributes:\n  gender:\n    phrases:\n"
            "      person: {words: [person], pronoun: they} # here\n"
        ),
        "'they' is not known",
        "he, she",
    ),
    "nouns of a pronoun that is neither": (
        (
            "attributes:\n  age:\n    phrases:\n"
            "      old: {words: [old], is: [old], nouns: {they: [elders]}} # here\n"
        ),
        "unknown 'they'",
        "he, she",
    ),
    "an age without a clause": (
        "attributes:\n  age:\n    phrases:\n      old:\n        words: [old] # here\n",
        "no is",
        "is: [...]",
    ),
    "what another kind of phrase has": (
        BAG + "    phrases: {tote: {words: [tote], verbs: {a: b}}} # here\n",
        "'verbs' is not for a phrase of kind thing",
        "words, number",
    ),
    "an unknown attribute in without": (
        BAG + "    phrases: {tote: {words: [tote], without: [shoes]}} # here\n",
        "'shoes' is not known",
        "hair",
    ),
    "a prompt without {says}": (
        'prompts: ["A photo of a person."] # here\n',
        "has no {says}",
        "where it belongs",
    ),
    "a prompt that is a text": (
        'prompts: "A photo of a person {says}." # here\n',
        "no list",
        "[one, another]",
    ),
    "a prompt with a template's blank": (
        'prompts: ["A photo of {a person} {says}."] # here\n',
        "still has a blank",
        "{a says}",
    ),
    "a prompt with a group of synonyms": (
        'prompts: ["[A photo] of a person {says}."] # here\n',
        "still has a blank",
        "{a says}",
    ),
    "what an attribute says, without it": (
        BAG + '    says: "carrying {bags}" # here\n',
        "'carrying {bags}' has no {bag}",
        "where it belongs",
    ),
    "an unknown name to replace": (
        "replace: [phrases] # here\n",
        "'phrases' is not known",
        "attributes, templates",
    ),
    "a text to replace": ("replace: templates # here\n", "no list", "[one, another]"),
    "templates replaced by nothing": (
        "replace: [templates] # here\n",
        "no list",
        "[one, another]",
    ),
    "an attribute replaced by nothing": (
        "replace: [bag] # here\n",
        "'bag' has no kind",
        "kind:",
    ),
    "all attributes replaced by nothing": (
        "replace: [attributes] # here\n",
        "no attribute 'age'",
        "write its phrases",
    ),
    "all extras replaced by nothing": (
        "replace: [extras] # here\n",
        "no sentence for 'bag'",
        "write one or more",
    ),
    "prompts replaced by nothing": (
        "replace: [prompts] # here\n",
        "no list",
        "[one, another]",
    ),
    "extras replaced by too few": (
        'replace: [extras]\nextras:\n  bag: ["{He} has {bag}."] # here\n',
        "no sentence for 'glasses'",
        "write one or more",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_a_remedy(mistake, tmp_path):
    text, *expected = MISTAKES[mistake]
    said = lexicons.refused(tmp_path, text)
    for part in expected:
        assert part in said, said


def test_a_file_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UserError, match="cannot be read") as caught:
            reading.read(path)
        assert str(path) in str(caught.value)
        assert "give a YAML file" in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_file_that_is_not_utf_8_is_named(encoding, tmp_path):
    file = tmp_path / "phrases.yaml"
    file.write_bytes("synonyms: {étui: [étui]}\n".encode(encoding))
    with pytest.raises(UserError, match="cannot be read.*codec.*give a YAML") as caught:
        reading.read(file)
    assert str(file) in str(caught.value)


def test_aliases_without_end_are_refused(tmp_path):
    for text in ("synonyms: &all {a: *all}\n", "a: " + "[" * 3000 + "]" * 3000):
        file = lexicons.write(tmp_path, text)
        with pytest.raises(UserError, match="without end.*alias"):
            reading.read(file)


def test_only_first_and_all_are_known_of_prompts():
    with pytest.raises(UserError, match="prompts 'some' is not one of first, all"):
        reading.read(prompts="some")
