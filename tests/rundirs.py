"""Run directories without a run: random weights, saved as training saves them."""

import json

import jax
from helpers import random_like

from configs import common
from unipt_jax import encoder, optim, sharding
from unipt_jax.checkpoint import Checkpoints
from unipt_jax.models import unipt


def section(tower: str, **changes) -> dict:
    """A preset's `model` section with both towers made tiny, in float32.

    changes: fields of the section; `image` and `text` give fields of the towers.
    """
    model = common.model(tower).to_dict()
    small = dict(features=16, layers=2, heads=2, hidden=24)
    model["image"] |= small | dict(height=48, width=16, patch=(8, 8))
    model["image"] |= changes.pop("image", {})
    model["text"] |= small | dict(features=12, positions=40) | changes.pop("text", {})
    return model | dict(embedding=8, dtype="float32") | changes


def make_run(folder, model: dict, tokenizer, lengths=(16, 40), pixels=None):
    """Writes a run directory with one checkpoint, of step 3; returns its parameters."""
    pixels = pixels or dict(mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    config = dict(job="pretrain", model=model, pixels=pixels)
    config |= dict(data=dict(lengths=lengths), evaluate=dict(val=""))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(folder / "tokenizer")
    module = encoder.build_model(config, tokenizer)
    mesh = sharding.make_mesh(data=0, fsdp=1)
    params = random_like(lambda key: unipt.initialise(module, key))
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    optimiser = optim.Optimiser(optim.make_schedule(peak=1.0, warmup=1, total=2))
    state = jax.jit(optimiser.init)(placed)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(state, 3)
    checkpoints.close()
    return params
