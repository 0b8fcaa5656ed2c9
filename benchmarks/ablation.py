"""What each part of the method is worth on the embedded persons, over several seeds.

Every arm leaves out or changes one thing: the pre-training itself, its captions, its
losses, the PGU of fine-tuning. Learning rates are chosen on the identities of val, for
the pre-trained pair and for the one from scratch apart; test is reported.

    python -m benchmarks.ablation --save

writes benchmarks/results/ablation.json, .md (a table) and .svg (a plot). Killed, the
same command goes on.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure

from benchmarks import report
from unipt_jax.captions import reading
from unipt_jax.data import records

DATA = pathlib.Path("data/synthetic")
RATES = (1e-3, 3e-3)  # of fine-tuning, to choose from on val
FEW = 8  # the arm with few templates has every so manyth
FIRST = 2  # of those; from here on they still cover every person


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of training. name: of its folders. says: what a reader is told.

    captions: of pre-training, a folder; "" for no pre-training. pretrain, finetune:
    what its configs say otherwise. like: the arm whose pre-trained pair it shares. long:
    fine-tuning takes as many steps as both stages of the others together.
    """

    name: str
    says: str
    captions: str = "captions"
    pretrain: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    like: str = ""
    long: bool = False


ARMS = (
    Arm("unipt", "pre-trained, then fine-tuned"),
    Arm("scratch", "no pre-training, the steps of both stages", "", long=True),
    Arm("shuffled", "captions shuffled among the images", captions="shuffled"),
    Arm("templates", f"1/{FEW} of the templates", captions="few"),
    Arm("no_mlm", "pre-training without MLM", pretrain=("--config.loss.mlm=0",)),
    Arm(
        "no_temperature",
        "pre-training without a temperature (Eq. 1)",
        pretrain=("--config.model.temperature=none",),
    ),
    Arm(
        "no_pgu",
        "fine-tuning without PGU",
        finetune=("--config.loss.pgu=0",),
        like="unipt",
    ),
)


@dataclasses.dataclass
class Bench:
    """The runs of the benchmark: where they lie, and how many go on at once."""

    folder: pathlib.Path
    steps: int
    finetune_steps: int
    seeds: int
    jobs: int

    def all(self, commands: Iterable[Sequence[str]]) -> None:
        """Runs `python -m ...` commands, so many at once, each on cores of its own."""
        cores = sorted(os.sched_getaffinity(0))
        jobs = min(self.jobs, len(cores))
        free = queue.SimpleQueue()
        for i in range(jobs):
            free.put(set(cores[i::jobs]))

        def run(command: Sequence[str]) -> None:
            mine = free.get()
            try:
                report.progress(f"$ python -m {' '.join(command)}")
                log = self.folder / "log.txt"
                with log.open("a") as file:
                    done = subprocess.run(
                        [sys.executable, "-m", *command],
                        stdout=file,
                        stderr=file,
                        check=False,
                        preexec_fn=lambda: os.sched_setaffinity(0, mine),
                    )
            finally:
                free.put(mine)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)} failed; see the end of {log}")

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(run, command) for command in commands]
            try:
                for future in futures:
                    future.result()
            finally:
                pool.shutdown(cancel_futures=True)  # none begins after one failed

    def run_folder(self, stage: str, arm: Arm, seed: int) -> pathlib.Path:
        """Where a run of an arm lies."""
        name = arm.like if stage == "pretrain" and arm.like else arm.name
        return self.folder / f"{stage}-{name}-{seed}"

    def pretrain(self, arm: Arm, seed: int) -> list[str]:
        """The command that pre-trains an arm."""
        return [
            "unipt_jax.main",
            "--config=configs/pretrain.py:quickstart",
            f"--config.seed={seed}",
            f"--config.steps={self.steps}",
            f"--config.every.evaluate={self.steps}",
            f"--config.data.captions={self.folder / arm.captions}",
            *arm.pretrain,
            f"--workdir={self.run_folder('pretrain', arm, seed)}",
        ]

    def finetune(self, arm: Arm, seed: int, rate: float, chooses: bool) -> list[str]:
        """The command that fine-tunes an arm. chooses: test is not looked at."""
        start = ["--config.init.model=", "--config.init.scratch=True"]
        if arm.captions:
            start = [f"--config.init.model={self.run_folder('pretrain', arm, seed)}"]
        folder = self.run_folder("finetune", arm, seed)
        steps = self.finetune_steps + (self.steps if arm.long else 0)
        if chooses:
            folder = self.choice_folder(arm, rate)
            start.append("--config.evaluate.test=")
        return [
            "unipt_jax.main",
            "--config=configs/finetune.py:quickstart",
            f"--config.seed={seed}",
            f"--config.steps={steps}",
            f"--config.lr={rate}",
            *start,
            *arm.finetune,
            f"--workdir={folder}",
        ]

    def choice_folder(self, arm: Arm, rate: float) -> pathlib.Path:
        """Where the run lies that shows what a rate is worth on val."""
        return self.folder / f"choose-{arm.name}-{rate:g}"

    def missing(self, commands: Iterable[Sequence[str]]) -> list[Sequence[str]]:
        """The commands whose runs are not finished; twice the same is one."""
        once = {command[-1]: command for command in commands}
        return [command for command in once.values() if not finished(command)]


