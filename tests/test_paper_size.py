"""The paper's size runs: 384x128 pixels, real vocabularies, towers of base width."""

import functools

import jax
import jobs
import pytest

from configs import pretrain
from unipt_jax import encoder, report
from unipt_jax.data import tokenizers
from unipt_jax.models import unipt


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


def test_the_paper_has_196_million_parameters(bert_vocabulary, capsys):
    words = tokenizers.load(bert_vocabulary)
    model = encoder.build_model(pretrain.get_config("paper"), words)
    init = functools.partial(unipt.initialise, model)
    report.parameter_table(jax.eval_shape(init, jax.random.key(0)))
    assert "196,4" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers", [2, pytest.param(12, marks=pytest.mark.full_size)], ids="{} layers".format
)
def test_two_steps_of_vit_and_bert(layers, launcher, bert_vocabulary, tmp_path):
    random = ["--config.init.image=", "--config.init.text="]
    vocabulary = f"--config.tokenizer={bert_vocabulary}"
    depth = [f"--config.model.{t}.layers={layers}" for t in ("image", "text")]
    _, losses = two_steps(launcher, tmp_path, "paper", vocabulary, *random, *depth)
    # near chance: log 4 for the pairs, log 30522 for the words
    assert all(11 < loss < 13.5 for loss in losses)


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
