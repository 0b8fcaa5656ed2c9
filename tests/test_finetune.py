"""Fine-tuning as a job: where it starts, what it draws, what it leaves, how it goes on."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

import finetuning
import helpers
import jobs
import numpy as np
import pytest
import rundirs
from finetuning import equal, opened, params_of, without
from PIL import Image

from unipt_jax import evaluate, loop, report
from unipt_jax.data import tokenizers
from unipt_jax.data.records import PersonRecord, Records, write_set

HEADS = {"classifier", "part_classifiers"}
ALONE = ("--config.evaluate.val=", "--config.evaluate.test=")


def start(run) -> list[str]:
    """The flags of a run that starts from another, with its tokenizer."""
    return [
        f"--config.init.model={run}",
        "--config.init.scratch=False",
        "--config.tokenizer=",
    ]


@pytest.fixture(scope="module")
def pretrained(persons, tmp_path_factory):
    """A run as pre-training leaves it: an MLM head, a temperature, no PGU."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    config = finetuning.given(*finetuning.small(persons, folder)).config
    shutil.rmtree(folder)
    model = config.model.to_dict() | {"identities": 0, "retrieval": "global"}
    model |= {"mlm_output": "tied", "temperature": "learned"}
    model["pgu"]["parts"] = 0
    tokenizer = tokenizers.load(persons / "tokenizer")
    with finetuning.on(devices=1):
        rundirs.make_run(folder, model, tokenizer, (48,), config.pixels.to_dict())
    return folder


