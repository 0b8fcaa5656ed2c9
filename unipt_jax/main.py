"""The one entry: a config names the job, a folder holds what it makes.

python -m unipt_jax.main --config=configs/pretrain.py[:variant] --workdir=DIR
"""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from unipt_jax import distributed, evaluate, export, host, train
from unipt_jax.captions import generate
from unipt_jax.errors import Stopped, UserError, explain_os_error
from unipt_jax.search import job as search

JOBS: dict[str, Callable[[Any, str], None]] = {
    "pretrain": train.pretrain,
    "finetune": train.finetune,
    "evaluate": evaluate.run,
    "export": export.run,
    "caption": generate.run,
    "search": search.run,
}

config_flags.DEFINE_config_file("config", None, "a file of configs/, with its variant")
flags.DEFINE_string("workdir", "", "the folder of this run; made where it is missing")
flags.DEFINE_string("coordinator", "", "host:port of process 0, for several processes")
flags.DEFINE_integer("processes", None, "number of processes", lower_bound=1)
flags.DEFINE_integer("process", None, "number of this process, from 0", lower_bound=0)
flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "several processes: from the flags above, Slurm, a TPU slice or Open MPI (auto); "
    "from one of them for sure (on); never (off)",
)
flags.DEFINE_float(
    "patience", 300.0, "seconds to wait for the other processes", lower_bound=1.0
)


def _sentence(error: BaseException) -> str:
    """What to tell of a mistake in the flags.

    absl and ml_collections wrap what a config file raised, with its whole traceback in
    the text: the innermost error is the cause.
    """
    cause = error
    while isinstance(inner := cause.__cause__ or cause.__context__, Exception):
        cause = inner
    if isinstance(cause, UserError):
        return str(cause)
    if "Failed loading config file" in str(error):
        return "--config names no file that can be read; the configs are in configs/"
    if isinstance(cause, KeyError) and "Did you mean" not in str(error):
        return f"--config has no field {cause}; its file in configs/ has all there are"
    return f"--config: {str(error).strip().strip(chr(34))}"


def parse(argv: Sequence[str]) -> Any:
    """Reads the flags. Raises UserError for any mistake in them."""
    values = flags.FLAGS
    try:
        rest = values(list(argv))
        if values.config is None:
            raise UserError(
                "no --config: give one such as --config=configs/pretrain.py:quickstart"
            )
        job = values.config.job
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        raise UserError(_sentence(e)) from e
    if len(rest) > 1:
        raise UserError(f"unexpected argument '{rest[1]}'; flags begin with --")
    if job not in JOBS:
        raise UserError(f"job '{job}' is not one of {', '.join(JOBS)}")
    if not values.workdir:
        raise UserError("no --workdir: give the folder that this run shall write into")
    return values


def run(argv: Sequence[str]) -> int:
    """Does what the command line says; returns the exit code."""
    try:
        values = parse(argv)
        distributed.start(
            values.distributed,
            coordinator=values.coordinator,
            processes=values.processes,
            process=values.process,
            patience=values.patience,
        )
        host.keep_compiled()
        JOBS[values.config.job](values.config, os.path.expanduser(values.workdir))
        return 0
    except Stopped as stopped:
        print(f"\n{stopped}", file=sys.stderr)
        return Stopped.CODE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        sentence = explain_os_error(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    gc.freeze()  # what was imported stays: no collection looks through it again
    host.keep_memory()
    absl_logging.set_verbosity(absl_logging.ERROR)
    distributed.run_and_exit(lambda: run(sys.argv))
