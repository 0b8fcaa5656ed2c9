"""A small CLIP and a folder of crops for all tests of search."""

import captioning
import helpers
import pytest
import searching

from unipt_jax import encoder as encoders


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A folder with a small CLIP of random weights."""
    return captioning.write_clip(tmp_path_factory.mktemp("tiny") / "clip")


@pytest.fixture(scope="session")
def crops(tmp_path_factory):
    """A folder of 20 crops, some of them in folders of folders."""
    return searching.write_crops(tmp_path_factory.mktemp("crops") / "crops")


@pytest.fixture(scope="session")
def one(clip):
    """That CLIP, opened on one device."""
    return encoders.load(clip, mesh=helpers.mesh_of(1))
