"""The finetune job made small, run in this process as the command line has it."""

import contextlib
import dataclasses
import io
import json
import pathlib
import signal
import sys
from typing import Any
from unittest import mock

import helpers
import jax
import numpy as np
from absl import flags

import unipt_jax
from unipt_jax import encoder, evaluate, loop, main, sharding, transfer
from unipt_jax.data import pipeline

# The quickstart's towers made smaller still, with dropout on, in batches of 16; the
# recipe is a published one, which will not change.
TOWER = ("features=16", "heads=2", "hidden=24", "layers=1", "dropout=0.1")
SMALL = (
    "--config.batch_size=16",
    "--config.steps=4",
    "--config.model.image.height=48",
    "--config.model.image.width=16",
    *(f"--config.model.{t}.{field}" for t in ("image", "text") for field in TOWER),
    "--config.model.embedding=16",
    "--config.model.pgu.parts=3",
    "--config.model.pgu.layers=1",
    "--config.model.pgu.heads=2",
    "--config.model.pgu.head_width=8",
    "--config.model.pgu.hidden=16",
    "--config.model.pgu.features=8",
    "--config.model.interaction.heads=2",
    "--config.evaluate.batch_size=16",
    "--config.every.report=1",
    "--config.every.evaluate=0",
    "--config.every.save=0",
)
FIGURES = {"rank1", "rank5", "rank10", "map", "minp", "queries", "gallery"}


@contextlib.contextmanager
def on(devices: int = 1):
    """So many devices for what is done here, compiled as `helpers.quick_jit` does."""

    def make_mesh(*, data: int, fsdp: int) -> jax.sharding.Mesh:
        return helpers.mesh_of(devices, fsdp)

    with (
        mock.patch.object(sharding, "make_mesh", make_mesh),
        mock.patch.object(jax, "jit", helpers.quick_jit),
    ):
        yield


def here(*argv: str, devices: int = 1) -> tuple[int, str]:
    """Exit code and output of any job with these flags, on so many devices."""
    said, before = io.StringIO(), signal.getsignal(signal.SIGTERM)
    for name in [n for n in flags.FLAGS if n.startswith("config.")]:
        delattr(flags.FLAGS, name)  # the overrides of an earlier call
    for name in ("config", "workdir"):
        flags.FLAGS[name].unparse()
    argv = ["main", *argv]
    try:
        with (
            on(devices),
            mock.patch.object(sys, "argv", argv),  # where overrides are read
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            code = main.run(argv)
    finally:
        signal.signal(signal.SIGTERM, before)
    return code, said.getvalue()


def one_device() -> jax.sharding.Mesh:
    """Where `here` runs jobs unless told otherwise."""
    return helpers.mesh_of(1)


@dataclasses.dataclass
class Given:
    """What the job hands to the loop, by name, and what it said until then."""

    output: str
    config: Any
    model: Any
    batches: pipeline.TrainBatches
    steps: int
    found: dict[str, transfer.Taken]
    val: evaluate.RetrievalSet | None


def given(*argv: str) -> Given:
    """The job up to its first step, which is not taken."""
    with mock.patch.object(loop, "fit", autospec=True) as fit:
        code, output = here(*argv)
    assert code == 0, output
    (run,) = fit.call_args.args
    fields = {field.name for field in dataclasses.fields(Given)} - {"output"}
    return Given(output=output, **{name: getattr(run, name) for name in fields})


def small(persons, workdir, *more: str, variant: str = "synthetic,lgur") -> list[str]:
    """The flags of a small run on `persons`; random weights unless `more` says."""
    return [
        f"--config=configs/finetune.py:{variant}",
        *SMALL,
        f"--config.data.records={persons}",
        f"--config.tokenizer={pathlib.Path(persons) / 'tokenizer'}",
        "--config.init.model=",
        "--config.init.scratch=True",
        f"--workdir={workdir}",
        *more,
    ]


def rows(workdir) -> list[dict]:
    """The rows of metrics.jsonl."""
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def opened(run, checkpoint="best") -> encoder.Encoder:
    """What `unipt_jax.load` opens, on one device."""
    return unipt_jax.load(run, checkpoint=checkpoint, mesh=one_device())


def params_of(run, checkpoint="best") -> dict[str, np.ndarray]:
    """Path -> array of a checkpoint, or of an export."""
    return helpers.arrays(opened(run, checkpoint).params)


def equal(found: dict, wanted: dict) -> None:
    """To the bit, and none more or less."""
    assert found.keys() == wanted.keys()
    for path, x in wanted.items():
        np.testing.assert_array_equal(found[path], x, path)


def without(params: dict, *parts: str) -> dict:
    """The parameters of all other parts."""
    return {path: x for path, x in params.items() if path.split("/")[0] not in parts}
