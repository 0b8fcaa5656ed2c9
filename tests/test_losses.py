"""Claims on the losses, against numpy in float64 and PyTorch's autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of

from unipt_jax import losses, sharding


def unit_rows(rows, width, seed=0):
    x = np.random.default_rng(seed).standard_normal((rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def log_softmax(x, axis):
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def contrastive_numpy(image, text, scale):
    """InfoNCE in float64: the loss and its gradients by hand."""
    image, text = image.astype(np.float64), text.astype(np.float64)
    b = len(image)
    cosines = image @ text.T
    rows, columns = log_softmax(scale * cosines, 1), log_softmax(scale * cosines, 0)
    loss = -(np.trace(rows) + np.trace(columns)) / (2 * b)
    slope = (np.exp(rows) + np.exp(columns) - 2 * np.eye(b)) / (2 * b)
    to_image, to_text = scale * slope @ text, scale * slope.T @ image
    return loss, (to_image, to_text, (slope * cosines).sum())


def simplex(n):
    """n unit vectors whose cosines are all -1 / (n - 1): as far apart as can be."""
    x = np.eye(n) - 1 / n
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1 / 0.07, 100.0])
def test_contrastive_and_its_gradients_equal_numpy(scale):
    image, text = unit_rows(24, 16), unit_rows(24, 16, seed=1)
    loss, grads = jax.value_and_grad(losses.contrastive, (0, 1, 2))(
        image, text, jnp.float32(scale)
    )
    expected, slopes = contrastive_numpy(image, text, scale)
    # A logit is rounded to 2^-24 of its size, which is up to `scale`.
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-6 * max(1, scale / 10))
    for grad, slope in zip(grads, slopes, strict=True):
        np.testing.assert_allclose(grad, slope, rtol=1e-5, atol=1e-6 * scale / 2)


def test_contrastive_gradients_equal_autograd():
    torch = pytest.importorskip("torch")
    image, text = unit_rows(16, 8), unit_rows(16, 8, seed=1)
    leaves = [torch.tensor(x, dtype=torch.float64) for x in (image, text, 5.0)]
    for leaf in leaves:
        leaf.requires_grad_()
    logits = leaves[2] * leaves[0] @ leaves[1].T
    classes = torch.arange(16)
    entropy = torch.nn.functional.cross_entropy
    loss = (entropy(logits, classes) + entropy(logits.T, classes)) / 2
    loss.backward()
    value, grads = jax.value_and_grad(losses.contrastive, (0, 1, 2))(
        image, text, jnp.float32(5.0)
    )
    np.testing.assert_allclose(value, loss.item(), rtol=0, atol=1e-6)
    for grad, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_contrastive_on_8_devices_equals_numpy_over_the_global_batch(fsdp):
    image, text = unit_rows(32, 16), unit_rows(32, 16, seed=1)
    placement = sharding.batch_sharding(mesh_of(8, fsdp))
    placed = jax.device_put((image, text), placement)
    loss, grads = jax.jit(jax.value_and_grad(losses.contrastive, (0, 1)))(*placed, 10.0)
    expected, slopes = contrastive_numpy(image, text, 10.0)
    np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-6)
    for grad, slope in zip(grads, slopes[:2], strict=True):
        assert len(grad.sharding.device_set) == 8
        np.testing.assert_allclose(grad, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("b", [2, 64, 512])
def test_contrastive_at_chance_is_the_log_of_the_batch(b):
    same = np.repeat(unit_rows(1, 8), b, axis=0)
    loss = losses.contrastive(same, same, jnp.float32(20.0))
    np.testing.assert_allclose(loss, np.log(b), rtol=1e-6)


@pytest.mark.parametrize(("n", "stated"), [(64, 3.17), (512, 5.24)])
def test_without_a_temperature_the_floor_is_that_of_a_simplex(n, stated):
    floor = np.log(1 + (n - 1) * np.exp(-n / (n - 1)))
    assert round(floor, 2) == stated  # a regular simplex: the lowest there is
    best = simplex(n)
    loss, grad = jax.value_and_grad(losses.contrastive)(best, best, jnp.float32(1))
    np.testing.assert_allclose(loss, floor, rtol=1e-6)
    # It is a floor: on the sphere there is no way down, and others lie above.
    tangent = grad - (grad * best).sum(1, keepdims=True) * best
    np.testing.assert_allclose(tangent, 0, atol=1e-8)
    for width in (2, n):
        other = unit_rows(n, width)
        assert losses.contrastive(other, other, jnp.float32(1)) > floor + 1e-3


def test_a_mismatched_pair_costs_more_than_a_matched_one():
    x = unit_rows(8, 8)
    right = losses.contrastive(x, x, jnp.float32(10))
    assert losses.contrastive(x, np.roll(x, 1, 0), jnp.float32(10)) > right + 1


def test_cross_entropy_and_its_gradient_equal_torch_over_the_weighted_places():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((4, 5, 7))).astype(np.float32)
    targets = rng.integers(0, 7, (4, 5))
    weights = (rng.random((4, 5)) < 0.5).astype(np.float32)
    assert 0 < weights.sum() < weights.size
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    used = torch.tensor(weights, dtype=torch.bool)
    expected = torch.nn.functional.cross_entropy(
        leaf[used], torch.tensor(targets)[used]
    )
    expected.backward()
    loss, grad = jax.value_and_grad(losses.cross_entropy)(logits, targets, weights)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(grad, leaf.grad, rtol=0, atol=1e-6)
    assert not np.any(np.asarray(grad)[weights == 0])


def test_cross_entropy_where_every_weight_is_0_is_0_with_a_zero_gradient():
    logits = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    loss, grad = jax.value_and_grad(losses.cross_entropy)(
        logits, np.arange(3), np.zeros(3, np.float32)
    )
    assert loss == 0
    np.testing.assert_array_equal(grad, 0)


def test_losses_stay_finite_at_huge_logits():
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], np.float32)
    loss = losses.cross_entropy(logits, np.array([0, 1]), np.ones(2, np.float32))
    np.testing.assert_allclose(loss, 1e4, rtol=1e-6)  # (0 + 2e4) / 2
    same = simplex(4)
    assert np.isfinite(losses.contrastive(same, -same, jnp.float32(1e4)))
