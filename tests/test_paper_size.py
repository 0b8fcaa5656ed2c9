"""The paper's size runs: 384x128 pixels, real vocabularies, towers of base size."""

import jobs
import pytest


def two_steps(launcher, workdir, variant, *more):
    """What two steps print, and their losses."""
    code, output = launcher.run_job(
        f"--config=configs/pretrain.py:{variant}",
        "--config.steps=2",
        "--config.batch_size=4",
        "--config.every.report=1",
        f"--config.data.records={launcher.persons}",
        f"--config.data.captions={launcher.persons / 'captions'}",
        f"--workdir={workdir}",
        *more,
    )
    assert code == 0, output
    losses = jobs.losses(workdir)
    assert list(losses) == [1, 2]
    return output, losses.values()


@pytest.mark.slow
def test_two_steps_of_vit_and_bert(launcher, bert_vocabulary, tmp_path):
    random = ["--config.init.image=", "--config.init.text="]
    vocabulary = f"--config.tokenizer={bert_vocabulary}"
    output, losses = two_steps(launcher, tmp_path, "paper", vocabulary, *random)
    # near chance: log 4 for the pairs, log 30522 for the words
    assert all(11 < loss < 13.5 for loss in losses)
    assert "196,4" in output  # million parameters


@pytest.mark.full_size
def test_two_steps_of_clip_with_an_added_mask_token(
    launcher, clip_vocabulary, tmp_path
):
    output, losses = two_steps(
        launcher,
        tmp_path,
        "clip_b16",
        f"--config.tokenizer={clip_vocabulary}",
        "--config.init.model=",
        "--config.mlm.add_mask=True",
        "--config.model.mlm_output=tied",
        "--config.loss.mlm=1",
    )
    # log 49409 for the words; the pairs' temperature starts at 0.01
    assert all(11 < loss < 30 for loss in losses)
    assert "49409 tokens" in output
