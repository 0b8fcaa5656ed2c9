"""Mistakes that users make: one sentence, exit code 1, no traceback, nothing lost."""

import json
import os
import shutil

import finetuning
import numpy as np
import pytest


@pytest.fixture(scope="module")
def finished(launcher, tmp_path_factory):
    """The work directory of a whole run, with val and test."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    more = ["--config.evaluate.val=val", "--config.evaluate.test=test"]
    code, output = launcher.run(workdir, *more)
    assert code == 0, output
    return workdir


def here(launcher, workdir, *more: str) -> tuple[int, str]:
    """Exit code and output in this process, for what is refused before it computes."""
    return finetuning.here(*launcher.arguments(workdir, *more)[3:], devices=8)


def the_sentence(code: int, output: str) -> str:
    """The one line of an error; fails on a traceback or another exit code."""
    assert code == 1, output
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    return errors[0]


def test_no_data_at_the_path(launcher, tmp_path):
    flag = "--config.data.records=data/nowhere"
    said = the_sentence(*here(launcher, tmp_path / "run", flag))
    assert "no record set at data/nowhere" in said and "data_prep.build" in said
    assert not (tmp_path / "run").exists()


def test_unknown_variant(launcher, tmp_path):
    said = the_sentence(
        *here(launcher, tmp_path, "--config=configs/pretrain.py:papper")
    )
    assert "unknown variant 'papper'" in said and "released" in said


def test_two_variants_of_one_axis(launcher, tmp_path):
    variant = "--config=configs/pretrain.py:vit_b16,deit_s16"
    assert "are both a tower" in the_sentence(*here(launcher, tmp_path, variant))


def test_misspelt_field(launcher, tmp_path):
    said = the_sentence(*here(launcher, tmp_path, "--config.batch_sise=8"))
    assert "batch_sise" in said and "batch_size" in said


def test_value_of_the_wrong_type(launcher, tmp_path):
    said = the_sentence(*here(launcher, tmp_path, "--config.batch_size=many"))
    assert "batch_size" in said


def test_no_such_config_file(launcher, tmp_path):
    said = the_sentence(*here(launcher, tmp_path, "--config=configs/pretrian.py"))
    assert "the configs are in configs/" in said


def test_batch_size_that_does_not_divide(launcher, tmp_path):
    flag = "--config.batch_size=12"
    said = the_sentence(*here(launcher, tmp_path / "run", flag))
    assert "batch_size=12 must be a positive multiple of the 8 devices" in said


def test_mesh_that_does_not_fit(launcher, tmp_path):
    flag = "--config.mesh.fsdp=3"
    said = the_sentence(*launcher.run(tmp_path / "run", flag, devices=8))
    assert "mesh.fsdp=3 must be a divisor" in said and "here 8" in said


def test_to_go_on_with_another_config_is_refused(launcher, finished):
    said = the_sentence(*here(launcher, finished, "--config.lr=1e-3"))
    assert "lr: 0.0025 there, 0.001 now" in said


def test_checkpoint_of_another_shape(launcher, finished, tmp_path):
    shutil.copytree(finished / "checkpoints", tmp_path / "run" / "checkpoints")
    flag = "--config.model.embedding=64"
    said = the_sentence(*launcher.run(tmp_path / "run", flag))
    assert "is of another model" in said and "shape (128,) there, (64,) here" in said


def test_corrupt_record(launcher, persons, tmp_path):
    broken = tmp_path / "set"
    shutil.copytree(persons, broken)
    [file] = broken.glob("records-pretrain*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = os.urandom(2000)
    file.write_bytes(data)
    flag = f"--config.data.records={broken}"
    said = the_sentence(*launcher.run(tmp_path / "run", flag))
    assert str(broken) in said or "cannot be decoded" in said


def test_loss_that_is_not_finite_names_step_rate_and_images(launcher, tmp_path):
    flags = ["--config.lr=1e30", "--config.every.save=3", "--config.optimiser.clip=0.0"]
    said = the_sentence(*launcher.run(tmp_path / "run", *flags))
    assert "not finite at step" in said and "learning rate" in said
    assert "pretrain/" in said  # image ids
    steps = [p.name for p in (tmp_path / "run" / "checkpoints").glob("[0-9]*")]
    bad = int(said.split("not finite at step ")[1].split()[0])
    assert all(int(step) < bad for step in steps)


def test_full_disk(launcher, small_disk):
    folder = small_disk("size=2m")
    said = the_sentence(*launcher.run(folder / "run", "--config.every.save=3"))
    assert "the disk is full" in said


def test_read_only_workdir(launcher, small_disk):
    folder = small_disk("ro")
    assert "read-only" in the_sentence(*here(launcher, folder / "run"))


def test_nothing_to_evaluate(tmp_path):
    flags = ["--config=configs/evaluate.py", f"--workdir={tmp_path}"]
    assert "--config.model=DIR" in the_sentence(*finetuning.here(*flags))


def test_evaluate_job_gives_the_figures_that_training_gave(
    launcher, finished, persons, tmp_path
):
    out = tmp_path / "evaluated"
    code, output = launcher.run_job(
        "--config=configs/evaluate.py",
        f"--config.model={finished}",
        f"--config.data.records={persons}",
        f"--workdir={out}",
    )
    assert code == 0, output
    here = json.loads((out / "evaluation.json").read_text())["set/test"]
    there = json.loads((finished / "evaluation.json").read_text())["set/test"]
    for key in ("rank1", "rank5", "rank10", "map", "minp", "queries", "gallery"):
        assert here[key] == pytest.approx(there[key], abs=1e-9), key
    assert here["queries"] == 64 and here["gallery"] == 32
    html = (out / "report.html").read_text()
    assert html.count("<q>") == 24  # 8 queries of each kind, 10 pictures each
    firsts = html.count('class="right first"')
    assert html.count("data:image/jpeg;base64") == 240 + firsts
    assert "http" not in html.replace("http://www.w3.org", "").replace(
        "https://matplotlib.org", ""
    ).replace("http://purl.org", "").replace("http://creativecommons.org", "")


def test_load_encodes_pictures_and_sentences_as_unit_vectors(finished, persons):
    from PIL import Image

    import unipt_jax

    encoder = unipt_jax.load(finished)
    images = encoder.encode_image(
        [Image.new("L", (30, 90), 77), Image.new("RGBA", (8, 9))]
    )
    texts = encoder.encode_text(["a man in a red coat", "a bag", "x " * 300])
    assert images.shape == (2, 128) and texts.shape == (3, 128)
    assert images.dtype == texts.dtype == np.float32
    for rows in (images, texts):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    again = encoder.encode_text(["a bag"])
    np.testing.assert_allclose(again[0], texts[1], atol=1e-6)
    assert encoder.encode_text([]).shape == (0, 128)
