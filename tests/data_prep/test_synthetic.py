"""The synthetic persons: what is drawn, what is written, and the set as a whole."""

import dataclasses
import io
import json
import re

import numpy as np
import pytest
import tokenizers
from PIL import Image

from data_prep import synthetic
from data_prep.synthetic import annotations, draw, people, pseudo, words
from unipt_jax.captions.lexicon import OPTIONAL, REQUIRED
from unipt_jax.data import records
from unipt_jax.errors import UserError

ATTRIBUTES = (*REQUIRED, *OPTIONAL)


def read(folder, split, kind=records.PersonRecord):
    return list(records.Records(folder, split, kind))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "set"
    synthetic.build(out, identities=6, seed=3, height=96, width=32, workers=1)
    return out


@pytest.fixture(scope="module")
def shots():
    return list(synthetic.shots("pretrain", 1600, seed=5))


def test_two_workers_build_what_one_builds_and_another_seed_another_set(
    folder, tmp_path
):
    size = {"height": 96, "width": 32, "identities": 6}
    synthetic.build(tmp_path / "two", seed=3, workers=2, **size)
    synthetic.build(tmp_path / "other", seed=4, workers=1, **size)
    for split in synthetic.SPLITS:
        assert read(folder, split) == read(tmp_path / "two", split)
        pairs = zip(read(folder, split), read(tmp_path / "other", split), strict=True)
        assert all(a.image != b.image for a, b in pairs)
    said = [
        read(f / "captions", "pretrain", records.CaptionRecord)
        for f in (folder, tmp_path / "two")
    ]
    assert said[0] == said[1]
    for name in ("vocab.txt", "tokenizer.json"):
        first, second = (f / "tokenizer" / name for f in (folder, tmp_path / "two"))
        assert first.read_bytes() == second.read_bytes()


def test_counts_are_those_of_sizes(folder):
    expected = {"test": 24, "val": 8, "train": 12, "pretrain": 480}
    assert records.splits(folder) == expected == synthetic.sizes(6)
    assert records.metadata(folder)["counts"] == expected
    default = {"test": 1000, "val": 400, "train": 500, "pretrain": 20000}
    assert synthetic.sizes(250) == default
    assert synthetic.sizes(250, 77)["pretrain"] == 77


def test_identities_do_not_cross_splits_and_only_train_has_labels(folder):
    people = {s: read(folder, s) for s in synthetic.SPLITS}
    ids = {s: {r.person_id for r in rows} for s, rows in people.items()}
    assert ids["pretrain"] == {records.UNKNOWN}
    known = [ids[s] for s in ("test", "val", "train")]
    assert sum(map(len, known)) == len(set.union(*known)) == 6 + 2 + 3
    assert [r.label for r in people["train"]] == [i // 4 for i in range(12)]
    for split in ("test", "val", "pretrain"):
        assert {r.label for r in people[split]} == {records.UNKNOWN}
    all_ids = [r.image_id for rows in people.values() for r in rows]
    assert len(set(all_ids)) == len(all_ids)


def test_annotated_images_have_two_captions_and_pretrain_has_none(folder):
    for split in ("test", "val", "train"):
        assert {len(r.captions) for r in read(folder, split)} == {2}
    assert {r.captions for r in read(folder, "pretrain")} == {()}


def test_an_identity_is_seen_by_four_cameras_and_keeps_its_clothes(shots):
    for four in zip(*[iter(shots)] * 4, strict=True):
        assert len({shot.view.camera for shot in four}) == 4
        assert len({shot.attributes["upper"] for shot in four}) == 1


def test_every_attribute_is_there_with_a_legal_value(shots):
    legal = {
        "age": set(people.AGES),
        "gender": set(people.GENDERS),
        "action": {*people.ACTIONS, "riding"},
        "hair": set(people.HAIR["man"]),
    }
    legal |= {k: {"", *v} for k, v in people.VALUES.items()}
    for shot in shots:
        row = shot.attributes
        assert all(isinstance(value, str) for value in row.values())
        for name, values in legal.items():
            assert row[name] in values, name
        assert row["upper"] == people.upper_name(row)
        assert row["lower"] == people.lower_name(row)
    assert len(ATTRIBUTES) == 14


def test_optional_attributes_are_as_frequent_as_they_are_said_to_be():
    crowd = [people.draw_person(np.random.default_rng((0, i))) for i in range(4000)]
    for name, share in people.FREQUENCIES.items():
        found = np.mean([bool(p.attributes[name]) for p in crowd])
        spread = 4 * np.sqrt(share * (1 - share) / len(crowd))
        # children do not smoke, and who holds an umbrella does not ride
        assert share * 0.88 - spread < found < share + spread, name


def texts(shots):
    human = [t for shot in shots for t in synthetic.captions(shot)]
    machine = [synthetic.pseudo_record(shot).captions[0] for shot in shots]
    return human, machine


def attribute_words():
    """Every word by which a table of either style names an attribute's value."""
    found = set()

    def visit(value):
        if isinstance(value, str):
            found.update(annotations.tokens(value.replace("{", " {")))
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, tuple):
            for item in value:
                visit(item)

    human = """COLOURS LOOSE_COLOURS AGED_NOUNS NOUNS LOOSE_NOUNS UPPERS LOOSE_UPPERS
        LOWERS LOOSE_LOWERS SHOES LOOSE_SHOES HAIR LOOSE_HAIR BALD BAGS LOOSE_BAGS HATS
        LOOSE_HATS GLASSES PHONES VEHICLES PATTERNS ACTIONS"""
    for name in human.split():
        visit(getattr(words, name))
    for attribute in pseudo.words().attributes.values():
        for phrase in attribute.phrases:
            visit((phrase.slots, phrase.predicate, tuple(phrase.nouns.values())))
    return found


