"""What goes with the weights that a run starts from: their words and their towers."""

import pytest

from unipt_jax import start
from unipt_jax.errors import UserError


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
