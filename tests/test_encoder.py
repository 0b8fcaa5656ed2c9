"""Claims on opening a run, and a model that was exported."""

import dataclasses
import json
import shutil
import time

import jax
import numpy as np
import pytest
import rundirs
from tokenizers import normalizers

import unipt_jax
from configs import export as config_of_export
from unipt_jax import export, systems, tree
from unipt_jax.checkpoint import Checkpoints
from unipt_jax.data import tokenizers


@pytest.fixture(scope="module")
def made(persons, tmp_path_factory):
    """A run directory with a checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("made") / "run"
    small = dict(image=dict(layers=1), text=dict(layers=1))
    section = rundirs.section("vit_b16", **small)
    rundirs.make_run(folder, section, tokenizers.load(persons / "tokenizer"))
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(made, tmp_path / "run")


def test_a_save_in_progress_survives_those_who_read_the_run(run):
    begun = run / "checkpoints" / "6.orbax-checkpoint-tmp" / "params"
    begun.mkdir(parents=True)
    assert systems.check(str(run), "best") == "run"
    assert unipt_jax.load(run).name == f"{run} step 3"
    assert begun.is_dir()
    checkpoints = Checkpoints(run / "checkpoints")  # of the run itself: it was killed
    late = time.monotonic() + 20
    while begun.exists() and time.monotonic() < late:  # removed in the background
        time.sleep(0.01)
    checkpoints.close()
    assert not begun.exists()


def test_to_look_for_checkpoints_makes_no_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    assert checkpoints.best() is None and checkpoints.latest() is None
    checkpoints.close()
    assert not list(tmp_path.iterdir())


def test_a_run_of_a_config_without_evaluation_is_opened(run):
    config = json.loads((run / "config.json").read_text())
    del config["evaluate"]
    (run / "config.json").write_text(json.dumps(config))
    assert systems.check(str(run), "best") == "run"
    assert unipt_jax.load(run).selected_on == "last step"


def test_an_export_of_a_run_chosen_on_test_still_says_so(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    config["evaluate"] = {"val": "test", "records": "data/x"}
    (run / "config.json").write_text(json.dumps(config))
    scores = run / "checkpoints" / "3" / "metrics" / "metrics"
    scores.parent.mkdir()
    scores.write_text(json.dumps({"rank1": 50.0}))
    job = config_of_export.get_config().unlock()
    job.model = str(run)
    export.run(job, str(tmp_path / "export"))
    opened = unipt_jax.load(tmp_path / "export")
    assert opened.selected_on == unipt_jax.load(run).selected_on == "test"
    assert opened.selection_records == "data/x"
    assert systems.selection_folder(str(tmp_path / "export")) == "data/x"


def test_a_grid_with_as_many_patches_as_a_square_comes_back_as_it_was(
    persons, tmp_path
):
    # 8x2 patches are as many as 4x4: taken for those, they would be resized.
    tokenizer = tokenizers.load(persons / "tokenizer")
    section = rundirs.section("vit_b16", image=dict(height=64, width=16))
    params = rundirs.make_run(tmp_path / "run", section, tokenizer)
    config = config_of_export.get_config().unlock()
    config.model = str(tmp_path / "run")
    export.run(config, str(tmp_path / "export"))
    found = tree.flatten(unipt_jax.load(tmp_path / "export").params)
    wanted = params["image"]["position_embedding"]
    np.testing.assert_array_equal(found["image/position_embedding"], wanted)


@pytest.mark.parametrize("tower", ["vit_b16", "clip_b16"])
def test_a_run_and_its_export_have_one_fingerprint(tower, persons, tmp_path):
    tokenizer = tokenizers.load(persons / "tokenizer")
    training = dict(temperature="learned", bias="learned", identities=3)
    section = rundirs.section(tower, **training)
    section["image"]["drop_path"] = 0.1
    rundirs.make_run(tmp_path / "run", section, tokenizer)
    config = config_of_export.get_config().unlock()
    config.model = str(tmp_path / "run")
    export.run(config, str(tmp_path / "export"))
    run = unipt_jax.load(tmp_path / "run")
    exported = unipt_jax.load(tmp_path / "export", dtype="bfloat16")
    assert exported.identity == run.identity
    assert exported.fingerprint == run.fingerprint
    assert len(run.fingerprint) == 64


def test_what_changes_vectors_changes_the_fingerprint(run):
    known = unipt_jax.load(run)

    def differs(**changes):
        other = dataclasses.replace(known, **changes)
        assert other.fingerprint != known.fingerprint
        before, now = known.identity, other.identity
        return [name for name in now if now[name] != before[name]]

    params = jax.tree.map(lambda x: x, known.params)
    bias = params["text_projection"]["bias"]
    params["text_projection"]["bias"] = bias.at[0].add(1e-6)
    assert differs(params=params) == ["weights"]
    assert differs(lengths=(16, 24)) == ["lengths"]
    assert differs(mean=(0.5, 0.4, 0.31)) == ["pixels"]
    assert differs(fit="pad") == ["fit"]
    taller = dataclasses.replace(known.model.image, height=64, parent=None)
    other = dataclasses.replace(known.model, image=taller, parent=None)
    assert differs(model=other) == ["size"]
    gelu = dataclasses.replace(known.model.image, activation="quick_gelu", parent=None)
    other = dataclasses.replace(known.model, image=gelu, parent=None)
    assert differs(model=other) == ["network"]
    cased = tokenizers.Tokenizer(
        "",
        type(known.tokenizer.backend).from_str(known.tokenizer.backend.to_str()),
        known.tokenizer.family,
    )
    assert dataclasses.replace(known, tokenizer=cased).identity == known.identity
    cased.backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    assert differs(tokenizer=cased) == ["tokenizer"]