def skeleton(text, named):
    """The first sentence with runs of attribute words (and pronouns) blanked."""
    pronouns = {"he", "she", "his", "her"}
    kept = re.findall(r"[a-z]+(?:-[a-z]+)*|[.,;:]", text.lower().split(". ")[0])
    kept = ["_" if w in named else "~" if w in pronouns else w for w in kept]
    return re.sub(r"_( _)+", "_", " ".join(kept).rstrip(" ."))


def test_most_annotations_begin_in_a_way_that_no_pseudo_caption_does(shots):
    human, machine = texts(shots)
    named = attribute_words()
    patterns = {skeleton(t, named) for t in machine}
    shared = np.mean([skeleton(t, named) in patterns for t in human])
    assert shared < 0.3  # "A man wears ..." is anyone's


def test_texts_are_grammatical(shots):
    human, machine = texts(shots)
    for text in human + machine:
        assert not re.search(r"[{}_]|  | [.,;]|\.\.|,,", text), text
        assert text[0].isupper() and text.endswith("."), text
        assert not re.search(r"\b(\w+) \1\b", text.lower()), text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
        plural = r"(trousers|jeans|shorts|leggings|pants|slacks|tights|gloves|glasses)"
        assert not re.search(rf"\b[Aa]n? (\w+ )?{plural}\b", text), text
    for text in human:  # a machine's "A man in jeans is ..." is right
        assert not re.search(rf"\b{plural} is\b", text), text


def test_pronouns_are_those_of_the_person(shots):
    for shot in shots:
        wrong = r"\b(she|her)\b" if shot.attributes["gender"] == "man" else r"\bhe\b"
        assert not re.search(wrong, " ".join(synthetic.captions(shot)).lower())


def test_what_cannot_be_seen_is_rarely_told(shots):
    behind = [
        s.attributes | {"glasses": "sunglasses", "facing": facing}
        for s in shots[:600]
        for facing in ("back", "front")
    ]
    told = [
        bool(set(annotations.tokens(" ".join(annotations.annotations(
            row, seed=i)))) & {"sunglasses", "shades", "glasses"})
        for i, row in enumerate(behind)
    ]  # fmt: skip
    assert np.mean(told[::2]) < 0.25
    assert np.mean(told[1::2]) > 0.8


def test_a_fifth_of_the_attributes_is_corrupted(shots):
    wrong, count = 0, 0
    added, dropped = 0, 0
    for shot in shots:
        truth, evidence = shot.attributes, synthetic.pseudo_record(shot).evidence
        assert set(evidence) == set(ATTRIBUTES)
        for name, item in evidence.items():
            assert item["corrupted"] == (item["value"] != truth[name])
            assert bool(item["phrase"]) == bool(item["value"])
            added += not truth[name] and bool(item["value"])
            dropped += bool(truth[name]) and not item["value"]
            if truth[name]:
                wrong, count = wrong + item["corrupted"], count + 1
    share = pseudo.CORRUPTED
    assert abs(wrong / count - share) < 4 * np.sqrt(share * (1 - share) / count)
    # as many things are invented as overlooked, over all people
    assert abs(added - dropped) < 4 * np.sqrt(added + dropped)


