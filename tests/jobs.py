"""Runs the program as a user does: as a process of its own, from the root of a clone."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys

import helpers

ROOT = pathlib.Path(__file__).parent.parent

# What `helpers.quick_jit` asks for, as flags.
QUICK = " ".join(f"--{name}={int(value)}" for name, value in helpers.QUICK.items())

# The quickstart's pair made smaller still, with dropout on. A run with these flags
# alone, on one device, is the program that most files need: compiled once for all.
SMALL = (
    "--config=configs/pretrain.py:quickstart",
    "--config.batch_size=16",
    "--config.steps=40",
    "--config.model.image.height=48",
    "--config.model.image.width=16",
    "--config.model.image.layers=1",
    "--config.model.image.dropout=0.1",
    "--config.model.text.layers=1",
    "--config.model.text.dropout=0.1",
    "--config.model.text.attention_dropout=0.1",
    "--config.evaluate.batch_size=16",
    "--config.every.report=1",
    "--config.every.evaluate=0",
    "--config.every.save=0",
    "--config.evaluate.val=",
    "--config.evaluate.test=",
)


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Starts `unipt_jax.main` on a set, in processes that share a compilation cache."""

    persons: pathlib.Path
    cache: pathlib.Path | None

    xla_flags = QUICK

    def arguments(self, workdir, *more: str) -> list[str]:
        """The command line of a small pre-training run."""
        data = [
            f"--config.data.records={self.persons}",
            f"--config.data.captions={self.persons / 'captions'}",
            f"--config.tokenizer={self.persons / 'tokenizer'}",
            f"--workdir={workdir}",
        ]
        return [sys.executable, "-m", "unipt_jax.main", *SMALL, *data, *more]

    def run_job(self, *flags: str, devices: int = 1) -> tuple[int, str]:
        """Exit code and output of any job, with these flags alone."""
        done = subprocess.run(
            [sys.executable, "-m", "unipt_jax.main", *flags],
            cwd=ROOT,
            env=self.environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
        )
        return done.returncode, done.stdout

    def start_two(self, workdir, *more: str, devices: int) -> list[subprocess.Popen]:
        """The run as two processes that share a mesh, so many devices each.

        Without the cache: of two processes one may find a program there that the other
        compiles, and on CPUs their collectives then come in another order.
        """
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        flags = [*more, f"--coordinator=localhost:{port}", "--processes=2"]
        alone = dataclasses.replace(self, cache=None)
        return [
            alone.start(workdir, *flags, f"--process={i}", devices=devices)
            for i in range(2)
        ]

    def start(self, workdir, *more: str, devices: int = 1) -> subprocess.Popen:
        """The run as a child process, its output on a pipe."""
        return subprocess.Popen(
            self.arguments(workdir, *more),
            cwd=ROOT,
            env=self.environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def environment(self, devices: int = 1) -> dict[str, str]:
        """So many virtual CPU devices, the shared compilation cache, XLA's flags."""
        return os.environ | {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {self.xla_flags}".strip(),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_PLATFORMS": "cpu",
            "JAX_ENABLE_COMPILATION_CACHE": str(self.cache is not None).lower(),
            "JAX_COMPILATION_CACHE_DIR": str(self.cache or ""),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, workdir, *more: str, devices: int = 1) -> tuple[int, str]:
        """Exit code and output of a whole run."""
        process = self.start(workdir, *more, devices=devices)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output


def losses(workdir) -> dict[int, float]:
    """Step -> loss, from metrics.jsonl."""
    lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({r["step"] for r in rows if "loss" in r}) == len(
        [r for r in rows if "loss" in r]
    ), "a step was reported twice"
    return {r["step"]: r["loss"] for r in rows if "loss" in r}
