"""How right captions are, against examples counted by hand."""

import pytest

from unipt_jax.captions import quality


def evidence(words, **said):
    """The evidence of an image: the first phrase of what is required, nothing more."""
    out = {}
    for name, attribute in words.attributes.items():
        value = "" if attribute.optional else attribute.phrases[0].value
        out[name] = {"value": said.get(name, value), "phrase": "", "probability": 0.5}
    assert set(said) <= set(out)
    return out


def figures(words, *images):
    score = quality.Score(words)
    for said, truth in images:
        score.add(evidence(words, **said), truth)
    return score.figures()


def test_accuracy_balanced_accuracy_and_majority_of_a_fact(words):
    """4 men, 3 of them seen as such; 2 women, 1 seen as such."""
    said = ["man", "man", "man", "woman", "woman", "man"]
    true = ["man", "man", "man", "man", "woman", "woman"]
    images = [(dict(gender=s), dict(gender=t)) for s, t in zip(said, true, strict=True)]
    found = figures(words, *images)
    assert found == {
        "facts": {
            "gender": {
                "accuracy": 66.67,  # 4 of 6
                "balanced": 62.5,  # the mean of 3/4 and 1/2
                "majority": 66.67,  # 4 of 6
                "majority_balanced": 50.0,
                "images": 6,
            }
        },
        "whole": {"gender": 66.67},
        "mean": 66.67,
    }


def test_found_is_whether_a_thing_is_there_at_all_of_whatever_kind(words):
    """10 images: 6 without a bag, of which 1 is said to have one; of 2 backpacks one is
    found and one is taken for a handbag; of 2 handbags one is found, one is missed."""
    pairs = [("", "")] * 5 + [("backpack", "")]
    pairs += [("backpack", "backpack"), ("handbag", "backpack")]
    pairs += [("handbag", "handbag"), ("", "handbag")]
    found = figures(words, *((dict(bag=s), dict(bag=t)) for s, t in pairs))
    row = found["facts"]["bag"]
    assert row["accuracy"] == 70.0  # 5 + 1 + 1
    assert row["balanced"] == pytest.approx(
        100 * (5 / 6 + 1 / 2 + 1 / 2) / 3, abs=0.005
    )
    assert row["majority"] == 60.0 and row["majority_balanced"] == 33.33
    assert row["found"] == {
        "accuracy": 80.0,  # 5 + 2 + 1
        "balanced": 79.17,  # the mean of 5/6 and 3/4
        "majority": 60.0,
        "majority_balanced": 50.0,
        "images": 10,
    }


def test_a_thing_that_all_have_or_none_has_no_figure_of_finding_it(words):
    for truth in ("", "cap"):
        found = figures(
            words, (dict(hat="cap"), dict(hat=truth)), ({}, dict(hat=truth))
        )
        assert "found" not in found["facts"]["hat"]
        assert found["facts"]["hat"]["accuracy"] == 50.0


def test_clothes_are_counted_fact_by_fact_and_whole(words):
    truth = {
        "upper_colour": "red",
        "upper_pattern": "plain",
        "upper_type": "shirt",
    }
    found = figures(
        words,
        (dict(upper="red shirt"), truth),
        (dict(upper="red striped shirt"), truth),
        (dict(upper="blue shirt"), truth),
        (dict(upper="blue striped polo shirt"), truth),
    )
    shares = {fact: row["accuracy"] for fact, row in found["facts"].items()}
    assert shares == {"upper_colour": 50, "upper_pattern": 50, "upper_type": 75}
    assert found["whole"] == {"upper": 25.0} and found["mean"] == 25.0


def test_facts_that_are_not_known_are_not_counted(words):
    found = figures(
        words,
        (dict(upper="red shirt", gender="man"), {"upper_colour": "red"}),
        (dict(upper="red shirt", gender="man"), {"gender": "woman", "shoes": "black"}),
        (dict(gender="man"), {}),
    )
    assert {fact: row["images"] for fact, row in found["facts"].items()} == {
        "upper_colour": 1,
        "gender": 1,
    }
    assert found["whole"] == {"upper": 100.0, "gender": 0.0}
    assert found["mean"] == 50.0  # over the attributes that are known of somebody
    assert figures(words, ({}, {})) == {"facts": {}, "whole": {}, "mean": 0.0}


def test_the_table_has_every_figure_and_its_columns_stand_straight(words):
    found = figures(
        words,
        (dict(upper="red shirt", bag="backpack"), dict(upper_colour="red", bag="")),
        (dict(upper="blue shirt"), dict(upper_colour="red", bag="backpack")),
    )
    lines = quality.table(found).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [line.split() for line in lines]
    assert cells[0] == ["fact", "accuracy", "majority", "balanced", "majority"]
    assert ["upper_colour", "50.0", "100.0", "50.0", "100.0"] in cells
    assert ["bag", "0.0", "50.0", "0.0", "50.0"] in cells
    assert ["bag,", "there", "at", "all", "0.0", "50.0", "0.0", "50.0"] in cells
    assert ["upper,", "whole", "50.0"] in cells
    assert cells[-1] == ["mean", "of", "the", "attributes", "25.0"]
