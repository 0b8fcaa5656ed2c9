"""Claims on the losses, against numpy in float64 and PyTorch's autograd."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import five_sigma, mesh_of, quick_jit

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


@pytest.mark.parametrize("devices", [1, 8])
def test_sigmoid_and_its_gradients_equal_autograd(devices):
    torch = pytest.importorskip("torch")
    pair = unit_rows(16, 6), unit_rows(16, 6, seed=1)
    leaves = [torch.tensor(x, dtype=torch.float64) for x in (*pair, 9.0, -8.0)]
    for leaf in leaves:
        leaf.requires_grad_()
    logits = leaves[2] * leaves[0] @ leaves[1].T + leaves[3]
    sign = 2 * torch.eye(16, dtype=torch.float64) - 1
    expected = -torch.nn.functional.logsigmoid(sign * logits).sum() / 16
    expected.backward()
    rows = sharding.batch_sharding(mesh_of(devices))
    placed = [jax.device_put(x, rows) for x in pair]
    run = jax.jit(jax.value_and_grad(losses.sigmoid, (0, 1, 2, 3)))
    value, grads = run(*placed, jnp.float32(9), jnp.float32(-8))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    for found, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(found, leaf.grad, rtol=1e-5, atol=1e-6)


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


# --- ranking -------------------------------------------------------------------------

MARGIN = 0.2
PEOPLE = np.array([0, 0, 1, 1, 1, 2, 2, 3])  # of the 8 pairs of a batch


def ranking_of(ids, **options):
    """`losses.ranking` as a function of key and cosines: the texts are an orthonormal base."""
    base = np.eye(len(ids), dtype=np.float32)
    options = dict(margin=MARGIN) | options
    loss = functools.partial(losses.ranking, text=base, ids=ids, **options)
    return quick_jit(jax.value_and_grad(loss, 1))


def apart(seed):
    """Cosines of 8 pairs of which none is a candidate both ways.

    The right pairs differ by more than the margin, so what lies in the one's band is not
    in the other's.
    """
    rng = np.random.default_rng(seed)
    right = -0.85 + 0.25 * rng.permutation(8)
    cosines = rng.uniform(-1, 1, (8, 8))
    below = rng.uniform(0, 0.2, (8, 8))
    bands = [cosines, right[:, None] - below, right - below]
    cosines = np.choose(rng.integers(0, 3, (8, 8)), bands)
    np.fill_diagonal(cosines, right)
    return cosines.astype(np.float32)


def hinges(cosines, ids):
    """Hinges of both ways in float64, anchors down, and which are semi-hard."""
    cosines = cosines.astype(np.float64)
    right, other = np.diagonal(cosines)[:, None], ids[:, None] != ids
    for x in (cosines, cosines.T):
        hinge = MARGIN + x - right
        yield hinge, other & (hinge > 0) & (hinge < MARGIN)


def drawn_of(grads, cosines, ids):
    """(..., B, B) gradients -> what was drawn each way, anchors down, 0 or 1."""
    (_, first), (_, second) = hinges(cosines, ids)
    assert not (first & second.T).any()  # so a place tells which way it was drawn
    return np.where(first, grads, 0), np.where(second, np.swapaxes(grads, -1, -2), 0)


def test_ranking_draws_semi_hard_negatives_alone_one_an_anchor_each_about_equally():
    cosines, keys = apart(85), 3000
    run = jax.vmap(ranking_of(PEOPLE), (0, None))
    values, grads = run(jax.random.split(jax.random.key(0), keys), cosines)
    values, grads = np.asarray(values), np.asarray(grads)
    both = list(hinges(cosines, PEOPLE))
    expected, sums = 0, []
    for (hinge, semi_hard), drawn in zip(
        both, drawn_of(grads, cosines, PEOPLE), strict=True
    ):
        counts = semi_hard.sum(1)
        assert 0 in counts and 1 in counts and counts.max() >= 3
        np.testing.assert_array_equal(drawn.sum(2), np.tile(counts > 0, (keys, 1)))
        share = drawn.mean(0)
        for i, j in np.argwhere(semi_hard):
            wanted = 1 / counts[i]
            assert abs(share[i, j] - wanted) <= five_sigma(wanted, keys), (i, j)
        expected = expected + (drawn * hinge).sum((1, 2))
        sums.append(drawn)
    # Nothing else has a gradient, but for the right pairs of the anchors that drew.
    whole = sums[0] + np.swapaxes(sums[1], 1, 2)
    right = sums[0].sum(2) + sums[1].sum(2)
    np.testing.assert_array_equal(grads, whole - right[:, None] * np.eye(8))
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    # The two ways are drawn apart: where both choose among some of the same eight, all
    # pairs of choices come as often.
    shared = (both[0][1] & both[1][1]).sum(1)
    assert shared.max() >= 2
    for i in np.flatnonzero(shared >= 2):
        pairs = np.einsum("kx,ky->xy", sums[0][:, i], sums[1][:, i]) / keys
        wanted = np.outer(both[0][1][i], both[1][1][i])
        wanted = wanted / wanted.sum()
        assert np.all(np.abs(pairs - wanted) <= five_sigma(wanted, keys))


@pytest.mark.parametrize(("reduction", "over"), [("sum", 1), ("mean", 8)])
def test_ranking_sums_or_means_over_the_anchors_with_and_without_a_negative(
    reduction, over
):
    cosines, key = apart(85), jax.random.key(1)
    _, grad = ranking_of(PEOPLE)(key, cosines)
    value, slope = ranking_of(PEOPLE, reduction=reduction)(key, cosines)
    ways = zip(hinges(cosines, PEOPLE), drawn_of(grad, cosines, PEOPLE), strict=True)
    expected = sum((hinge * drawn).sum() for (hinge, _), drawn in ways)
    np.testing.assert_allclose(value, expected / over, rtol=1e-6)
    np.testing.assert_allclose(slope, np.asarray(grad) / over, rtol=1e-6)


def lone():
    """Unit rows of 8 pairs where an anchor has one candidate or none: no draw is left."""
    image, text = unit_rows(8, 6, seed=3625), unit_rows(8, 6, seed=3626)
    text = text + 0.4 * image
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    return image, text.astype(np.float32)


@pytest.mark.parametrize("devices", [1, 8])
def test_ranking_and_its_gradients_equal_autograd_where_no_draw_is_left(devices):
    torch = pytest.importorskip("torch")
    image, text = lone()
    both = list(hinges(image.astype(np.float64) @ text.T, PEOPLE))
    counts = np.concatenate([semi_hard.sum(1) for _, semi_hard in both])
    assert set(counts) == {0, 1} and counts.sum() >= 6
    leaves = [torch.tensor(x, dtype=torch.float64) for x in (image, text)]
    for leaf in leaves:
        leaf.requires_grad_()
    cosines, expected = leaves[0] @ leaves[1].T, 0
    for x, (_, semi_hard) in zip((cosines, cosines.T), both, strict=True):
        hinge = (MARGIN + x - x.diagonal()[:, None]).clamp(min=0)
        expected = expected + hinge[torch.tensor(semi_hard)].sum()
    expected.backward()
    placement = sharding.batch_sharding(mesh_of(devices))
    placed = jax.device_put((image, text, PEOPLE), placement)
    run = quick_jit(
        jax.value_and_grad(losses.ranking, (1, 2)), static_argnames="margin"
    )
    value, grads = run(jax.random.key(0), *placed, margin=MARGIN)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    for grad, leaf in zip(grads, leaves, strict=True):
        np.testing.assert_allclose(grad, leaf.grad, rtol=0, atol=1e-6)


def test_ranking_draws_the_same_negatives_on_8_devices_as_on_1():
    image, text = unit_rows(64, 4), unit_rows(64, 4, seed=1)
    ids = np.arange(64) // 2
    placed = jax.device_put((image, text, ids), sharding.batch_sharding(mesh_of(8)))
    run = quick_jit(
        jax.value_and_grad(losses.ranking, (1, 2)), static_argnames="margin"
    )
    for seed in range(3):
        key = jax.random.key(seed)
        (one, grads), (eight, grads8) = (
            run(key, *x, margin=0.5) for x in ((image, text, ids), placed)
        )
        assert len(grads8[0].sharding.device_set) == 8
        # Some anchors choose of thirty; another choice would differ by about 0.1.
        np.testing.assert_allclose(eight, one, rtol=1e-6)
        for grad, grad8 in zip(grads, grads8, strict=True):
            np.testing.assert_allclose(grad8, grad, rtol=0, atol=1e-6)


def test_ranking_leaves_out_hinges_of_exactly_0_and_the_margin_and_what_is_beyond():
    right = 0.5  # numbers that floats hold exactly
    run = ranking_of(np.arange(4), margin=0.25)
    for negative, counts in (
        (0.125, False),  # easy: the hinge is below 0
        (0.25, False),
        (0.25 + 2**-12, True),
        (0.5 - 2**-12, True),
        (0.5, False),
        (0.75, False),  # hard: above the right pair
    ):
        cosines = np.full((4, 4), negative, np.float32)
        np.fill_diagonal(cosines, right)
        value, grad = run(jax.random.key(0), cosines)
        assert value == 8 * (0.25 + negative - right) * counts
        assert np.any(grad) == counts


def test_ranking_where_all_are_one_identity_is_0_with_a_zero_gradient():
    cosines = apart(85)
    value, grad = ranking_of(np.full(8, 7))(jax.random.key(0), cosines)
    assert value == 0 and not np.any(grad)


def test_an_unknown_reduction_is_named():
    x = unit_rows(2, 2)
    with pytest.raises(ValueError, match="reduction 'max' is not one of sum, mean"):
        losses.ranking(
            jax.random.key(0), x, x, np.arange(2), margin=0.2, reduction="max"
        )


# --- similarity distribution matching ------------------------------------------------


def sdm_numpy(image, text, ids, scale, eps=1e-8):
    """KL(p || q + eps), pair by pair, in float64."""
    cosines = image.astype(np.float64) @ text.T
    total, b = 0.0, len(ids)
    for way in (cosines, cosines.T):
        for i in range(b):
            p = np.exp(scale * way[i] - (scale * way[i]).max())
            p /= p.sum()
            for j in range(b):
                q = (ids[j] == ids[i]) / np.sum(ids == ids[i])
                total += p[j] * np.log(p[j] / (q + eps)) / b
    return total


SDM = quick_jit(jax.value_and_grad(losses.sdm, (0, 1, 3)))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("scale", [1 / 0.02, 3.0])
@pytest.mark.parametrize("ids", [np.arange(8), PEOPLE, np.zeros(8, int)])
def test_sdm_and_its_gradients_equal_numpy_and_autograd(ids, scale, devices):
    torch = pytest.importorskip("torch")
    reference = importlib.import_module("reference_finetuning")
    image, text = unit_rows(8, 6, seed=4), unit_rows(8, 6, seed=5)
    expected = sdm_numpy(image, text, ids, scale)
    leaves = [torch.tensor(x, dtype=torch.float64) for x in (image, text, scale)]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = reference.sdm(leaves[0] @ leaves[1].T, torch.tensor(ids), leaves[2])
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
    loss.backward()
    placement = sharding.batch_sharding(mesh_of(devices))
    placed = jax.device_put((image, text, ids), placement)
    value, grads = SDM(*placed, jnp.float32(scale))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for grad, leaf in zip(grads, leaves, strict=True):
        # Relative to the largest: a row's gradient is a difference of large numbers.
        size = max(1, leaf.grad.abs().max().item())
        np.testing.assert_allclose(grad, leaf.grad, rtol=0, atol=1e-5 * size)


def test_sdm_is_0_where_similarities_are_as_the_identities_say():
    # Pictures and texts of a person alike, of two persons at right angles.
    ids = np.array([0, 0, 0, 1, 1, 2])
    x = np.eye(3, dtype=np.float32)[ids]
    value, grads = SDM(x, x, ids, jnp.float32(50))
    np.testing.assert_allclose(value, 0, atol=2e-6)
    np.testing.assert_allclose(grads[0], 0, atol=1e-5)
    assert SDM(x, np.roll(x, 1, 0), ids, jnp.float32(50))[0] > 5
