"""Claims on losses of all pairs in tiles: the dense losses' values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of

from unipt_jax import losses, pairwise, sharding

LAYOUTS = [(1, 1), (8, 1), (8, 2), (4, 4)]  # devices, fsdp


def vectors(batch, width=16, seed=0):
    """Two batches of unit vectors, row i of one near row i of the other."""
    rng = np.random.default_rng(seed)
    both = rng.standard_normal((2, batch, width)) + rng.standard_normal((batch, width))
    both /= np.linalg.norm(both, axis=-1, keepdims=True)
    return tuple(both.astype(np.float32))


def both_ways(dense, tiled, pair, scalars, mesh):
    """(value, gradients of every argument) of the dense and of the tiled loss."""
    places = tuple(range(2 + len(scalars)))
    scalars = [jnp.float32(x) for x in scalars]
    expected = jax.jit(jax.value_and_grad(dense, places))(*pair, *scalars)
    placed = [jax.device_put(x, sharding.batch_sharding(mesh)) for x in pair]
    found = jax.jit(jax.value_and_grad(tiled, places))(*placed, *scalars)
    return expected, found


@pytest.mark.parametrize(("devices", "fsdp"), LAYOUTS)
@pytest.mark.parametrize("chunk", [2, 5, 64])  # 5: padding; 64: more than a share
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_contrastive_in_tiles_equals_the_dense_one(devices, fsdp, chunk, scale):
    mesh, pair = mesh_of(devices, fsdp), vectors(48)
    tiled = functools.partial(pairwise.contrastive, chunk=chunk, mesh=mesh)
    expected, found = both_ways(losses.contrastive, tiled, pair, [scale], mesh)
    # Logits up to 100 have an error of 4e-6 in float32, and so their softmaxes.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


@pytest.mark.parametrize(("devices", "fsdp"), LAYOUTS)
@pytest.mark.parametrize("chunk", [5, 64])
def test_sigmoid_in_tiles_equals_the_dense_one(devices, fsdp, chunk):
    mesh, pair = mesh_of(devices, fsdp), vectors(48)
    tiled = functools.partial(pairwise.sigmoid, chunk=chunk, mesh=mesh)
    expected, found = both_ways(losses.sigmoid, tiled, pair, [10.0, -10.0], mesh)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_contrastive_in_tiles_equals_numpy(scale):
    image, text = vectors(24)
    logits = scale * image.astype(np.float64) @ text.astype(np.float64).T
    right = np.diagonal(logits)
    both = [np.log(np.exp(logits - 100).sum(axis)) + 100 - right for axis in (0, 1)]
    found = pairwise.contrastive(image, text, scale, chunk=7, mesh=mesh_of(8))
    np.testing.assert_allclose(found, np.mean(both), rtol=1e-6)


def test_values_stay_finite_where_no_cosine_is_near_the_largest():
    """Opposite vectors: logits of -100 alone, whose exponentials are 0 in float32."""
    image = vectors(16)[0]
    image[:] = image[0]
    run = jax.value_and_grad(pairwise.contrastive, argnums=(0, 1, 2))
    value, grads = run(image, -image, jnp.float32(100), chunk=3, mesh=mesh_of(8))
    np.testing.assert_allclose(value, np.log(16), rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_memory_grows_with_the_batch_and_not_with_its_square():
    def held(batch):
        def loss(image, text):
            return pairwise.contrastive(image, text, 10.0, chunk=64, mesh=mesh_of(1))

        shape = jax.ShapeDtypeStruct((batch, 8), jnp.float32)
        grad = jax.jit(jax.grad(loss, (0, 1))).lower(shape, shape).compile()
        return grad.memory_analysis().temp_size_in_bytes

    small, large = held(1024), held(4096)
    assert large < 5 * small  # 16 times, were all pairs held
    assert large < 4096 * 4096 * 4 / 8


def test_a_batch_that_devices_cannot_share_is_refused():
    pair = vectors(12)
    with pytest.raises(ValueError, match="a batch of 12 cannot be shared by 8 devices"):
        pairwise.contrastive(*pair, 1.0, chunk=4, mesh=mesh_of(8))
    with pytest.raises(ValueError, match="chunk=0 must be 1 text or more"):
        pairwise.contrastive(*pair, 1.0, chunk=0, mesh=mesh_of(1))
