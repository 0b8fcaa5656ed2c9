"""Real files that packages of the index carry; no code of theirs is run."""

import importlib.metadata
import pathlib
import shutil

import pytest


def find(package: str, name: str) -> pathlib.Path:
    """A file of an installed package, by its name; skips where it is missing."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} (tests/assets.txt), which carries {name}, is missing")
    return next(pathlib.Path(file.locate()) for file in files if file.name == name)


def copy(package: str, name: str, folder: pathlib.Path) -> pathlib.Path:
    """The folder, with that file in it."""
    shutil.copy(find(package, name), folder / name)
    return folder
