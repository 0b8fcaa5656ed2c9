"""The whole path on the embedded persons: data, captions, both trainings, marks to beat.

Each stage is a command that a user would type; it is shown before it runs. The last
line is `quickstart: direct=.. finetuned=.. scratch=.. ridge=.. oracle=.. gallery=..
seconds=..`, Rank-1 in percent on the test identities: only pre-trained; fine-tuned from
that; fine-tuned from random weights; a ridge regression; an oracle.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

DATA = pathlib.Path("data/synthetic")
RUNS = pathlib.Path("runs/quickstart")
SCRATCH = 600  # steps from random weights: four times those from the pre-trained pair


def command(*arguments: str, capture: bool = False) -> str:
    """Shows and runs `python -m ...`; ends the program where it fails."""
    print(f"\n$ python -m {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.returncode)
    if capture:
        print(done.stdout, end="", flush=True)
    return done.stdout or ""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the stages and prints the closing line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--started", type=float, default=time.time(), help="epoch, s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    run, captions = RUNS / "pretrain", RUNS / "captions"
    command("data_prep.build", "synthetic", "--out", str(DATA))
    command(
        "unipt_jax.main",
        "--config=configs/caption.py:quickstart",
        f"--workdir={captions}",
    )
    command(
        "unipt_jax.main",
        "--config=configs/pretrain.py:quickstart",
        f"--config.seed={args.seed}",
        f"--config.data.captions={captions}",
        f"--workdir={run}",
    )
    finetune = ["unipt_jax.main", "--config=configs/finetune.py:quickstart"]
    finetune.append(f"--config.seed={args.seed}")
    tuned, scratch = RUNS / "finetune", RUNS / "scratch"
    command(*finetune, f"--config.init.model={run}", f"--workdir={tuned}")
    command(
        *(*finetune, "--config.init.model=", "--config.init.scratch=True"),
        *(f"--config.steps={SCRATCH}", f"--workdir={scratch}"),
    )
    output = command(
        *("benchmarks.marks", "--records", str(DATA), "--captions", str(captions)),
        capture=True,
    )
    marks = json.loads(output.splitlines()[-1])
    figures = {
        folder: json.loads((folder / "evaluation.json").read_text())["synthetic/test"]
        for folder in (run, tuned, scratch)
    }
    reports = ", ".join(f"{folder}/report.html" for folder in (captions, run, tuned))
    print(f"\nreports, for a browser: {reports}")
    print(
        f"quickstart: direct={figures[run]['rank1']:.1f} "
        f"finetuned={figures[tuned]['rank1']:.1f} "
        f"scratch={figures[scratch]['rank1']:.1f} "
        f"ridge={marks['ridge']:.1f} oracle={marks['oracle']:.1f} "
        f"gallery={figures[run]['gallery']} seconds={time.time() - args.started:.0f}"
    )


if __name__ == "__main__":
    main()
