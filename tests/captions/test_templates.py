"""Templates: mistakes in them, the articles before their words, how they are filled."""

import lexicons
import pytest

from unipt_jax.captions import lexicon, templates
from unipt_jax.captions.marked import Text
from unipt_jax.errors import UserError


def one(text):
    """A file with one template, in quotation marks, marked."""
    return f'templates:\n  - "{{A person}} {{action.does}}."\n  - "{text}" # here\n'


MISTAKES = {
    "no template for a person with nothing": (
        'replace: [templates]\ntemplates:\n  - "{He} has {bag}." # here\n',
        "without the optional attributes",
        "only required ones",
    ),
    "no template for a person in a dress": (
        (
            "replace: [templates]\ntemplates:\n"
            '  - "{A person} [wears] {upper} and {lower}." # here\n'
        ),
        "without {lower}",
        "only required ones",
    ),
    "no extra for a person in a dress": (
        "replace: [extras]\nextras:\n"
        + "".join(f'  {n}: ["{{He}} has {{{n}}}."]\n' for n in lexicon.OPTIONAL[1:])
        + '  bag:\n    - "{He} has {bag} over {his} {lower.bare}." # here\n',
        "no sentence for 'bag', without {lower}",
        "write one or more",
    ),
    "an extra about two things": (
        'extras:\n  bag:\n    - "{He} has {bag} and {hat}." # here\n',
        "no sentence about 'bag' alone",
        "{bag}",
    ),
    "an extra about another thing": (
        'extras:\n  bag:\n    - "{He} has {hat}." # here\n',
        "no sentence about 'bag' alone",
        "{bag}",
    ),
    "a template that is YAML's mapping": (
        "templates:\n  - {A person} # here\n",
        "no text",
        "quotation marks",
    ),
    "an unknown blank": (
        one("{A person} has {shoes}."),
        "{shoes} in '{A person} has {shoes}.' is no known blank",
        "known are person, he",
    ),
    "an empty blank": (one("A {} sits."), "is no blank", "{name.form}"),
    "a blank with spaces": (one("A { bag } lies."), "is no blank", "{name.form}"),
    "a blank with its own synonyms": (
        one("{A person|someone} sits."),
        "is no blank",
        "{name.form}",
    ),
    "an unknown form": (
        one("{His} {hair.colour} is grey."),
        "has no such form",
        "{hair}, {hair.bare}, {hair.is}",
    ),
    "a form of a pronoun": (
        one("{He} is {he.is}."),
        "has no such form",
        "there are {he}",
    ),
    "an article where the blank has its own": (
        one("{He} wears {an upper}."),
        "takes no article",
        "{the upper.bare}",
    ),
    "an article before a verb": (
        one("{He} is {the action}."),
        "takes no article",
        "write {action}",
    ),
    "a bracket without its partner": (
        one("{A person {action.does}."),
        "bracket without its partner",
        "{blank}",
    ),
    "a bracket the other way": (
        one("{A person} sits]."),
        "bracket without its partner",
        "[synonym]",
    ),
    "brackets of two kinds": (
        one("{A person] sits."),
        "bracket without its partner",
        "{blank}",
    ),
    "a blank in a synonym's bracket": (
        one("{A person} [wears {upper}]."),
        "bracket without its partner",
        "none inside the other",
    ),
    "an unknown group": (
        one("{A person} [flees]."),
        "[flees]",
        "under `synonyms:`",
    ),
    "no capital in a text": (
        one("a man has {hair}."),
        "no whole sentence",
        "capital",
    ),
    "no capital in a blank": (one("{he} sits."), "no whole sentence", "{He}"),
    "no capital in a group": (
        one("[wearing] {upper}, {he} sits."),
        "no whole sentence",
        "[The photo]",
    ),
    "no full stop": (one("{He} sits"), "no whole sentence", "full stop"),
    "a sign that begins a remark": (
        "templates:\n  - A man #1 sits. # here\n",
        "'A man' is no whole sentence",
        "full stop",
    ),
    "two spaces in a template": (
        one("{He}  sits."),
        "has spaces or line ends too many",
        "single spaces",
    ),
    "a template of two lines": (
        "templates:\n  - | # here\n    {He} sits.\n    {He} stands.\n",
        "'{He} sits.\\n{He} stands.\\n' has spaces or line ends too many",
        "single spaces",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_a_remedy(mistake, tmp_path):
    text, *expected = MISTAKES[mistake]
    said = lexicons.refused(tmp_path, text)
    for part in expected:
        assert part in said, said


@pytest.mark.parametrize(
    "phrase, expected",
    [
        ("orange top", "an orange top"),
        ("red top", "a red top"),
        ("elderly man", "an elderly man"),
        ("umbrella", "an umbrella"),
        ("young man", "a young man"),
        ("hat", "a hat"),
        # The sound counts, not the letter.
        ("uniform", "a uniform"),
        ("used bag", "a used bag"),
        ("unicycle", "a unicycle"),
        ("utility vest", "a utility vest"),
        ("European man", "a European man"),
        ("one-piece suit", "a one-piece suit"),
        ("onesie", "a onesie"),
        ("U-neck sweater", "a U-neck sweater"),
        ("hour", "an hour"),
        ("honest man", "an honest man"),
        ("unidentified man", "an unidentified man"),
        ("unmarked bag", "an unmarked bag"),
        ("undershirt", "an undershirt"),
        ("olive T-shirt", "an olive T-shirt"),
        # Letters that are read one by one.
        ("T-shirt", "a T-shirt"),
        ("V-neck sweater", "a V-neck sweater"),
        ("A-line skirt", "an A-line skirt"),
        ("SUV", "an SUV"),
        ("MP3 player", "an MP3 player"),
        ("X-ray", "an X-ray"),
        ("Hawaiian shirt", "a Hawaiian shirt"),
        ("Superman T-shirt", "a Superman T-shirt"),
    ],
)
def test_an_article_goes_by_the_sound_that_follows(phrase, expected):
    assert templates.article(phrase) == expected


@pytest.mark.parametrize(
    "source, expected",
    [
        ("{Him} x.", "Him x."),
        ("{Hair} x.", "Hair x."),
        ("{A hair.bare} x.", "A hair x."),
        ("{The hair.bare} x.", "The hair x."),
        ("X {an umbrella.bare}.", "X an umbrella."),
        ("X {the umbrella.bare}.", "X the umbrella."),
        ("[Open] x [open].", "Opened x opened."),
        ("[An open] x.", None),
        ("X [a open] [the open].", "X an opened the opened."),
        ("[A open] x.", "An opened x."),
        ("X.", "X."),
    ],
)
def test_articles_and_capitals_of_blanks_and_groups(source, expected):
    kinds = {"hair": "hair", "umbrella": "thing"}
    attributes = {n: lexicon.Attribute(n, kind, ()) for n, kind in kinds.items()}
    synonyms = {"open": ("opened",)}
    if expected is None:
        with pytest.raises(UserError, match="no group of synonyms"):
            templates.parse(Text(source), attributes, synonyms)
    else:
        template = templates.parse(Text(source), attributes, synonyms)
        filled = template.fill(lambda b: b.name, lambda group: synonyms[group][0])
        assert filled == expected


def test_a_template_knows_what_it_tells_of_and_which_verbs_agree(tmp_path):
    words = lexicons.read(tmp_path, lexicons.whole())
    told = [set(t.attributes) for t in words.templates]
    assert told == [
        {"age", "gender", "hair", "upper", "lower"},
        {"age", "gender", "hair", "action", "upper"},
        {"gender", "upper", "action"},
        {"action", "age", "gender", "lower", "hat", "bag"},
        {"age", "gender", "hair", "lower"},
        {"age", "gender", "upper", "lower", "glasses"},
    ]
    agreeing = [set(t.agreeing) for t in words.templates]
    assert agreeing == [set(), set(), set(), set(), {"lower"}, set()]
