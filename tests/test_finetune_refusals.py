"""Mistakes of those who fine-tune: one sentence, exit code 1, and nothing is written."""

import dataclasses
import json
import shutil

import finetuning
import pytest
import rundirs

from unipt_jax.data import tokenizers
from unipt_jax.data.records import UNKNOWN, PersonRecord, Records, write_set


def the_sentence(argv, workdir) -> str:
    """The one line of an error; the run's folder is as it was."""
    before = sorted(workdir.rglob("*")) if workdir.exists() else None
    code, output = finetuning.here(*argv)
    assert code == 1, output
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert errors == [output.splitlines()[-1]], output
    assert (sorted(workdir.rglob("*")) if workdir.exists() else None) == before
    return errors[0]


def refusal(records, tmp_path, *more: str, **options) -> str:
    """What a small run on `records` with those flags is refused with."""
    run = tmp_path / "runs" / "run"
    return the_sentence(finetuning.small(records, run, *more, **options), run)


# Flags without "--config.", and what the sentence says.
FLAGS = {
    "nothing to start from": (["init.scratch=False"], "nothing to start from: give"),
    "scratch and a source": (
        ["init.text=some/bert"],
        "init.scratch=True is for random weights, but init names 'some/bert'",
    ),
    "no such source": (
        ["init.scratch=False", "init.model=runs/no/where", "tokenizer="],
        "there is no file or folder runs/no/where",
    ),
    "no tokenizer": (["tokenizer="], "tokenizer is empty, and no init.model or"),
    "pgu without parts": (
        ["model.pgu.parts=0", "model.retrieval=global"],
        "loss.pgu=1.0, but model.pgu.parts=0",
    ),
    "fewer than no parts": (["model.pgu.parts=-1"], "pgu.parts=-1"),
    "parts of unlike towers": (
        ["model.pgu.tokens=tower", "model.text.features=32"],
        "pgu.tokens=tower needs two towers of one width, here are 16 and 32",
    ),
    "unknown tokens": (
        ["model.pgu.tokens=words"],
        "pgu.tokens 'words' is not one of projected, tower",
    ),
    "unknown retrieval": (
        ["model.retrieval=parts"],
        "retrieval 'parts' is not one of global, pgu, both",
    ),
    "MLM without a head": (
        ["loss.mlm=1"],
        "loss.mlm is not 0, but the model has no head for it",
    ),
    "heads that do not divide": (
        ["loss.mlm=1", "model.interaction.layers=1", "model.interaction.heads=3"],
        "interaction.heads=3 must divide the embedding, 16",
    ),
    "identities that do not divide": (
        ["data.identities=3"],
        "data.identities=3 must divide batch_size=16",
    ),
    "one sample an identity": (
        ["data.identities=16"],
        "data.identities=16 must divide batch_size=16 into two samples",
    ),
    "fewer than no identities": (["data.identities=-4"], "data.identities=-4 must"),
    "more identities than there are": (
        ["data.identities=8"],
        "data.identities=8, but there are 4 identities",
    ),
    "a batch larger than the set": (
        ["batch_size=64"],
        "batch_size=64 but split 'train' of",
    ),
    "nobody held out": (
        ["evaluate.val=hold_out"],
        "evaluate.hold_out=0.05 of the 4 identities in split 'train' of",
    ),
    "all held out": (
        ["evaluate.val=hold_out", "evaluate.hold_out=0.9"],
        "evaluate.hold_out=0.9 of the 4 identities",
    ),
    "all but one held out": (
        ["evaluate.val=hold_out", "evaluate.hold_out=0.75", "batch_size=8"],
        "one identity is left to train on in split 'train' of",
    ),
    "a share of nothing": (
        ["evaluate.val=hold_out", "evaluate.hold_out=0"],
        "evaluate.val=hold_out, but evaluate.hold_out=0",
    ),
    "unknown val": (["evaluate.val=dev"], "has no split 'dev'; it has pretrain"),
    "unknown test": (["evaluate.test=tset"], "has no split 'tset'; it has pretrain"),
    "unknown train": (["data.split=trian"], "has no split 'trian'; it has pretrain"),
    "a split without captions": (
        ["data.split=pretrain"],
        "no captions in split 'pretrain' of",
    ),
    "no losses": (
        ["loss.identity=0", "loss.ranking=0", "loss.pgu=0"],
        "every weight in config.loss is 0",
    ),
    "a negative weight": (["loss.ranking=-1"], "a weight in config.loss is below 0"),
    "no drops": (["decay=steps", "drops=()"], "decay=steps, but drops is empty"),
    "unknown decay": (["decay=step"], "decay 'step' is not one of linear, cosine"),
    "no steps": (["steps=-1"], "steps=-1: epochs must be 1 or more"),
    "no epochs": (["steps=0", "epochs=0", "decay=linear"], "epochs=0 and steps=0"),
    "a negative margin": (["ranking.margin=-0.2"], "ranking.margin=-0.2 must be above"),
    "no margin": (["ranking.margin=nan"], "ranking.margin=nan must be above 0"),
    "unknown reduction": (
        ["ranking.reduction=max"],
        "ranking.reduction 'max' is not one of sum, mean",
    ),
    "a group that is misspelt": (
        ['optimiser.groups=(("^txt/",0.1),("",1.0))'],
        "config.optimiser.groups: rules do not fit the parameters",
    ),
    "erasing more than all": (["pixels.erasing=2.0"], "pixels.erasing=2.0: shift must"),
    "a negative shift": (["pixels.shift=-3"], "pixels.shift=-3 and"),
    "all words masked": (["mlm.rate=1.0"], "mlm.rate=1.0 must be a share of the words"),
    "a misspelt field": (["loss.pug=0"], "--config has no field 'pug'"),
    "no number": (["loss.pgu=lots"], "loss.pgu"),
    "no records": (["data.records=no/where"], "no record set at no/where"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_that_make_no_run_are_refused_before_anything_is_written(
    name, persons, tmp_path
):
    fields, said = FLAGS[name]
    more = [f"--config.{field}" for field in fields]
    assert said in refusal(persons, tmp_path, *more)


@pytest.mark.parametrize(
    ("variant", "said"),
    [("synthetic,irra", "unknown variant 'irra'"), ("sdm", "no set to fine-tune on")],
)
def test_a_variant_that_makes_no_run_is_refused(variant, said, persons, tmp_path):
    assert said in refusal(persons, tmp_path, variant=variant)


def test_an_argument_without_dashes_is_refused(persons, tmp_path):
    said = refusal(persons, tmp_path, "config.steps=4")
    assert "unexpected argument 'config.steps=4'" in said


def test_a_workdir_that_is_a_file_is_refused_and_kept(persons, tmp_path):
    file = tmp_path / "run"
    file.write_text("mine")
    said = the_sentence(finetuning.small(persons, file), file)
    assert f"--workdir={file} is a file" in said and file.read_text() == "mine"


def write(folder, persons, change):
    """A set whose train split has `change`d records of `persons`; None leaves one out."""
    changed = map(change, Records(persons, "train", PersonRecord))
    splits = {"train": [record for record in changed if record is not None]}
    splits |= {"test": list(Records(persons, "test", PersonRecord))}
    write_set(folder, PersonRecord, splits, metadata={})
    return folder


# What becomes of a record of train, and what is said of the set.
SETS = {
    "no identities": (
        lambda r: dataclasses.replace(r, person_id=UNKNOWN, label=UNKNOWN),
        "32 of 32 samples in split 'train' of",
    ),
    "some without identity": (
        lambda r: r if r.label else dataclasses.replace(r, label=UNKNOWN),
        "8 of 32 samples in split 'train' of",
    ),
    "one identity": (
        lambda r: r if r.label == 0 else None,
        "one identity is left to train on in split 'train' of",
    ),
    "no captions": (
        lambda r: dataclasses.replace(r, captions=()),
        "no captions in split 'train' of",
    ),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_cannot_be_learnt_from_is_refused(name, persons, tmp_path):
    change, said = SETS[name]
    folder = write(tmp_path / "set", persons, change)
    more = [f"--config.tokenizer={persons / 'tokenizer'}", "--config.evaluate.val="]
    more.append("--config.batch_size=4")
    found = refusal(folder, tmp_path, *more)
    assert said in found and str(folder) in found


@pytest.fixture(scope="module")
def source(persons, tmp_path_factory):
    """A run whose towers are not those of a small run."""
    folder = tmp_path_factory.mktemp("source") / "run"
    tokenizer = tokenizers.load(persons / "tokenizer")
    with finetuning.on(devices=1):
        rundirs.make_run(folder, rundirs.section("vit_b16"), tokenizer)
    return folder


def start(folder) -> list[str]:
    return [f"--config.init.model={folder}", "--config.init.scratch=False"]


def test_a_run_with_other_towers_is_refused_with_the_fields_that_differ(
    source, persons, tmp_path
):
    said = refusal(persons, tmp_path, *start(source))
    assert f"{source} has other towers than this config" in said
    for field in (
        "model.image.patch=[8, 8] (here [16, 8])",
        "model.image.layers=2 (here 1)",
        "model.text.features=12 (here 16)",
        "model.embedding=8 (here 16)",
    ):
        assert field in said, said
    assert "choose the variant of its tower" in said


def test_a_run_with_other_words_is_refused(source, persons, tmp_path):
    words = (persons / "tokenizer" / "vocab.txt").read_text().splitlines()
    words[-1], words[-2] = words[-2], words[-1]
    other = tmp_path / "words"
    other.mkdir()
    (other / "vocab.txt").write_text("\n".join(words))
    same = ["image.patch=(8,8)", "image.layers=2", "text.layers=2", "embedding=8"]
    same += ["image.norm_eps=1e-12", "text.features=12", "text.positions=40"]
    more = [f"--config.model.{field}" for field in same]
    more += [f"--config.tokenizer={other}", "--config.data.lengths=(40,)"]
    said = refusal(persons, tmp_path, *start(source), *more)
    assert "was trained with another tokenizer than config.tokenizer" in said
    assert f"--config.tokenizer={source}" in said


def test_a_model_and_a_tower_together_are_refused(source, persons, tmp_path):
    said = refusal(persons, tmp_path, *start(source), "--config.init.text=some/bert")
    assert "error: " in said and str(source) in said


def test_the_run_that_is_started_from_is_not_written_into(source, persons):
    flags = finetuning.small(persons, source, *start(source))
    before = (source / "config.json").read_bytes()
    said = the_sentence(flags, source)
    assert str(source) in said
    assert (source / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    "more", [["--config.ranking.margin=0.4"], ["--config.loss.pgu=0"]]
)
def test_a_run_goes_on_with_its_own_recipe_alone(more, persons, tmp_path):
    run = tmp_path / "run"
    job = finetuning.given(*finetuning.small(persons, run))
    assert json.loads((run / "config.json").read_text())["recipe"] == job.config.recipe
    said = the_sentence(finetuning.small(persons, run, *more), run)
    field, value = more[0].removeprefix("--config.").split("=")
    assert f"{run / 'config.json'} is of a run with another config" in said
    assert f"{field}: " in said and f"{float(value)} now" in said


def test_a_run_on_a_set_that_has_changed_since_is_refused(persons, tmp_path):
    folder, run = tmp_path / "set", tmp_path / "run"
    words = [f"--config.tokenizer={persons / 'tokenizer'}", "--config.evaluate.val="]
    write(folder, persons, lambda r: r)
    finetuning.given(*finetuning.small(folder, run, *words))
    shutil.rmtree(folder)
    write(folder, persons, lambda r: r if r.label < 3 else None)
    said = the_sentence(finetuning.small(folder, run, *words), run)
    assert "model.identities: 4 there, 3 now" in said
