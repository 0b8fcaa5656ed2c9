"""How long is a start, from the command to the first step that is done?

    python -m benchmarks.startup

The quickstart's pre-training on its own data (`make quickstart` draws it), for two steps,
with an empty compilation cache (`first`), then again in a new work directory (`second`;
bar: 15 s), each a process of its own; compiling, reading and tokenising captions counted.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from statistics import median

from benchmarks import report

STEPS = 2


def main() -> None:
    parser = report.arguments(__doc__.splitlines()[0], repeats=3)
    parser.add_argument(
        "--records", default="data/synthetic", help="the set to train on"
    )
    parser.add_argument("--captions", default="", help="RECORDS/captions")
    args = parser.parse_args()
    records = pathlib.Path(args.records)
    captions = pathlib.Path(args.captions or records / "captions")
    for folder in (records, captions):
        if not (folder / "dataset_info.json").is_file():
            raise SystemExit(f"{folder} holds no set; run `make quickstart` first")
    with tempfile.TemporaryDirectory() as place:
        taken = []
        for turn in range(args.repeats + 1):
            taken.append(start(pathlib.Path(place), turn, records, captions))
            report.progress(f"start {turn + 1}: {taken[-1]:.1f} s to the first step")
    figures = {
        "benchmark": "startup",
        "first": round(taken[0], 1),
        "second": round(median(taken[1:]), 1),
        "all_seconds": [round(seconds, 1) for seconds in taken],
    }
    report.finish(figures, save=args.save)


def start(
    place: pathlib.Path, turn: int, records: pathlib.Path, captions: pathlib.Path
) -> float:
    """Seconds to the first row of a new run's metrics; it ends before this returns."""
    workdir = place / f"run{turn}"
    command = [
        *(sys.executable, "-m", "unipt_jax.main"),
        "--config=configs/pretrain.py:quickstart",
        f"--workdir={workdir}",
        f"--config.data.records={records}",
        f"--config.data.captions={captions}",
        f"--config.tokenizer={records / 'tokenizer'}",
        f"--config.steps={STEPS}",
        "--config.every.report=1",
        "--config.evaluate.val=",
        "--config.evaluate.test=",
    ]
    environ = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environ["XDG_CACHE_HOME"] = str(place / "cache")
    begin = time.perf_counter()
    quiet = subprocess.DEVNULL
    run = subprocess.Popen(command, env=environ, stdout=quiet, stderr=quiet)
    rows = workdir / "metrics.jsonl"
    while run.poll() is None and not (rows.exists() and rows.stat().st_size):
        time.sleep(0.02)
    seconds = time.perf_counter() - begin
    if run.wait() or json.loads(rows.read_text().splitlines()[0])["step"] != 1:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
    return seconds


if __name__ == "__main__":
    main()