def test_captions_are_aligned_with_pretrain(folder):
    images = read(folder, "pretrain")
    said = read(folder / "captions", "pretrain", records.CaptionRecord)
    assert [r.image_id for r in images] == [r.image_id for r in said]
    for record in said:
        for name in REQUIRED:
            assert record.evidence[name]["phrase"]


def test_tokenizer_opens_and_knows_every_word_it_was_made_of(folder):
    path = folder / "tokenizer"
    tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    pieces = (path / "vocab.txt").read_text().splitlines()
    assert pieces[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.get_vocab() == {p: i for i, p in enumerate(pieces)}
    said = read(folder / "captions", "pretrain", records.CaptionRecord)
    known = [c for r in [*said, *read(folder, "train")] for c in r.captions]
    for encoding in tokenizer.encode_batch(known):
        assert 1 not in encoding.ids
        assert encoding.ids[0] == 2 and encoding.ids[-1] == 3
    assert json.loads((path / "tokenizer_config.json").read_text())["do_lower_case"]


def test_transformers_opens_the_tokenizer(folder):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
    pieces = (folder / "tokenizer" / "vocab.txt").read_text().splitlines()
    assert len(tokenizer) == len(pieces)
    assert tokenizer.pad_token_id == 0 and tokenizer.mask_token_id == 4
    ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    text = "A young man in a red-checked shirt."
    assert tokenizer(text)["input_ids"] == ours.encode(text).ids


def test_images_have_the_size_asked_for(folder):
    first = read(folder, "test")[0]
    assert first.image[:2] == b"\xff\xd8"
    shot = next(synthetic.shots("test", 1, seed=0))
    for height, width in ((192, 64), (384, 128), (64, 48)):
        image = draw.render(
            shot.person, shot.view, key=(0,), height=height, width=width
        )
        assert image.size == (width, height) and image.mode == "RGB"
        assert np.asarray(image).std() > 5
    assert Image.open(io.BytesIO(first.image)).size == (32, 96)


def drawn(facing="front", **changes):
    """One plain man, drawn without the camera's grain; changes: of his attributes."""
    for index in range(500):
        person = people.draw_person(np.random.default_rng((9, index)))
        row = person.attributes
        bare = not any(row[name] for name in OPTIONAL)
        if bare and (row["upper_type"], row["shoes"]) == ("T-shirt", "shoes"):
            break
    view = people.draw_view(np.random.default_rng(1), person, 0)
    view = dataclasses.replace(
        view, facing=facing, action="standing", noise=0, blur=0.0, occluder=""
    )
    row = dict(row) | {"upper_pattern": "plain", "lower_type": "jeans"} | changes
    person = dataclasses.replace(
        person, attributes=row, rgb={**person.rgb, "pattern": (240, 30, 200)}
    )
    image = draw.render(person, view, key=(1,), height=192, width=64)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("changes", "facing", "region"),
    [
        ({"hat": "cap"}, "front", (0, 45)),
        ({"hat": "brimmed hat"}, "back", (0, 45)),
        ({"glasses": "sunglasses"}, "front", (10, 45)),
        ({"umbrella": "umbrella"}, "front", (0, 120)),
        ({"bag": "handbag"}, "front", (85, 135)),
        ({"bag": "backpack"}, "back", (30, 105)),
        ({"gloves": "gloves"}, "front", (80, 115)),
        ({"upper_pattern": "logo"}, "front", (40, 90)),
        ({"upper_pattern": "striped"}, "back", (30, 120)),
        ({"lower_type": "shorts"}, "front", (95, 192)),
        ({"shoes": "boots"}, "front", (140, 192)),
    ],
)
def test_an_attribute_changes_its_own_region(changes, facing, region):
    rows = np.abs(drawn(facing) - drawn(facing, **changes)).sum(axis=(1, 2))
    changed = np.flatnonzero(rows)
    assert len(changed), "nothing is drawn of it"
    assert region[0] <= changed.min() and changed.max() < region[1]


def test_what_is_hidden_from_behind_is_not_drawn():
    for change in ({"glasses": "glasses"}, {"upper_pattern": "logo"}):
        assert (drawn("back") == drawn("back", **change)).all()
        assert (drawn("front") != drawn("front", **change)).any()


def test_a_set_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match="identities"):
        synthetic.build(tmp_path / "none", identities=0)
    assert not (tmp_path / "none").exists()
