"""A lexicon, a small CLIP, and a folder of pictures for all tests of captions."""

import captioning
import pytest

from unipt_jax.captions import reading


@pytest.fixture(scope="session")
def words():
    """The lexicon of the house."""
    return reading.read()


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """A folder with a small CLIP of random weights."""
    return captioning.write_clip(tmp_path_factory.mktemp("tiny") / "clip")


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 43 good pictures, some of them in folders of folders."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    for number in range(43):
        folder = root / ("", "cam1", "cam1/b", "cam2/day 3/ä")[number % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03}.jpg").write_bytes(captioning.jpeg(number))
    (root / "notes.txt").write_text("no picture, and not named as one")
    return root


@pytest.fixture(scope="session")
def captioner(persons, cache, clip, photos):
    """Captions those pictures with that CLIP."""
    plain = captioning.Captioner(persons, cache, clip)
    return plain.of(data__images=photos)


@pytest.fixture(scope="session")
def whole(captioner, tmp_path_factory):
    """What the job writes of the pictures on 8 devices, never disturbed."""
    return captioner.make(tmp_path_factory.mktemp("whole") / "captions", devices=8)
