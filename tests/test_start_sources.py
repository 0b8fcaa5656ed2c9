"""What goes with the weights that a run starts from: their words and their towers."""

import json

import foreign
import pytest

from configs import common
from unipt_jax import sources, start
from unipt_jax.errors import UserError
from unipt_jax.models import unipt


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with the weights of a CLIP and a run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "x.safetensors").touch()
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("~/clip", "{0}/clip"),
        ("~/clip/x.safetensors", "{0}/clip"),
        ("{0}/clip/x.safetensors", "{0}/clip"),
        ("~/run", "{0}/run/tokenizer"),
        ("{0}/run", "{0}/run/tokenizer"),
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
    ],
)
def test_the_tokenizer_lies_where_the_weights_lie(home, name, found):
    init = {"model": name.format(home), "text": ""}
    assert start.tokenizer_of(init) == found.format(home)
    assert start.tokenizer_of({"model": "", "text": init["model"]}) == found.format(
        home
    )


def test_a_file_that_is_not_there_has_no_tokenizer(home):
    with pytest.raises(UserError, match="there is no file or folder .*/clip/y.pt"):
        start.tokenizer_of({"model": "~/clip/y.pt", "text": ""})


# --- functions that no shape shows ---------------------------------------------------

SIZES = dict(features=16, layers=1, heads=2, hidden=24)
OTHER = dict(activation="quick_gelu", norm_eps=1e-6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folders of CLIPs as transformers writes them, by their activation."""
    place = tmp_path_factory.mktemp("clips")
    for activation in ("gelu", "quick_gelu"):
        configs = foreign.clip_configs(SIZES, SIZES, 16, 8, 10, activation)
        foreign.clip_model(*configs).save_pretrained(place / activation)
    return place


def read(name, model, field="model"):
    init = common.init().to_dict() | {field: str(name)}
    return start.read(init, model, None)


def pair(activation):
    grid = dict(height=16, width=16, patch=(8, 8))
    return foreign.clip(SIZES | grid, SIZES, activation, embedding=10)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_a_clip_of_the_same_activation_is_taken_and_another_refused(clips, activation):
    found = read(clips / activation, pair(activation))["model"]
    assert "image/block_0/mlp/fc1/kernel" in found.params
    other = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[activation]
    with pytest.raises(UserError) as caught:
        read(clips / activation, pair(other))
    said = str(caught.value)
    for tower in ("image", "text"):
        assert f"model.{tower}.activation={activation} (here {other})" in said
    assert str(clips / activation) in said and "\n" not in said


def test_of_a_clip_for_one_tower_that_one_is_looked_at(clips):
    with pytest.raises(UserError) as caught:
        read(clips / "gelu", pair("quick_gelu"), field="image")
    assert "model.image.activation" in str(caught.value)
    assert "model.text" not in str(caught.value)


def test_a_clip_without_a_config_is_what_the_config_of_the_run_says(clips, tmp_path):
    file = tmp_path / "x.safetensors"
    file.symlink_to(clips / "gelu" / "model.safetensors")
    for activation in ("gelu", "quick_gelu"):
        assert read(file, pair(activation))["model"].params


def test_a_run_of_other_heads_activation_or_eps_is_refused(monkeypatch):
    model = foreign.dual()
    config = {"model": unipt.section(model)}
    config["model"]["text"] |= OTHER | dict(heads=4)
    source = sources.Source("a run", None, {}, {"config.json": config})
    monkeypatch.setattr(start, "open_any", lambda name: source)
    with pytest.raises(UserError) as caught:
        read("run", model)
    said = str(caught.value)
    for field in ("heads=4 (here 2)", "activation=quick_gelu", "norm_eps=1e-06"):
        assert f"model.text.{field}" in said
    assert "model.image" not in said


def test_fine_tuning_refuses_a_run_of_another_activation_or_eps(tmp_path):
    ours = common.model("vit_b16").to_dict()
    theirs = common.model("vit_b16").to_dict()
    theirs["image"] |= OTHER
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"job": "pretrain", "model": theirs}))
    with pytest.raises(UserError) as caught:
        start.check_towers(str(tmp_path), ours)
    assert "model.image.activation=quick_gelu (here gelu)" in str(caught.value)
    assert "model.image.norm_eps=1e-06 (here 1e-12)" in str(caught.value)
    start.check_towers(str(tmp_path), theirs)
