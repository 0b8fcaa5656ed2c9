"""Eight virtual CPU devices for every test, and a small set to train on."""

import contextlib
import io
import os

import jax
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
def cache(tmp_path_factory):
    """What several processes compile alike is compiled once."""
    return tmp_path_factory.mktemp("compiled")
