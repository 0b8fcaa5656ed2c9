"""An index of real crops without an update, for tests of its answers."""

import io
import json
import pathlib

import finetuning
import searching
from PIL import Image

from unipt_jax.search import index


def pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    """The pictures of a folder, sorted."""
    return sorted(folder.rglob("*.jpg"))


def opened(file: pathlib.Path) -> Image.Image:
    """A picture by Pillow alone."""
    return Image.open(io.BytesIO(file.read_bytes()))


def model_of(encoder, name: pathlib.Path, **changes) -> index.Model:
    """What an index says of the model that made it."""
    fields = dict(
        name=str(name),
        checkpoint="best",
        size=None,
        fit="squeeze",
        fingerprint=encoder.fingerprint,
        parts=encoder.identity,
        said=encoder.name,
        width=encoder.model.width,
    )
    return index.Model(**(fields | changes))


def write_index(
    folder: pathlib.Path, encoder, name: pathlib.Path, crops: pathlib.Path, **changes
) -> index.Index:
    """An index of a folder of crops, one after another; changes: see `index.write`."""
    files = pictures(crops)
    states = [file.stat() for file in files]
    shapes = [opened(file).size for file in files]
    table = searching.entries(
        [str(file.relative_to(crops)) for file in files],
        bytes=[state.st_size for state in states],
        mtime_ns=[state.st_mtime_ns for state in states],
        width=[width for width, _ in shapes],
        height=[height for _, height in shapes],
    )
    fields = dict(folders=[str(crops)], entries=table, dtype="float32")
    fields |= dict(model=model_of(encoder, name))
    if "rows" not in changes:
        fields["rows"] = [encoder.encode_image([opened(file) for file in files])]
    return index.write(folder, **(fields | changes))


def results(folder: pathlib.Path) -> dict:
    """What results.json holds."""
    return json.loads((folder / "results.json").read_text())


def job(workdir: pathlib.Path, *fields: str, devices: int = 1) -> tuple[int, str]:
    """Exit code and output of the search job: "k=3" is --config.k=3."""
    flags = [f"--config.{field}" for field in fields]
    argv = ["--config=configs/search.py", *flags, f"--workdir={workdir}"]
    return finetuning.here(*argv, devices=devices)


def done(workdir: pathlib.Path, *fields: str, devices: int = 1) -> str:
    """The output of the job, which must succeed."""
    code, output = job(workdir, *fields, devices=devices)
    assert code == 0, output
    return output


def refused(workdir: pathlib.Path, *fields: str) -> str:
    """The one sentence of the job, which must fail without a traceback."""
    code, output = job(workdir, *fields)
    assert code == 1 and "Traceback" not in output, output
    [error] = [line for line in output.splitlines() if line.startswith("error: ")]
    return error
