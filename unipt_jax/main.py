"""The one entry: a config names the job, a folder holds what it makes.

python -m unipt_jax.main --config=configs/pretrain.py[:variant] --workdir=DIR
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from unipt_jax import evaluate, train
from unipt_jax.errors import Stopped, UserError, explain_os_error

JOBS: dict[str, Callable[[Any, str], None]] = {
    "pretrain": train.pretrain,
    "evaluate": evaluate.run,
}

config_flags.DEFINE_config_file("config", None, "a file of configs/, with its variant")
flags.DEFINE_string("workdir", "", "the folder of this run; made where it is missing")
flags.DEFINE_string("coordinator", "", "host:port of process 0, for several processes")
flags.DEFINE_integer("processes", 1, "number of processes", lower_bound=1)
flags.DEFINE_integer("process", 0, "number of this process, from 0", lower_bound=0)


def _first_cause(error: BaseException) -> BaseException:
    """ml_collections wraps what a config file raised: the innermost one is the cause."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    return error


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
    except flags.Error as error:
        raise UserError(str(error)) from error
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        cause = _first_cause(error)
        text = str(cause if isinstance(cause, UserError) else error)
        text = text.strip().strip("'\"")
        raise UserError(f"--config: {text}") from error
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
        if values.processes > 1:
            jax.distributed.initialize(
                values.coordinator, values.processes, values.process
            )
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
    absl_logging.set_verbosity(absl_logging.ERROR)
    sys.exit(run(sys.argv))