def finished(command: Sequence[str]) -> bool:
    """Whether a run has taken its last step, and is reported where that is asked for.

    Ends the program where its folder is of a run that was asked for otherwise.
    """
    folder = pathlib.Path(command[-1].partition("=")[2])
    if not (folder / "config.json").is_file():
        return False
    config = json.loads((folder / "config.json").read_text())
    for flag in command[2:-1]:
        path, _, wanted = flag.removeprefix("--config.").partition("=")
        there = config
        for name in path.split("."):
            there = there[name]
        if yaml.safe_load(wanted or "''") != yaml.safe_load(str(there) or "''"):
            sys.exit(
                f"{folder} is of a run with {path}={there}, not {wanted}; remove it, or "
                "give another --workdir"
            )
    if config["evaluate"]["test"]:
        return (folder / "evaluation.json").is_file()
    return (folder / "checkpoints" / str(config["steps"])).is_dir()


def prepare(bench: Bench) -> None:
    """The persons, and the captions of every arm."""
    bench.folder.mkdir(parents=True, exist_ok=True)
    if not DATA.is_dir():
        bench.all([["data_prep.build", "synthetic", "--out", str(DATA)]])
    few = bench.folder / "few.yaml"
    known = [str(template.source) for template in reading.read().templates]
    few.write_text(
        yaml.safe_dump({"replace": ["templates"], "templates": known[FIRST::FEW]})
    )
    job = ["unipt_jax.main", "--config=configs/caption.py:quickstart"]
    job.append("--config.captions_per_image=1")  # as in the paper
    commands = [
        [*job, f"--workdir={bench.folder / 'captions'}"],
        [*job, f"--config.phrases={few}", f"--workdir={bench.folder / 'few'}"],
    ]
    bench.all(c for c in commands if not _is_set(c[-1].partition("=")[2]))
    if not _is_set(bench.folder / "shuffled"):
        shuffle(bench.folder / "captions", bench.folder / "shuffled")


def _is_set(folder: str | pathlib.Path) -> bool:
    return (pathlib.Path(folder) / "dataset_info.json").is_file()


def shuffle(source: pathlib.Path, target: pathlib.Path) -> None:
    """A caption set in which every image has the captions of another."""
    rows = list(records.Records(source, "pretrain", records.CaptionRecord))
    other = np.random.default_rng(0).permutation(len(rows))
    mixed = [
        dataclasses.replace(row, captions=rows[i].captions, evidence={})
        for row, i in zip(rows, other, strict=True)
    ]
    splits = {"pretrain": mixed}
    records.write_set(target, records.CaptionRecord, splits, metadata={"shuffled": 1})


def choose(bench: Bench) -> dict[str, dict[str, Any]]:
    """The rate for the pre-trained pair and for the one from scratch, by val's Rank-1."""
    arms = [arm for arm in ARMS if arm.name in ("unipt", "scratch")]
    commands = [bench.finetune(arm, 0, rate, True) for arm in arms for rate in RATES]
    bench.all(bench.missing(commands))
    out = {}
    for arm in arms:
        val = {rate: best_on_val(bench.choice_folder(arm, rate)) for rate in RATES}
        out[arm.name] = {
            "lr": max(val, key=val.get),
            "val_rank1": {f"{rate:g}": round(score, 2) for rate, score in val.items()},
        }
    return out


def best_on_val(folder: pathlib.Path) -> float:
    """The best Rank-1 on val that a run saw."""
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").open()]
    return max(row["val_rank1"] for row in rows if "val_rank1" in row)


