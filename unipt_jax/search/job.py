"""The search job: folders of crops and a model in, an index, answers and a page out."""

import importlib.util
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from unipt_jax import encoder as encoders
from unipt_jax import report, rundir, sharding
from unipt_jax.data import images
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError
from unipt_jax.search import answers, queries, results_page, searcher
from unipt_jax.search import index as indexes
from unipt_jax.search.index import Index, Model
from unipt_jax.search.queries import Query
from unipt_jax.search.scan import plain
from unipt_jax.search.searcher import Searcher
from unipt_jax.search.update import update

# Fields that say how an index is made, as they are where nothing is said.
OF_IMAGES = {"boxes": None, "dtype": "", "content": False, "overwrite": False}
OF_A_MODEL = {"size": (0, 0), "fit": "squeeze"}
EXTRAS = {"serve": "gradio", "faiss": "faiss"}  # field -> what it needs


def run(config: Any, workdir: str) -> None:
    """The job: brings the index in `workdir` up to date, answers, exports and serves it.

    Each where the config asks for it, and in that order.
    """
    folder = _check(config, workdir)
    asked = queries.read(config.query)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    index, encoder = _index(config, folder, mesh)
    if asked or config.serve:
        encoder = encoder or _load(config, index, mesh)
        found = searcher.make(encoder, index, approximate=config.approximate)
        if asked:
            _answer(config, found, asked, _out(config, folder))
    if config.faiss:
        from unipt_jax.search import faiss_export

        faiss_export.write(index, config.faiss)
    if config.serve:
        from unipt_jax.search import demo  # of an extra

        demo.serve(found, **config.demo)


def _check(config: Any, workdir: str) -> pathlib.Path:
    """The folder of the index. Raises UserError for what cannot be done."""
    if jax.process_count() > 1:
        raise UserError("search needs one process; leave --processes out")
    folder = indexes.local(workdir)
    out = _out(config, folder)
    for name, path in (("workdir", folder), ("config.out", out)):
        if path.exists() and not path.is_dir():
            raise UserError(
                f"--{name}={plain(str(path))} is a file; give a folder, or a new name"
            )
    if config.query:
        _check_writable(out)
    _check_values(config)
    _check_extras(config)
    there = indexes.exists(folder)
    asked = config.query or config.serve or config.faiss
    if there and not config.images and not asked:
        raise UserError(
            f"the index {folder} is there, and nothing is asked of it: give "
            "--config.query=SENTENCE, --config.serve=True, --config.faiss=FILE, or "
            "--config.images=FOLDER to bring it up to date"
        )
    if config.images and not config.model and (config.overwrite or not there):
        raise UserError(
            "no model to make an index with: give a run directory, an export or CLIP "
            "weights with --config.model=DIR"
        )
    own = epath.Path(folder)
    if encoders.is_run(own) or encoders.is_export(own):
        raise UserError(
            f"{folder} is a model's folder; give an index another --workdir"
        )
    return folder


def _out(config: Any, folder: pathlib.Path) -> epath.Path:
    """Where results.json and results.html go."""
    return epath.Path(os.path.expanduser(config.out) or folder)


def _check_writable(out: epath.Path) -> None:
    """Raises UserError where no answer can be written, if that can be known."""
    if "://" in str(out):
        return
    near = pathlib.Path(os.path.abspath(out))
    while not near.exists():
        near = near.parent
    if not os.access(near, os.W_OK | os.X_OK):
        raise UserError(
            f"{plain(str(near))} cannot be written, where the answers would go; give a "
            "folder for them with --config.out=DIR"
        )


def _check_values(config: Any) -> None:
    for name, lacks in (("images", "" in config.images), ("boxes", config.boxes == "")):
        if lacks:
            raise UserError(
                f"--config.{name} is empty, as of a shell variable that is not set; give "
                + ("a folder of pictures" if name == "images" else "a CSV file")
                + ", or leave it out"
            )
    for name, low in (("k", 1), ("threads", 1), ("batch_size", 0)):
        if config[name] < low:
            raise UserError(f"{name}={config[name]} must be {low} or more")
    for name, known in (("dtype", indexes.DTYPES), ("fit", images.FITS)):
        if config[name] not in known and (name != "dtype" or config.dtype):
            raise UserError(f"{name} '{config[name]}' is not one of {', '.join(known)}")
    if any(config.size) and (len(config.size) != 2 or min(config.size) < 1):
        raise UserError(
            f"size={tuple(config.size)} must be a height and a width, or (0, 0) for the "
            "model's own"
        )
    for fields, needed in ((OF_IMAGES, "images"), (OF_A_MODEL, "model")):
        given = [name for name, value in fields.items() if config[name] != value]
        if given and not (config.images and config[needed]):
            raise UserError(
                f"{given[0]} says how an index is made: give --config.{needed} with it"
                + (" and --config.images" if needed != "images" else "")
                + f", or leave --config.{given[0]} out"
            )


