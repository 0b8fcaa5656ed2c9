"""Claims on pre-training's loss: its parts by hand, its weights, its devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLS,
    FIRST,
    MASK,
    PAD,
    SEP,
    apply,
    arrays,
    build,
    images,
    mesh_of,
    quick_jit,
    texts,
)

from unipt_jax import masking, objectives, sharding
from unipt_jax.data import transforms

COUNTS = [10, 1, 5, 9, 14, 3, 7, 8]
BATCH = {"image": images(8), "tokens": texts(COUNTS, 16)}
KEY = jax.random.key(4)


def objective(
    model, contrastive=1.0, mlm=1.0, mask_rate=0.3, continuation=None, **augmented
):
    return objectives.pretrain(
        model,
        weights=objectives.PretrainWeights(contrastive, mlm),
        pixels=objectives.Pixels(mean=0.4, std=0.3, **augmented),
        masked=objectives.Masking(MASK, mask_rate, continuation),
    )


def device(batch):
    return {name: jnp.asarray(value) for name, value in batch.items()}


def normal(batch):
    return ((batch["image"] / 255 - 0.4) / 0.3).astype(np.float32)


def softmax_loss(logits, targets):
    """Mean cross-entropy of (M, C) logits in float64."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    return (total - logits[np.arange(len(logits)), targets]).mean()


def masked_by_hand(tokens):
    """The second word of each text hidden, and the first kept, as BERT's 10% are."""
    places = np.tile([2, 1], (len(tokens), 1))
    used = np.stack([tokens[:, 2] >= FIRST, tokens[:, 1] >= FIRST], 1)
    masked = tokens.copy()
    masked[used[:, 0], 2] = MASK
    targets = np.take_along_axis(tokens, places, 1)
    return masked, places, targets, used.astype(np.float32)


def test_one_pass_of_clean_and_masked_texts_equals_two_passes_by_hand(monkeypatch):
    model, params = build(temperature="learned", mlm_output="untied")
    hand = masked_by_hand(BATCH["tokens"])
    monkeypatch.setattr(masking, "mask_tokens", lambda *_, **__: hand)
    run = quick_jit(objective(model, contrastive=0.7, mlm=1.3))
    total, metrics = run(params, BATCH, KEY)

    image = apply(model, params, "encode_image", normal(BATCH))
    text = apply(model, params, "encode_text", BATCH["tokens"])
    scale = np.exp(float(params["log_scale"]))
    logits = scale * image.astype(np.float64) @ text.T
    pairs = np.arange(8)
    contrastive = (softmax_loss(logits, pairs) + softmax_loss(logits.T, pairs)) / 2

    masked, places, targets, used = hand
    assert 8 < used.sum() < 16  # one text is of one word
    words = apply(model, params, "text_features", masked, None)
    words = apply(model, params, "mlm_logits", words)
    rows, slots = np.nonzero(used)
    mlm = softmax_loss(words[rows, places[rows, slots]], targets[rows, slots])
    # float32 through two towers of one layer.
    np.testing.assert_allclose(metrics["contrastive"], contrastive, rtol=0, atol=1e-5)
    np.testing.assert_allclose(metrics["mlm"], mlm, rtol=0, atol=1e-5)
    np.testing.assert_allclose(metrics["temperature"], 1 / scale, rtol=1e-6)
    np.testing.assert_allclose(total, 0.7 * contrastive + 1.3 * mlm, rtol=0, atol=2e-5)


def test_the_masks_follow_the_settings_and_are_of_this_batch(monkeypatch):
    model, params = build()
    seen = {}

    def spy(key, tokens, **settings):
        seen.update(settings, tokens=tokens)
        return masked_by_hand(np.full_like(BATCH["tokens"], FIRST))

    monkeypatch.setattr(masking, "mask_tokens", spy)
    continuation = np.arange(24) % 3 == 0
    loss = objective(model, mask_rate=0.4, continuation=continuation)
    jax.eval_shape(lambda key: loss(params, BATCH, key), KEY)
    assert seen.pop("tokens") is BATCH["tokens"]
    assert seen == dict(
        special=(PAD, CLS, SEP),
        mask_id=MASK,
        vocabulary=24,
        rate=0.4,
        continuation=continuation,
    )