@pytest.fixture(scope="module")
def tuned(persons, pretrained, tmp_path_factory):
    """A run of 4 steps whose checkpoint of step 2 is the best by what val is said to
    give, and what it printed."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"

    def validate(loop, state, step):
        return {"rank1": {1: 10.0, 2: 30.0, 3: 20.0, 4: 20.0}[step]}

    with mock.patch.object(loop, "validate", validate):
        code, output = finetuning.here(
            *finetuning.small(persons, workdir, *start(pretrained)),
            *("--config.every.evaluate=1", "--config.keep=9"),
        )
    assert code == 0, output
    return workdir, output


# --- what a run leaves ---------------------------------------------------------------


def test_the_best_on_val_is_what_is_reported_and_opened(tuned, persons):
    run, output = tuned
    [(name, entry)] = json.loads((run / "evaluation.json").read_text()).items()
    assert name == "set/test" and entry["model"].endswith(f"{run} step 2")
    assert entry["selected_on"] == "val" and "warning" not in output
    equal(params_of(run), params_of(run, "2"))
    last = params_of(run, "4")
    assert any((x != last[path]).any() for path, x in params_of(run).items())
    encoder = opened(run, "2")
    test = evaluate.read_set(persons, "test")
    figures = evaluate.figures(encoder, test, batch_size=16, threads=1)
    for key in finetuning.FIGURES:
        assert entry[key] == pytest.approx(figures[key], abs=1e-9), key


def test_a_run_says_its_choices_losses_and_files(tuned, pretrained):
    run, output = tuned
    said = {
        key: value.strip()
        for key, _, value in (x.strip().partition("  ") for x in output.splitlines())
    }
    assert said["losses"] == "identity 1, pgu 1, ranking 1"
    assert said["identities"] == "4 in training, 0 held out"
    assert said["batches"] == "samples as they come"
    assert said["best checkpoint by"] == "val" and said["retrieval by"] == "pgu"
    assert str(pretrained) in said["initial model"]
    assert "random: pgu (" in said["initial model"]
    rows = finetuning.rows(run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        total = row["identity"] + row["ranking"] + row["pgu"]
        assert row["loss"] == pytest.approx(total, rel=1e-6)
        assert {"lr", "accuracy", "gradient_norm"} <= row.keys()
    assert {"config.json", "report.html", "tokenizer"} <= {
        f.name for f in run.iterdir()
    }


def test_a_fine_tuned_run_is_opened_with_the_parts_side_by_side(tuned):
    encoder = opened(tuned[0])
    rows = encoder.encode_text(["a man in a red coat", "a bag"])
    assert rows.shape == (2, 24)  # 3 parts of 8 features
    seen = encoder.encode_image([Image.new("RGB", (20, 60), "red")])
    for unit in (*rows, *seen):
        assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-6)


def test_both_is_the_summary_and_the_parts_of_one_run(tuned, tmp_path):
    files = shutil.ignore_patterns("checkpoints")
    found = {}
    for retrieval in ("global", "pgu", "both"):
        run = tmp_path / retrieval
        shutil.copytree(tuned[0], run, ignore=files)
        (run / "checkpoints").symlink_to(tuned[0] / "checkpoints")
        config = json.loads((run / "config.json").read_text())
        config["model"]["retrieval"] = retrieval
        (run / "config.json").write_text(json.dumps(config))
        encoder = opened(run)
        tokens = encoder.pad(encoder.tokenizer.encode(["a man", "a red bag"], 48)[0])
        network = encoder.model, encoder.params
        found[retrieval] = helpers.apply(*network, "encode_text", tokens)
    joined = np.concatenate([found["global"], found["pgu"]], axis=1) / np.sqrt(2)
    np.testing.assert_allclose(found["both"], joined, atol=1e-6)


@pytest.fixture(scope="module")
def exported(tuned, tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("exported") / "model"
    code, output = finetuning.here(
        "--config=configs/export.py",
        f"--config.model={tuned[0]}",
        f"--workdir={folder}",
    )
    assert code == 0, output
    return folder


def test_an_export_has_the_pgu_and_no_classifier_and_gives_the_same_vectors(
    tuned, exported
):
    from safetensors.numpy import load_file

    names = {name.split(".")[0] for name in load_file(exported / "model.safetensors")}
    assert "pgu" in names and not names & HEADS
    left = json.loads((exported / "config.json").read_text())["left_out"]
    assert {path.split("/")[0] for path in left} == HEADS
    parity = json.loads((exported / "parity.json").read_text())
    assert parity["max_abs_diff"] < 1e-5
    equal(params_of(exported), without(params_of(tuned[0]), *HEADS))


# --- where it starts -----------------------------------------------------------------


def loaded(flags, source, *random) -> dict[str, np.ndarray]:
    """What a run takes from a source; the parts in `random` and no others are not."""
    job = finetuning.given(*flags)
    taken = job.found["model"]
    assert {path.split("/")[0] for path in taken.kept} == set(random)
    assert str(source) in taken.source
    assert job.config.tokenizer and f"initial model       {source}" in job.output
    return taken.params


def test_all_of_a_pre_trained_run_but_its_heads_is_taken(persons, pretrained, tmp_path):
    flags = finetuning.small(persons, tmp_path / "run", *start(pretrained))
    found = loaded(flags, pretrained, "pgu")
    equal(found, without(params_of(pretrained), "mlm_head", "log_scale"))


def test_an_export_of_a_fine_tuned_run_is_taken_with_its_pgu(
    persons, tuned, exported, tmp_path
):
    flags = finetuning.small(persons, tmp_path / "run", *start(exported))
    equal(loaded(flags, exported), without(params_of(tuned[0]), *HEADS))


@pytest.fixture(scope="module")
def others(persons, tmp_path_factory):
    """Another set: three persons, of whom one image has no caption, and a fourth whose
    images have none at all."""
    folder = tmp_path_factory.mktemp("others") / "set"
    train = list(Records(persons, "train", PersonRecord))
    few = [dataclasses.replace(r, person_id=70 + r.label) for r in train]
    few = [dataclasses.replace(r, captions=()) if r.label == 1 else r for r in few]
    few[0] = dataclasses.replace(few[0], captions=())
    test = list(Records(persons, "test", PersonRecord))
    write_set(folder, PersonRecord, {"train": few, "test": test}, metadata={})
    return folder


def test_a_run_of_another_set_goes_on_with_new_classifiers_and_holds_persons_out(
    tuned, others, tmp_path
):
    """Nothing moves at a rate of 0: what is saved is what was taken."""
    run = tmp_path / "run"
    code, output = finetuning.here(
        *finetuning.small(others, run, *start(tuned[0])),
        "--config.evaluate.val=hold_out",
        "--config.evaluate.hold_out=0.34",
        "--config.batch_size=8",
        "--config.steps=1",
        "--config.lr=0.0",
    )
    assert code == 0, output
    found, source = params_of(run), params_of(tuned[0])
    assert found["classifier/kernel"].shape == (16, 2)
    assert source["classifier/kernel"].shape == (16, 4)
    assert found["part_classifiers/kernel"].shape == (3, 8, 2)
    equal(without(found, *HEADS), without(source, *HEADS))
    [entry] = json.loads((run / "evaluation.json").read_text()).values()
    assert entry["selected_on"] == "hold_out" and not entry["selected_here"]
    assert re.search(r"identities +2 in training, 1 held out", output)
    assert re.search(r"without caption +5 images left out", output)
    assert "val_rank1" in finetuning.rows(run)[-1]


@pytest.fixture(scope="module")
def towers(persons, tmp_path_factory):
    """Folders of a ViT, a BERT and a CLIP as transformers writes them."""
    foreign = pytest.importorskip("foreign")
    from transformers import BertForMaskedLM, ViTConfig, ViTModel

    place, tower = tmp_path_factory.mktemp("towers"), dict(features=16, heads=2)
    tower |= dict(hidden=24, layers=1)
    vit = foreign.vit_config(ViTConfig, tower, (48, 16), (16, 8))
    foreign.randomise(ViTModel(vit)).save_pretrained(place / "vit")
    words = tokenizers.load(persons / "tokenizer")
    bert = foreign.bert_config(tower, positions=64, vocabulary=len(words))
    foreign.randomise(BertForMaskedLM(bert)).save_pretrained(place / "bert")
    words.save(place / "bert")
    ids = foreign.write_clip_tokenizer(place / "clip")
    vision, text = foreign.clip_configs(
        *(tower, tower, 32, 16, 16),
        vocab_size=len(ids),
        max_position_embeddings=77,
        eos_token_id=len(ids) - 1,
        bos_token_id=len(ids) - 2,
        pad_token_id=len(ids) - 1,
    )
    foreign.clip_model(vision, text).save_pretrained(place / "clip")
    return place


def test_a_vit_and_a_bert_fill_the_towers_and_the_rest_is_random(
    persons, towers, tmp_path
):
    job = finetuning.given(
        *finetuning.small(persons, tmp_path / "run"),
        "--config.init.scratch=False",
        "--config.tokenizer=",
        f"--config.init.image={towers / 'vit'}",
        f"--config.init.text={towers / 'bert'}",
    )
    assert job.config.tokenizer == str(towers / "bert")
    from transformers import BertForMaskedLM, ViTModel

    vit = ViTModel.from_pretrained(towers / "vit").state_dict()
    bert = BertForMaskedLM.from_pretrained(towers / "bert").state_dict()
    image, text = job.found["image"].params, job.found["text"].params
    np.testing.assert_array_equal(image["image/norm/bias"], vit["layernorm.bias"])
    words = bert["bert.embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(text["text/token_embedding/embedding"], words)
    assert {path.split("/")[0] for path in (*image, *text)} == {"image", "text"}
    assert not job.found["image"].kept and not job.found["text"].kept


CLIP = (
    "--config.model.image.patch=(16,16)",
    "--config.model.image.width=16",
    "--config.data.threads=1",
    "--config.evaluate.val=val",
)


def test_a_clip_fills_towers_and_projections_and_its_words_get_a_mask(
    persons, towers, tmp_path
):
    clip = towers / "clip"
    more, variant = [*start(clip), *CLIP], "cuhk_pedes,sdm,clip_b16"
    flags = finetuning.small(persons, tmp_path / "run", *more, variant=variant)
    job = finetuning.given(*flags)
    from transformers import CLIPModel

    theirs = CLIPModel.from_pretrained(clip).state_dict()
    taken = job.found["model"]
    parts = {path.split("/")[0] for path in taken.params}
    assert parts == {"image", "text", "image_projection", "text_projection"}
    kept = {path.split("/")[0] for path in taken.kept}
    assert kept == {"interaction", "cross_mlm_head"}
    kernel = theirs["visual_projection.weight"].numpy().T
    np.testing.assert_array_equal(
        taken.params["image_projection/kernel"], kernel, strict=True
    )
    words = theirs["text_model.embeddings.token_embedding.weight"].numpy()
    ours = taken.params["text/token_embedding/embedding"]
    np.testing.assert_array_equal(ours[:-1], words)
    np.testing.assert_allclose(ours[-1], words.mean(axis=0), atol=1e-6)
    assert "1 added to the vocabulary" in job.output
    assert job.model.temperature == "fixed" and job.model.temperature_init == 0.02


# --- which samples are seen ----------------------------------------------------------


def labels_of(batches, steps: int) -> list[np.ndarray]:
    stream = batches.from_step(0, threads=1, buffer=1)
    return [next(stream)["label"] for _ in range(steps)]


def test_held_out_persons_are_never_trained_on_and_are_all_of_val(persons, tmp_path):
    hold_out = ["--config.evaluate.val=hold_out", "--config.evaluate.hold_out=0.5"]
    hold_out.append("--config.batch_size=8")
    job = finetuning.given(*finetuning.small(persons, tmp_path / "run", *hold_out))
    train = list(Records(persons, "train", PersonRecord))
    held = set(job.batches.held_out.tolist())
    assert len(held) == 2 and job.batches.classes == job.model.identities == 2
    out = [record for record in train if record.label in held]
    assert set(job.val.person_ids) == {record.person_id for record in out}
    assert len(job.val.records) == len(out) == 8
    assert sorted(job.val.queries) == sorted(c for r in out for c in r.captions)
    by_image = {record.image_id: record.label for record in train}
    epochs = [image for step in range(6) for image in job.batches.image_ids(step)]
    assert {by_image[image] for image in epochs} == set(range(4)) - held
    more = [*hold_out, "--config.seed=7"]
    again = finetuning.given(*finetuning.small(persons, tmp_path / "2", *more)).batches
    assert again.held_out.tolist() == job.batches.held_out.tolist()
    assert again.image_ids(0) != job.batches.image_ids(0)


def test_persons_without_a_caption_are_neither_drawn_nor_a_class(others, persons):
    words = f"--config.tokenizer={persons / 'tokenizer'}"
    flags = finetuning.small(others, others.parent / "run", words)
    balanced = ["--config.data.identities=3", "--config.batch_size=9"]
    job = finetuning.given(*flags, *balanced, "--config.evaluate.val=")
    assert job.batches.classes == 3 and job.val is None
    for labels in labels_of(job.batches, 4):
        assert np.bincount(labels).tolist() == [3, 3, 3]


def test_without_gamma_there_is_no_pgu_and_retrieval_is_by_the_summary(
    persons, pretrained, tmp_path
):
    flags = finetuning.small(persons, tmp_path / "run", *start(pretrained))
    job = finetuning.given(*flags, "--config.loss.pgu=0")
    assert job.model.pgu is None and job.model.retrieval == "global"
    assert job.model.width == 16 and job.config.model.retrieval == "global"
    assert re.search(r"losses +identity 1, ranking 1\n", job.output)
    assert "pgu/" not in job.output and not job.found["model"].kept


# --- how it goes on ------------------------------------------------------------------


def figures(workdir) -> list[dict]:
    """The rows of metrics.jsonl without what depends on the clock."""
    rows = finetuning.rows(workdir)
    return [{k: v for k, v in r.items() if k not in report.SPEED} for r in rows]


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_bit_though_its_source_is_gone(
    persons, pretrained, launcher, tmp_path
):
    more = [*ALONE, "--config.steps=40", "--config.every.save=4"]

    def flags(workdir, source):
        return finetuning.small(persons, workdir, *start(source), *more)

    whole, run, source = (tmp_path / name for name in ("whole", "run", "source"))
    shutil.copytree(pretrained, source)
    code, output = launcher.run_job(*flags(whole, source))
    assert code == 0, output
    process = subprocess.Popen(
        [sys.executable, "-m", "unipt_jax.main", *flags(run, source)],
        cwd=jobs.ROOT,
        env=launcher.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    saved = run / "checkpoints"
    while process.poll() is None and not (saved / "4").exists():
        pass
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    shutil.rmtree(source)
    code, output = launcher.run_job(*flags(run, source))
    assert code == 0, output
    resumed = re.search(r"resumes after step (\d+)", output)
    assert 4 <= int(resumed[1]) < 40 and "initial model" not in output
    assert figures(run) == figures(whole)
    equal(params_of(run, "40"), params_of(whole, "40"))


def test_losses_of_4_steps_agree_on_8_devices(persons, pretrained, tuned, tmp_path):
    run = tmp_path / "run"
    flags = finetuning.small(persons, run, *start(pretrained), *ALONE)
    code, output = finetuning.here(*flags, "--config.mesh.fsdp=4", devices=8)
    assert code == 0 and "mesh {'data': 2, 'fsdp': 4}" in output, output
    for one, eight in zip(figures(tuned[0]), figures(run), strict=True):
        assert one.keys() == eight.keys()
        for name, value in one.items():
            # float32 sums in another order
            assert eight[name] == pytest.approx(value, rel=1e-5), name


def test_choosing_on_test_is_said_at_the_start_and_in_the_results(
    persons, pretrained, tmp_path
):
    run = tmp_path / "run"
    flags = finetuning.small(persons, run, *start(pretrained))
    code, output = finetuning.here(*flags, "--config.evaluate.val=test")
    assert code == 0, output
    assert "warning: the best checkpoint is chosen on 'test'" in output
    [entry] = json.loads((run / "evaluation.json").read_text()).values()
    assert entry["selected_on"] == "test" and entry["selected_here"]
