"""Small lexicons that tests write, fixed, so that the data files may change freely."""

import pathlib

import pytest

from unipt_jax.captions import lexicon, reading
from unipt_jax.errors import UserError

HERE = "# here"  # stands on the line that an error must name

# All that captions need, nothing of ours. Each optional thing has one phrase, one
# word and one sentence of its own.
REPLACE = "replace: [prompts, attributes, templates, extras, synonyms]"
ATTRIBUTES = """\
prompts: ["A photo of someone {says}."]
attributes:
  age:
    kind: age
    says: "{age}"
    phrases:
      child:
        {asked: child, words: [little], is: [only a child], nouns: {he: [boy], she: [girl]}}
      adult: {asked: adult, words: [adult, grown-up], is: ["in {his} prime"]}
  gender:
    kind: gender
    phrases:
      man: {words: [man, gentleman], pronoun: he}
      woman: {words: [woman, lady], pronoun: she}
  upper:
    kind: clothes
    says: "wearing {upper}"
    colours: {orange: [orange], red: [red, crimson]}
    patterns:
      plain:
      striped: {before: [striped]}
      logo: {after: [with a logo]}
    garments:
      shirt: {words: [shirt, top]}
      dress: {words: [dress], patterns: [plain], without: [lower]}
  lower:
    kind: clothes
    colours: {black: [black], azure: [azure]}
    patterns: {plain: {}}
    garments:
      jeans: {words: [jeans], number: many}
      skirt: {words: [skirt]}
  action:
    kind: action
    phrases:
      walking: {verbs: {walking: walks, strolling: strolls}}
      sitting: {verbs: {sitting: sits}}
  hair:
    kind: hair
    phrases:
      bald: {words: [bald head], number: one, is: [head is bald]}
      short: {words: [short hair], number: mass, is: [hair is short]}
  bag:
    {kind: thing, absent: [without a bag], phrases: {backpack: {words: [backpack]}}}
  glasses:
    kind: thing
    absent: [without glasses]
    phrases: {glasses: {words: [glasses, eyeglasses], number: many}}
  smoke:
    {kind: thing, absent: [not smoking], phrases: {cigarette: {words: [cigarette]}}}
  hat:
    {kind: thing, absent: [without a hat], phrases: {cap: {words: [cap]}}}
  cellphone:
    {kind: thing, absent: [without a phone], phrases: {phone: {words: [phone]}}}
  umbrella:
    {kind: thing, absent: [in the dry], phrases: {umbrella: {words: [umbrella]}}}
  gloves:
    kind: thing
    absent: [without gloves]
    phrases: {gloves: {words: [gloves], number: many}}
  vehicle:
    {kind: thing, absent: [on foot], phrases: {bicycle: {words: [bicycle]}}}
"""
TEMPLATES = (
    "{A person} with {hair} [wears] {upper} and {lower}.",
    "{His} {hair.is}. {The person} is {age.is}, {action} in {upper}.",
    "{The upper.noun} of this {gender} is {upper.colour}. {He} {action.does}.",
    "{Action}, {a person} in {lower} [wears] {hat} and [carries] {bag}.",
    "[A photo] of {a person} with {hair}. {His} {lower.noun} {lower.are} {lower.colour}.",
    "{The person} [wears] {upper}, {lower} and {glasses}.",
)
EXTRAS = {
    "bag": ["{He} [carries] {bag}."],
    "glasses": ["{He} [wears] {glasses}.", "{His} {glasses.bare} {glasses.are} dark."],
    "smoke": ["{He} is smoking {smoke}."],
    "hat": ["{Hat} is on {his} head.", "{Hat} sits on {his} {hair.bare}."],
    "cellphone": ["{He} is using {cellphone}."],
    "umbrella": ["Above {him} is {umbrella}."],
    "gloves": ["{He} [wears] {gloves}."],
    "vehicle": ["{He} has {vehicle}, and looks at {vehicle.them}."],
}
SYNONYMS = {
    "wears": ["wears", "is wearing"],
    "carries": ["carries", "totes"],
    "photo": ["photo", "image"],
}


def whole(templates=TEMPLATES, extras=(), synonyms=(), attributes=ATTRIBUTES):
    """A file that needs nothing of ours. extras and synonyms: added to the small ones."""
    lines = [REPLACE, attributes, "templates:"]
    lines += [f'  - "{template}"' for template in templates]
    for section, entries in (
        ("extras", {**EXTRAS, **dict(extras)}),
        ("synonyms", {**SYNONYMS, **dict(synonyms)}),
    ):
        lines.append(f"{section}:")
        for name, texts in entries.items():
            lines += [f"  {name}:", *(f'    - "{text}"' for text in texts)]
    return "\n".join(lines) + "\n"


def write(folder: pathlib.Path, text: str) -> pathlib.Path:
    """The text as a file."""
    file = folder / "phrases.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def read(folder: pathlib.Path, text: str, prompts: str = "first") -> lexicon.Lexicon:
    """The lexicon with a user's file of that text."""
    return reading.read(write(folder, text), prompts)


def line_of(text: str, part: str) -> int:
    """The number of the only line that has the part."""
    [number] = [n for n, line in enumerate(text.splitlines(), 1) if part in line]
    return number


def refused(folder: pathlib.Path, text: str) -> str:
    """What the error says after FILE:LINE, the line that is marked in the text."""
    file = write(folder, text)
    with pytest.raises(UserError) as caught:
        reading.read(file)
    said = str(caught.value)
    assert "\n" not in said
    start = f"{file}:{line_of(text, HERE)}: "
    assert said.startswith(start)
    return said.removeprefix(start)


def chosen(words: lexicon.Lexicon, **values: str) -> dict[str, lexicon.Phrase]:
    """Attribute -> its phrase of that value; of those not named, the required first."""
    out = {}
    for name, attribute in words.attributes.items():
        value = values.get(name, "" if attribute.optional else None)
        phrases = [p for p in attribute.phrases if value in (None, p.value)]
        if value != "":
            out[name] = phrases[0]
    return out