def _check_extras(config: Any) -> None:
    """Raises UserError where what a field needs is not installed."""
    for field, package in EXTRAS.items():
        if config[field] and importlib.util.find_spec(package) is None:
            extra = {"gradio": "demo"}.get(package, package)
            raise UserError(
                f"--config.{field} needs {package}, which is not installed; install it "
                f"with pip install '.[{extra}]'"
            )
    if config.serve:
        from unipt_jax.search import demo

        demo.check_limit(config.demo.upload_mb)


def _index(config: Any, folder: pathlib.Path, mesh: Mesh) -> tuple[Index, Any]:
    """The index, up to date where images are given, and its model if that is loaded."""
    if not config.images:
        return indexes.read(folder), None
    said = plain(config.model or f"the model of {folder}")
    print(f"reading {said} ...", flush=True)
    encoder, model = _model(config, folder, mesh)
    batch_size = sharding.per_device(config.batch_size) * mesh.size
    _announce(config, encoder, batch_size)
    index = update(
        encoder,
        model,
        folder,
        images=tuple(config.images),
        boxes=config.boxes or "",
        dtype=config.dtype,
        batch_size=batch_size,
        threads=config.threads,
        content=config.content,
        overwrite=config.overwrite,
    )
    return index, encoder


def _model(config: Any, folder: pathlib.Path, mesh: Mesh) -> tuple[Encoder, Model]:
    """The model to make an index with: the config's, or the one that made it before."""
    if config.model:
        size = tuple(config.size) if any(config.size) else None
        options = dict(checkpoint=str(config.checkpoint), size=size, fit=config.fit)
        encoder = encoders.load(config.model, mesh=mesh, **options)
        path = os.path.expanduser(config.model)
        here = os.path.abspath(path) if os.path.exists(path) else ""  # else a hub id
        name = here or config.model
    else:
        before = indexes.read(folder)
        encoder = _load(config, before, mesh)
        made = before.model
        checkpoint = _checkpoint(config) or made.checkpoint
        options = dict(checkpoint=checkpoint, size=made.size, fit=made.fit)
        name = made.name
    return encoder, Model(
        name=name,
        fingerprint=encoder.fingerprint,
        parts=encoder.identity,
        said=encoder.name,
        width=encoder.model.width,
        **options,
    )


def _load(config: Any, index: Index, mesh: Mesh) -> Encoder:
    """The model of an index, where and at which step the config says it is now."""
    return searcher.load_model(
        index, model=config.model, checkpoint=_checkpoint(config), mesh=mesh
    )


def _checkpoint(config: Any) -> str:
    """The checkpoint that a command asks for; "" for that of the index."""
    own = not config.model and config.checkpoint == "best"
    return "" if own else str(config.checkpoint)


def _announce(config: Any, encoder: Encoder, batch_size: int) -> None:
    """Prints the choices in force."""
    height, width = encoder.size
    values = {
        "images": ", ".join(config.images),
        "boxes": config.boxes or "none: each picture is one person",
        "model": encoder.name,
        "pictures": f"{height}x{width}, fit {encoder.fit}",
        "embeddings": f"{encoder.model.width} numbers, "
        + (
            config.dtype or f"{indexes.DTYPES[0]} unless the index is there with others"
        ),
        "devices": f"{encoder.mesh.size} ({jax.devices()[0].device_kind}), "
        f"{batch_size} pictures at a time",
    }
    report.choices("search", {name: plain(value) for name, value in values.items()})


def _answer(
    config: Any, found: Searcher, asked: Sequence[Query], out: epath.Path
) -> None:
    """Prints and writes what is found."""
    begin = time.monotonic()
    result = answers.answer(found, asked, config.k, words=config.words)
    # First: the disk may be full, and the answer is not lost with it.
    print(answers.terminal(found.index, result), flush=True)
    html = results_page.render(found.index, result)
    out.mkdir(parents=True, exist_ok=True)
    rundir.write_json(out / "results.json", answers.record(found.index, result))
    rundir.write_text(out / "results.html", html)
    took = report.clock(time.monotonic() - begin)
    count = "1 query" if len(asked) == 1 else f"{len(asked)} queries"
    print(f"{count} in {took}; see {plain(str(out))}/results.html", flush=True)
