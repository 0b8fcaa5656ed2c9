"""Claims on parameter paths and first-match rules."""

import flax.struct
import pytest

from unipt_jax import tree


@flax.struct.dataclass
class State:
    params: dict
    step: int


PARAMS = {
    "text": {"block_0": {"kernel": 1, "bias": 2}},
    "image": {"kernel": 3, "norm": {"scale": 4}},
}


def test_paths_join_the_names_of_dicts_fields_and_places_by_slashes():
    state = State(params={"b": [5, 6], "a": {"kernel": 7}}, step=8)
    assert tree.flatten(state) == {
        "params/a/kernel": 7,
        "params/b/0": 5,
        "params/b/1": 6,
        "step": 8,
    }


def test_flatten_keeps_the_order_of_the_leaves():
    assert list(tree.flatten(PARAMS)) == [
        "image/kernel",
        "image/norm/scale",
        "text/block_0/bias",
        "text/block_0/kernel",
    ]


def test_the_first_rule_whose_pattern_is_found_gives_the_value():
    rules = [
        ("block_0/b", "late"),
        ("^text/", "text"),
        ("bias$|scale$", 0),
        ("", "all"),
    ]
    # "bias$|scale$" is met by the scale alone: both earlier rules have the bias.
    assert tree.assign(PARAMS, rules) == {
        "text": {"block_0": {"kernel": "text", "bias": "late"}},
        "image": {"kernel": "all", "norm": {"scale": 0}},
    }


def test_a_pattern_may_be_found_anywhere_in_a_path_unless_anchored():
    assert tree.assign({"a": {"text": 1}}, [("text", "x")]) == {"a": {"text": "x"}}
    with pytest.raises(ValueError, match="no rule for"):
        tree.assign({"a": {"text": 1}}, [("^text", "x")])


def test_leaves_without_a_rule_are_all_named():
    with pytest.raises(ValueError) as error:
        tree.assign(PARAMS, [("^text/", 1)])
    message = str(error.value)
    assert "'image/kernel'" in message and "'image/norm/scale'" in message
    assert "text/block_0" not in message
    assert message.endswith("nothing matched by none")


def test_rules_that_match_nothing_are_all_named():
    with pytest.raises(ValueError) as error:
        tree.assign(PARAMS, [("^pgu/", 1), ("kernal$", 2), ("", 3)])
    message = str(error.value)
    assert "no rule for none" in message
    assert message.endswith("nothing matched by ['^pgu/', 'kernal$']")


def test_a_rule_shadowed_by_an_earlier_one_still_counts_as_used():
    values = tree.assign({"a": 1}, [("a", "first"), ("", "rest")])
    assert values == {"a": "first"}
