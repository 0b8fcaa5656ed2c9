"""Trees that several files of tests prepare."""

import building
import pytest
import trees


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """A tree as LUPerson's; not to be changed."""
    return building.crops(tmp_path_factory.mktemp("crops") / "raw")


@pytest.fixture(scope="session")
def whole(raw, tmp_path_factory):
    """The set, built in one go by one process, without Beam."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert building.here(*building.command(raw, out, "--workers", 1))[0] == 0
    return out


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a set below `raw`, whose counts pass for the published ones."""

    def maker(name, **options):
        tree = trees.MAKERS[name](tmp_path / "raw", **options)
        tree.publish(monkeypatch)
        return tree

    return maker


@pytest.fixture
def cuhk(make):
    return make("cuhk_pedes")
