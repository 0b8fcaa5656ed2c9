"""Every preset of pre-training runs through the program, its towers made small."""

import jobs
import pytest

SMALL = (
    "--config.steps=3",
    "--config.batch_size=16",
    "--config.every.report=1",
    "--config.init.model=",
    "--config.init.image=",
    "--config.init.text=",
    "--config.model.image.height=48",
    "--config.model.image.width=16",
    *(
        f"--config.model.{tower}.{field}"
        for tower in ("image", "text")
        for field in ("features=32", "layers=1", "heads=2", "hidden=48")
    ),
)


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("paper", ("padding masked", "head tied", "rate 0.15, tokens")),
        ("released,deit_s16", ("padding in", "head untied", "whole words")),
        ("clip_b16", ("class token and end of text", "head none", "weight 0")),
        ("clip_b16,released", ("class token and end of text", "learned")),
    ],
)
def test_preset_runs_and_says_its_choices(
    variant, said, launcher, clip_vocabulary, tmp_path
):
    persons = launcher.persons
    clip = "clip" in variant
    tokenizer = clip_vocabulary if clip else persons / "tokenizer"
    code, output = launcher.run_job(
        f"--config=configs/pretrain.py:{variant}",
        f"--config.data.records={persons}",
        f"--config.data.captions={persons / 'captions'}",
        f"--config.tokenizer={tokenizer}",
        f"--workdir={tmp_path / 'run'}",
        *SMALL,
    )
    assert code == 0, output
    assert list(jobs.losses(tmp_path / "run")) == [1, 2, 3]
    assert all(words in output for words in said), output
