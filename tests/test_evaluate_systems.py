"""What a command line names is found, told apart, and looked at before anything long."""

import json

import pytest

from unipt_jax import encoder, systems
from unipt_jax.errors import UserError
from unipt_jax.systems import System, read_sets, read_systems


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with run directories, in which names are meant."""
    monkeypatch.chdir(tmp_path)
    systems._exists.cache_clear()
    for name in ("a", "seed1", "seed2", "with,comma", "lr=3", "deep/a", "star*"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"job": "x", "model": {}}))
    (tmp_path / "runs" / "seed3").mkdir()  # no run
    (tmp_path / "runs" / "seed4.log").write_text("")
    return tmp_path


def named(text):
    return [(one.name, *one.models) for one in read_systems(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/a", [("a", "runs/a")]),
        ("runs/a,runs/seed1", [("a", "runs/a"), ("seed1", "runs/seed1")]),
        (" runs/a , runs/seed1,", [("a", "runs/a"), ("seed1", "runs/seed1")]),
        ("mine=runs/a", [("mine", "runs/a")]),
        ("runs/with,comma", [("with,comma", "runs/with,comma")]),
        (
            "runs/a,x=runs/with,comma,runs/seed1",
            [("a", "runs/a"), ("x", "runs/with,comma"), ("seed1", "runs/seed1")],
        ),
        ("runs/lr=3", [("lr=3", "runs/lr=3")]),
        ("runs/lr=9", [("lr=9", "runs/lr=9")]),
        ("x=runs/lr=3", [("x", "runs/lr=3")]),
        ("runs/star*", [("star*", "runs/star*")]),
        ("runs/seed*", [("seed*", "runs/seed1", "runs/seed2")]),
        ("s=runs/see?[12]", [("s", "runs/seed1", "runs/seed2")]),
        ("r*/deep/*", [("*", "runs/deep/a")]),
        ("runs/a,runs/deep/a", [("runs/a", "runs/a"), ("runs/deep/a", "runs/deep/a")]),
        ("openai/clip-vit", [("clip-vit", "openai/clip-vit")]),
    ],
)
def test_systems_are_as_the_text_names_them(runs, text, expected):
    assert named(text) == expected


def test_a_pattern_works_from_the_root(runs):
    found = read_systems(f"{runs}/runs/seed*")
    models = tuple(str(runs / "runs" / f"seed{i}") for i in (1, 2))
    assert found == (System("seed*", models),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to evaluate: give a run directory with --config.model=DIR"),
        (" , ", "nothing to evaluate"),
        ("runs/none*", "'runs/none*' matches nothing"),
        ("nowhere/a*", "'nowhere/a*' matches nothing"),
        ("runs/seed[34]*", "matches 2 names, none a run directory"),
        ("runs/a,runs/a", "names 'runs/a' twice"),
        ("x=runs/a,y=runs/a", "names 'runs/a' twice"),
    ],
)
def test_a_mistake_in_the_models_is_one_sentence(runs, text, words):
    with pytest.raises(UserError) as caught:
        read_systems(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_sets_have_the_split_behind_them_or_the_common_one(persons):
    text = f"{persons},{persons}:val"
    assert read_sets(text, "test") == ((str(persons), "test"), (str(persons), "val"))
    assert read_sets(f" {persons}:train,", "test") == ((str(persons), "train"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing to evaluate on: give a record set"),
        ("{0}:tset", "has no split 'tset'; it has pretrain, test, train, val"),
        ("{0},{0}", "names split 'test' of {0} twice"),
        ("{0},{0}:test", "names split 'test' of {0} twice"),
        ("{0},/nowhere/set", "no record set at /nowhere/set"),
        ("/no:where/set", "no record set at /no:where/set"),
    ],
)
def test_a_mistake_in_the_sets_is_one_sentence(persons, text, words):
    with pytest.raises(UserError) as caught:
        read_sets(text.format(persons), "test")
    assert words.format(persons) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sets_are_called_by_folder_and_split_or_whole_where_two_are_alike():
    short = [("data/x", "test"), ("data/x", "val"), ("more/y", "test")]
    assert systems.set_names(short) == ["x/test", "x/val", "y/test"]
    alike = [("data/x", "test"), ("more/x", "test"), ("data/x", "val")]
    assert systems.set_names(alike) == ["data/x/test", "more/x/test", "x/val"]


def test_the_set_of_a_selection_is_the_one_evaluated_on_else_the_one_trained_on(runs):
    file = runs / "runs" / "a" / "config.json"
    config = {"job": "x", "model": {}, "data": {"records": "data/x"}}
    file.write_text(json.dumps(config))
    assert systems.selection_folder("runs/a") == "data/x"
    file.write_text(json.dumps(config | {"evaluate": {"records": ""}}))
    assert systems.selection_folder("runs/a") == "data/x"
    file.write_text(json.dumps(config | {"evaluate": {"records": "data/y"}}))
    assert systems.selection_folder("runs/a") == "data/y"
    assert systems.selection_folder("runs/seed3") is None
    exported = {"format": encoder.EXPORT, "model": {}}
    file.write_text(json.dumps(exported | {"selection_records": "data/z"}))
    assert systems.selection_folder("runs/a") == "data/z"
    file.write_text(json.dumps(exported))  # of before that was written
    assert systems.selection_folder("runs/a") is None


def test_one_folder_is_the_same_by_any_name(runs):
    (runs / "link").symlink_to(runs / "runs")
    assert systems.same_folder("runs/a", f"{runs}/link/../runs/a/")
    assert systems.same_folder("link/a", "runs/a")
    assert not systems.same_folder("runs/a", "runs/deep/a")


# --- several runs as one system ------------------------------------------------------

CONFIG = {"job": "finetune", "model": {"image": {"layers": 3}}, "lr": 0.1, "steps": 50}
CONFIG |= {"init": {"model": "runs/p1", "scratch": False}, "tokenizer": "runs/p1/t"}


@pytest.fixture
def seeds(tmp_path):
    """Makes run directories from changes of a config; the notes on them as one."""

    def notes(*changes, steps=None):
        for i, change in enumerate(changes):
            folder = tmp_path / f"s{i}"
            (folder / "checkpoints" / "30").mkdir(parents=True)
            last = steps[i] if steps else 50
            (folder / "checkpoints" / str(last)).mkdir(exist_ok=True)
            (folder / "checkpoints" / "70.orbax-checkpoint-tmp").mkdir()
            config = CONFIG | {"seed": i} | change
            (folder / "config.json").write_text(json.dumps(config))
        [system] = read_systems(f"{tmp_path}/s*")
        return system.notes

    return notes


def test_runs_that_differ_in_seed_and_start_alone_are_not_noted(seeds):
    start = {"init": {"model": "runs/p2", "scratch": False}, "tokenizer": "runs/p2/t"}
    assert seeds({}, start, {"added": 1}) == ()


def test_a_single_run_is_not_noted(seeds):
    assert seeds({}, steps=[30]) == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.2}, "seeds: lr 0.1 (s0, s2) and 0.2 (s1)"),
        (
            {"model": {"image": {"layers": 4}}},
            "model.image.layers 3 (s0, s2) and 4 (s1)",
        ),
        (
            {"init": {"model": "", "scratch": True}},
            "init.scratch false (s0, s2) and true",
        ),
        (
            {"init": {"model": "", "scratch": False}},
            'init.model "given" (s0, s2) and ""',
        ),
        ({"seed": 2}, "s1, s2 have the same seed, 2"),
    ],
)
def test_runs_that_are_not_seeds_of_one_config_are_noted(seeds, change, words):
    [note] = seeds({}, change, {})
    assert words in note


def test_fields_beyond_many_are_counted(seeds):
    fields = [{f"field{i}": value for i in range(10)} for value in (1, 2)]
    [note] = seeds(*fields)
    assert "field7 1 (s0) and 2 (s1); 2 more fields" in note and "field8" not in note


def test_an_unfinished_run_is_noted_by_its_steps_or_by_the_others(seeds):
    assert seeds({}, {}, steps=[50, 40]) == (
        "s1 is unfinished: its last checkpoint is of step 40, of 50",
    )


def test_an_unfinished_run_of_epochs_is_noted_by_the_others(seeds):
    assert seeds({"steps": 0}, {"steps": 0}, steps=[40, 60]) == (
        "s0 may be unfinished: its last checkpoint is of step 40, another's of 60",
    )


def test_a_run_of_fewer_steps_that_took_them_all_is_finished(seeds):
    [note] = seeds({"steps": 40}, {}, steps=[40, 50])
    assert "steps 40 (s0) and 50 (s1)" in note