def rank1(folder: pathlib.Path, figure: str = "rank1") -> float:
    """A figure of a finished run on test, in percent."""
    entry = json.loads((folder / "evaluation.json").read_text())
    return entry[f"{DATA.name}/test"][figure]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Values with their mean and standard deviation (n - 1)."""
    return {
        "mean": round(statistics.mean(values), 2),
        "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
        "seeds": [round(value, 2) for value in values],
    }


def measure(bench: Bench) -> dict[str, Any]:
    """Runs what is missing; returns the figures of every arm."""
    prepare(bench)
    seeds = range(bench.seeds)
    trained = [arm for arm in ARMS if arm.captions]
    bench.all(bench.missing(bench.pretrain(a, s) for a in trained for s in seeds))
    chosen = choose(bench)
    rates = {
        arm.name: chosen["unipt" if arm.captions else "scratch"]["lr"] for arm in ARMS
    }
    bench.all(
        bench.missing(
            bench.finetune(arm, seed, rates[arm.name], False)
            for arm in ARMS
            for seed in seeds
        )
    )
    arms = {}
    for arm in ARMS:
        runs = [bench.run_folder("finetune", arm, seed) for seed in seeds]
        figures = {"says": arm.says, "lr": rates[arm.name]}
        figures |= {
            "rank1": spread([rank1(run) for run in runs]),
            "map": spread([rank1(run, "map") for run in runs]),
        }
        if arm.captions:
            pairs = [bench.run_folder("pretrain", arm, seed) for seed in seeds]
            figures["direct"] = spread([rank1(pair) for pair in pairs])
        arms[arm.name] = figures
    whole = arms["unipt"]["rank1"]["seeds"]
    for figures in arms.values():
        pairs = zip(whole, figures["rank1"]["seeds"], strict=True)
        figures["behind"] = spread([a - b for a, b in pairs])
    return {"arms": arms, "chosen_on_val": chosen}


def table(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a Markdown table."""

    def cell(figure: Mapping[str, Any] | None) -> str:
        if not figure:
            return "-"
        spread = "" if figure["std"] is None else f" ± {figure['std']:.1f}"
        return f"{figure['mean']:.1f}{spread}"

    lines = [
        "| what is changed | direct | fine-tuned Rank-1 | mAP | behind, of each seed |",
        "|---|---|---|---|---|",
    ]
    for figures in arms.values():
        behind = ", ".join(f"{value:+.1f}" for value in figures["behind"]["seeds"])
        cells = [cell(figures.get(name)) for name in ("direct", "rank1", "map")]
        lines.append(f"| {' | '.join([figures['says'], *cells, behind])} |")
    return "\n".join(lines) + "\n"


def plot(arms: Mapping[str, Mapping[str, Any]], file: pathlib.Path) -> None:
    """Rank-1 of every arm and seed, direct and fine-tuned."""
    figure = Figure(figsize=(7.5, 0.5 * len(arms) + 1.2))
    axis = figure.subplots()
    for name, colour, says in (
        ("direct", "#999", "direct transfer"),
        ("rank1", "#26a", "fine-tuned"),
    ):
        for place, figures in enumerate(arms.values()):
            if name in figures:
                values = figures[name]["seeds"]
                first = says if place == 0 else None
                axis.plot(values, [place] * len(values), "o", color=colour, label=first)
                axis.plot(figures[name]["mean"], place, "|", color=colour, ms=18)
    axis.set_yticks(range(len(arms)), [figures["says"] for figures in arms.values()])
    axis.invert_yaxis()
    axis.set_xlabel("Rank-1 on the test identities, %")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, bbox_inches="tight", metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark and prints its figures."""
    parser = report.arguments(__doc__, repeats=3)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workdir", default="runs/ablation", help="of all its runs")
    parser.add_argument("--steps", type=int, default=600, help="of pre-training")
    parser.add_argument("--finetune-steps", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once")
    args = parser.parse_args(argv)
    bench = Bench(
        pathlib.Path(args.workdir),
        args.steps,
        args.finetune_steps,
        args.repeats,
        args.jobs,
    )
    figures = measure(bench)
    print(table(figures["arms"]), file=sys.stderr)
    if args.save:
        report.RESULTS.mkdir(exist_ok=True)
        (report.RESULTS / "ablation.md").write_text(table(figures["arms"]))
        plot(figures["arms"], report.RESULTS / "ablation.svg")
    options = dict(steps=args.steps, finetune_steps=args.finetune_steps)
    report.finish({"benchmark": "ablation"} | options | figures, save=args.save)


if __name__ == "__main__":
    main()
