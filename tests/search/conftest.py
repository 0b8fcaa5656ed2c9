"""A small CLIP and a folder of crops for all tests of search."""

import captioning
import helpers
import pytest
import searching
import serving

from unipt_jax import encoder as encoders
from unipt_jax.search import work


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


@pytest.fixture
def embedded(monkeypatch):
    """How many pictures each batch embeds."""
    real, counts = work.Work._embed, []

    def embed(self, pixels, wanted):
        counts.append(int(wanted.sum()))
        return real(self, pixels, wanted)

    monkeypatch.setattr(work.Work, "_embed", embed)
    return counts


@pytest.fixture(scope="session")
def served(clip, tmp_path_factory):
    """A searcher for a page, of crops that a test may change and put back."""
    return serving.open_searcher(clip, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def url(served):
    """Where a page is served, which takes pictures of up to `serving.LIMIT` bytes."""
    pytest.importorskip("gradio")
    from unipt_jax.search import demo

    with demo.running(served, upload_mb=serving.LIMIT / 1e6) as url:
        yield url


@pytest.fixture
def visitor(url):
    """A session of its own at that page."""
    return serving.Visitor(url)