@pytest.mark.parametrize("off", [dict(mlm=0.0), dict(mask_rate=0.0)])
def test_mlm_is_left_out_at_weight_0_or_rate_0(off, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the masked pass is paid for")

    model, params = build()
    with_mlm = jax.eval_shape(objective(model), params, device(BATCH), KEY)[1]
    assert set(with_mlm) == {"contrastive", "mlm"}
    monkeypatch.setattr(masking, "mask_tokens", never)
    loss = quick_jit(objective(model, contrastive=0.7, **off))
    total, metrics = loss(params, BATCH, KEY)
    assert set(metrics) == {"contrastive"}
    np.testing.assert_allclose(total, 0.7 * metrics["contrastive"], rtol=1e-6)
    image = apply(model, params, "encode_image", normal(BATCH))
    text = apply(model, params, "encode_text", BATCH["tokens"])
    logits, pairs = image.astype(np.float64) @ text.T, np.arange(8)
    expected = (softmax_loss(logits, pairs) + softmax_loss(logits.T, pairs)) / 2
    np.testing.assert_allclose(metrics["contrastive"], expected, rtol=0, atol=2e-6)


def test_both_losses_reach_the_parameters_they_train():
    model, params = build(temperature="learned")

    def grads(**weights):
        run = jax.grad(objective(model, **weights), has_aux=True)
        return arrays(quick_jit(run)(params, BATCH, KEY)[0])

    words = grads(contrastive=0.0, mlm=1.0)
    assert not any(np.any(words[path]) for path in words if path.startswith("image"))
    assert np.any(words["text/token_embedding/embedding"])
    assert np.any(words["mlm_head/bias"]) and not np.any(words["log_scale"])
    both = grads()
    # The keys' biases add the same to all logits of a softmax: they never matter.
    silent = {path for path, grad in both.items() if np.abs(grad).max() < 1e-6}
    assert all(path.endswith("attention/key/bias") for path in silent), silent


def test_augmentation_is_what_is_asked_for():
    model, params = build()

    def contrastive(pictures, **changes):
        loss = objective(model, mlm=0.0, **changes)
        batch = BATCH | {"image": np.asarray(pictures)}
        return float(loss(params, batch, KEY)[0])

    plain = contrastive(BATCH["image"])
    assert contrastive(BATCH["image"], flips=True) != plain
    assert contrastive(BATCH["image"], shift=2) != plain
    mirror = np.concatenate([BATCH["image"], BATCH["image"][:, :, ::-1]], 2)[:, :, 4:12]
    assert contrastive(mirror, flips=True) == contrastive(mirror)
    # The draw comes from the first of three keys.
    moved = transforms.augment(
        jax.random.split(KEY, 3)[0], BATCH["image"], flips=True, pad=2
    )
    assert contrastive(BATCH["image"], flips=True, shift=2) == contrastive(moved)


@functools.cache
def noisy():
    """A model with all that is random switched on: value and gradients, jitted."""
    noise = dict(dropout=0.2, attention_dropout=0.2)
    model, params = build(temperature="learned", image=noise, text=noise)
    loss = objective(model, flips=True, shift=2)
    return params, quick_jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("fsdp", [1, 4])
def test_8_devices_give_the_loss_and_gradients_of_1_with_dropout_on(fsdp):
    params, run = noisy()
    mesh = mesh_of(8, fsdp)
    (total, metrics), grads = run(params, BATCH, KEY)
    rows = sharding.local_rows(8, mesh)
    batch = sharding.place_batch(BATCH, rows, 8, mesh)
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    (total8, metrics8), grads8 = run(placed, batch, jax.device_put(KEY))
    # The same draws; sums in another order.
    np.testing.assert_allclose(total8, total, rtol=0, atol=2e-6)
    for name in ("contrastive", "mlm", "temperature"):
        np.testing.assert_allclose(metrics8[name], metrics[name], rtol=0, atol=2e-6)
    grads, grads8 = arrays(grads), arrays(grads8)
    for path, grad in grads.items():
        np.testing.assert_allclose(
            grads8[path], grad, rtol=1e-5, atol=2e-6, err_msg=path
        )


def test_in_bfloat16_the_loss_and_its_gradients_are_near_float32s_and_in_float32():
    model, params = build(temperature="learned")
    half, _ = build(temperature="learned", dtype="bfloat16")

    def run(model):
        grad = jax.value_and_grad(objective(model), has_aux=True)
        (total, _), grads = quick_jit(grad)(params, BATCH, KEY)
        return float(total), arrays(grads)

    (total, grads), (near, found) = run(model), run(half)
    assert 0 < abs(near - total) < 0.03 * total
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    for path, grad in grads.items():
        assert found[path].dtype == np.float32
        far = np.sqrt(((found[path] - grad) ** 2).sum())
        # 8 digits through two towers: each gradient to some percent of the whole one.
        assert far < 0.05 * norm, path


def test_the_key_alone_decides_the_draws():
    params, run = noisy()
    (first, _), _ = run(params, BATCH, KEY)
    (again, _), _ = run(params, BATCH, KEY)
    (other, _), _ = run(params, BATCH, jax.random.key(5))
    assert first == again
    assert abs(first - other) > 1e-3
