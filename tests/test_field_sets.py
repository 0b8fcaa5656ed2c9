"""The field's three sets, from their files as they lie on disk to figures on test.

Towers as wide as the real ones, with random weights and the real vocabularies.
"""

import dataclasses
import json
import math
import pathlib
import sys

import finetuning
import jax
import pytest

import unipt_jax
from unipt_jax import tree

sys.path.append(str(pathlib.Path(__file__).parent / "data_prep"))
import trees

SCRATCH = (
    "--config.init.model=",
    "--config.init.image=",
    "--config.init.text=",
    "--config.init.scratch=True",
)
SHALLOW = ("--config.model.image.layers=2", "--config.model.text.layers=2")


@dataclasses.dataclass(frozen=True)
class Case:
    """A variant and what must come of it. classes: identities that are trained on.
    held: those that are kept out of training. losses: of its recipe. said: among the
    choices that are printed."""

    variant: str
    vocabulary: str
    classes: int
    losses: set[str]
    said: tuple[str, ...]
    held: int = 0


CASES = {
    "cuhk_pedes": Case(
        "cuhk_pedes",
        "bert_vocabulary",
        7,
        {"identity", "ranking", "pgu"},
        (
            "recipe              paper",
            "28 samples (pair)",
            "30522 tokens",
            "identities          7 in training, 0 held out",
            "margin 0.2, a random semi-hard negative each way, sum",
            "PGU                 6 parts, reads projected tokens",
            "retrieval by        pgu",
            "initial weights     random",
        ),
    ),
    "icfg_pedes": Case(
        "icfg_pedes,sdm,clip_b16",
        "clip_vocabulary",
        3,
        {"identity", "sdm", "mlm"},
        (
            "recipe              sdm",
            "49409 tokens",
            "identities          3 in training, 1 held out",
            "best checkpoint by  hold_out",
            "temperature         fixed 0.02",
            "head after 4 layers that read the image",
            "erasing 0.5",
        ),
        held=1,
    ),
    "rstp_reid": Case(
        "rstp_reid,lgur,deit_s16",
        "bert_vocabulary",
        3,
        {"identity", "ranking", "pgu"},
        (
            "recipe              lgur",
            "30 samples (pair)",
            "identities          3 in training, 0 held out",
            "margin 0.3",
            "shift 10, erasing 0, drop path 0.1",
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_set_is_prepared_fine_tuned_on_and_evaluated(
    name, request, tmp_path, monkeypatch
):
    prepare_and_tune(CASES[name], name, SHALLOW, request, tmp_path, monkeypatch)


@pytest.mark.full_size
@pytest.mark.parametrize("name", CASES)
def test_a_set_is_fine_tuned_on_with_towers_of_full_depth(
    name, request, tmp_path, monkeypatch
):
    prepare_and_tune(CASES[name], name, (), request, tmp_path, monkeypatch)


def prepare_and_tune(case, name, depth, request, folder, monkeypatch):
    """The three commands of a user, and all that they promise."""
    data = trees.MAKERS[name](folder / "raw")
    data.publish(monkeypatch)
    done = data.write().prepare()
    assert done.code == 0, done.error
    run = folder / "run"
    said = tune(case, data, run, depth, request.getfixturevalue(case.vocabulary))
    assert not [line for line in case.said if line not in said], said
    check_run(case, data, run)
    check_evaluation(data, run, folder / "evaluated")


def tune(case, data, run, depth, vocabulary) -> str:
    """Two steps; what is printed of them."""
    hold_out = ["--config.evaluate.hold_out=0.25"] if case.held else []
    code, output = finetuning.here(
        f"--config=configs/finetune.py:{case.variant}",
        *SCRATCH,
        *depth,
        *hold_out,
        "--config.steps=2",
        "--config.batch_size=4",
        "--config.evaluate.batch_size=4",
        "--config.every.report=1",
        f"--config.tokenizer={vocabulary}",
        f"--config.data.records={data.out}",
        f"--workdir={run}",
    )
    assert code == 0, output
    return output


def check_run(case, data, run) -> None:
    """The files, the losses and the classes of a run."""
    files = {"config.json", "metrics.jsonl", "evaluation.json", "report.html"}
    assert files | {"checkpoints", "tokenizer"} <= {file.name for file in run.iterdir()}
    rows = finetuning.rows(run)
    trained = [row for row in rows if "loss" in row]
    assert [row["step"] for row in trained] == [1, 2]
    for row in trained:
        config = json.loads((run / "config.json").read_text())
        on = {loss: w for loss, w in config["loss"].items() if w}
        assert on.keys() == case.losses
        total = sum(w * row[loss] for loss, w in on.items())
        assert math.isfinite(total) and row["loss"] == pytest.approx(total, rel=1e-5)
    # chance: every identity, and every word, is as likely as any other
    towers = 2 * math.log(case.classes)
    assert trained[0]["identity"] == pytest.approx(towers, abs=1.5)
    assert "val_rank1" in rows[-1]
    assert len({e["id"] for e in data.of("train")}) == case.classes + case.held
    loaded = unipt_jax.load(run, mesh=finetuning.one_device())
    shapes = {k: x.shape for k, x in tree.flatten(loaded.params).items()}
    assert shapes["classifier/bias"] == (case.classes,)
    assert ("pgu/queries" in shapes) == ("pgu" in case.losses)
    for leaf in jax.tree.leaves(loaded.params):
        leaf.delete()  # hundreds of millions


def check_evaluation(data, run, out) -> None:
    """The evaluate job gives the figures that the run gave, of all of test."""
    code, output = finetuning.here(
        "--config=configs/evaluate.py",
        f"--config.model={run}",
        f"--config.data.records={data.out}",
        "--config.batch_size=4",
        f"--workdir={out}",
    )
    assert code == 0, output
    [(name, there)] = json.loads((run / "evaluation.json").read_text()).items()
    here = json.loads((out / "evaluation.json").read_text())[name]
    assert name == "out/test" and there.keys() >= finetuning.FIGURES
    for key in finetuning.FIGURES:
        assert here[key] == pytest.approx(there[key], abs=1e-9), key
    test = data.of("test")
    captions = sum(len(entry["captions"]) for entry in test)
    assert (here["queries"], here["gallery"]) == (captions, len(test))
    # two persons or one, of 6 images or fewer: all right answers are among the first 10
    assert 0 < here["rank1"] <= here["rank5"] <= here["rank10"] == 100
