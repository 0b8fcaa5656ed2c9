"""Claims on a batch that passes the towers in parts: the whole batch's loss and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MASK, arrays, build, images, mesh_of, quick_jit, texts

from configs import pretrain
from unipt_jax import objectives, parts, rundir, sharding, train

COUNTS = [10, 1, 5, 9, 14, 3, 7, 8, 2, 11, 6, 4, 13, 12, 9, 1]
BATCH = {
    "image": images(16),
    "tokens": texts(COUNTS, 16),
    "label": np.arange(16, dtype=np.int32) // 2,
}
KEY = jax.random.key(4)
NOISE = dict(dropout=0.2, attention_dropout=0.2)
SETTINGS = dict(
    pixels=objectives.Pixels(mean=0.4, std=0.3, flips=True, shift=2, erasing=0.5),
    masked=objectives.Masking(MASK, 0.3),
)
PGU = dict(parts=2, layers=1, heads=2, head_width=4, hidden=8, features=4)


@functools.cache
def model_of(job):
    """A model with all that is random switched on, and its parameters."""
    heads = dict(image=NOISE | dict(drop_path=0.3), text=NOISE, temperature="learned")
    if job == "pretrain":
        return build(bias="learned", **heads)
    cross = dict(layers=1, heads=2)
    return build(pgu=PGU, interaction=cross, identities=8, mlm_output="none", **heads)


@functools.cache
def value_and_grads(job, part=0, chunk=0, devices=1, fsdp=1):
    """Loss, metrics and gradients of one step's objective."""
    model, params = model_of(job)
    mesh = mesh_of(devices, fsdp)
    memory = objectives.Memory(part, chunk, mesh)
    if job == "pretrain":
        weights = objectives.PretrainWeights(contrastive=0.7, mlm=1.3, sigmoid=0.01)
        objective = objectives.pretrain
    else:
        weights = objectives.FinetuneWeights(0.7, 1.3, 0.6, 0.8, 1.1, 0.9)
        objective = objectives.finetune
    loss = objective(model, weights=weights, memory=memory, **SETTINGS)
    batch = sharding.place_batch(BATCH, np.arange(16), 16, mesh)
    params = jax.device_put(params, sharding.shardings(params, mesh))
    run = quick_jit(jax.value_and_grad(loss, has_aux=True))
    (total, metrics), grads = run(params, batch, KEY)
    return float(total), {k: float(v) for k, v in metrics.items()}, arrays(grads)


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ("pretrain", dict(part=4, chunk=3)),
        ("pretrain", dict(part=8, chunk=1, devices=8, fsdp=2)),
        ("finetune", dict(part=8, chunk=1, devices=8, fsdp=2)),
    ],
)
def test_parts_and_tiles_give_the_whole_batchs_loss_and_gradient(job, options):
    total, metrics, grads = value_and_grads(job)
    again, others, found = value_and_grads(job, **options)
    # The same draws of dropout, masks and augmentation; sums in another order.
    np.testing.assert_allclose(again, total, rtol=2e-6)
    assert metrics.keys() == others.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=2e-6, err_msg=name)
    assert grads.keys() == found.keys()
    for path, grad in grads.items():
        np.testing.assert_allclose(
            found[path], grad, rtol=1e-5, atol=1e-5, err_msg=path
        )


def test_without_the_rows_numbers_dropout_would_differ_and_so_the_loss():
    """What the test above would miss if nothing random were drawn."""
    model, params = model_of("pretrain")
    seen = SETTINGS["pixels"].normalise(BATCH["image"])

    @quick_jit
    def encode(rows):
        return model.apply(
            {"params": params}, seen, rows, rngs={"dropout": KEY}, method="encode_image"
        )

    whole = encode(np.arange(16))
    np.testing.assert_array_equal(encode(np.arange(16)), whole)
    assert np.abs(encode(np.arange(16) + 16) - whole).max() > 0.01


def test_only_one_parts_activations_are_held():
    """The largest thing that the gradient's program keeps between its two loops."""

    def loss(kernel, batch, size):
        def encode(x):
            return jnp.tanh(x["a"] @ kernel) @ jnp.ones((4096, 1))

        return parts.by_parts(encode, batch, size=size).sum()

    def held(size):
        grad = jax.jit(jax.grad(functools.partial(loss, size=size)))
        batch = {"a": jnp.ones((256, 16))}
        compiled = grad.lower(jnp.ones((16, 4096)), batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert held(16) < held(0) / 4


@pytest.mark.parametrize(("size", "devices"), [(5, 1), (6, 1), (4, 8)])
def test_parts_that_do_not_divide_the_batch_are_refused(size, devices):
    with pytest.raises(ValueError, match=f"parts of {size} must divide a batch of 16"):
        parts.by_parts(lambda x: x, jnp.ones(16), size=size, devices=devices)


def test_a_run_may_go_on_with_other_fields_of_memory(tmp_path):
    config = pretrain.get_config("paper").unlock()
    rundir.open_workdir(config, tmp_path, harmless=train.HARMLESS)
    config.model.image.remat, config.model.text.remat = "block", "dots"
    config.memory.micro_batch, config.memory.chunk, config.mesh.fsdp = 64, 32, 8
    rundir.open_workdir(config, tmp_path, harmless=train.HARMLESS)
