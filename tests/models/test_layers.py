"""Claims on dropout by counts, on attention and the MLP against numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import build, five_sigma, mesh_of, random_params

from unipt_jax import sharding
from unipt_jax.errors import UserError
from unipt_jax.models import draws, layers, vit

dropout = jax.jit(
    lambda key, x, rate: draws.dropout(key, x, rate, jnp.arange(len(x))),
    static_argnums=2,
)


@pytest.mark.parametrize(
    ("rounds", "key", "counter", "words"),
    [  # Random123's known answers
        (13, (0, 0), (0, 0), (0x9D1C5EC6, 0x8BD50731)),
        (13, (2**32 - 1,) * 2, (2**32 - 1,) * 2, (0xFD36D048, 0x2D17272C)),
        (
            13,
            (0x13198A2E, 0x03707344),
            (0x243F6A88, 0x85A308D3),
            (0xBA3E4725, 0xF27D669E),
        ),
        (20, (0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ],
)
def test_threefry_gives_the_published_words(rounds, key, counter, words):
    key, counter = jnp.array(key, jnp.uint32), jnp.array(counter, jnp.uint32)
    found = draws.threefry(tuple(key), *counter, rounds)
    assert tuple(int(word) for word in found) == words


@pytest.mark.parametrize("count", [1, 6, 33])
def test_rows_draw_in_a_part_what_they_draw_in_the_whole(count):
    key, rows = jax.random.key(3), np.arange(64)
    whole = np.asarray(draws.draw(key, rows, count))
    part = np.array([40, 3, 17])
    np.testing.assert_array_equal(draws.draw(key, part, count), whole[part])
    assert whole.dtype == np.uint16
    assert len(np.unique(whole, axis=0)) > 60


def kept(rate, shape=(512, 1024), seed=0):
    """Where dropout at `rate` keeps an element of this shape."""
    return (
        np.asarray(dropout(jax.random.key(seed), np.ones(shape, np.float32), rate)) > 0
    )


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_meets_its_rate_and_keeps_the_mean(rate):
    x = np.ones((512, 1024), np.float32)
    y = np.asarray(dropout(jax.random.key(0), x, rate))
    assert abs((y == 0).mean() - rate) < five_sigma(rate, y.size)
    # The rest is scaled by one over the kept share, met to 2^-17.
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=2**-17 / (1 - rate))
    sigma = np.sqrt(rate / (1 - rate) / y.size)
    assert abs(y.mean(dtype=np.float64) - 1) < 5 * sigma


def test_dropout_scales_each_kept_element_of_any_value():
    x = np.random.default_rng(0).standard_normal((64, 33)).astype(np.float32)
    y = np.asarray(dropout(jax.random.key(0), x, 0.25))
    np.testing.assert_allclose(y[y != 0], x[y != 0] / 0.75, rtol=2e-7)
    assert 0 < (y == 0).sum() < y.size


@pytest.mark.parametrize("width", [1, 2, 3, 33])
def test_dropout_takes_odd_widths_and_drops_in_every_column(width):
    share = (~kept(0.5, (4096, width))).mean(axis=0)
    assert share.shape == (width,)
    assert np.abs(share - 0.5).max() < five_sigma(0.5, 4096)


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize(
    ("down", "right"), [(0, 1), (0, 2), (0, 512), (1, 0), (1, 1), (256, 0)]
)
def test_neighbouring_elements_are_dropped_independently(rate, down, right):
    mask = kept(rate)
    rows, columns = 512 - down, 1024 - right
    for step in (1, 2) if right == 1 else (1,):  # 2: the two halves of each word
        a = mask[:rows, :columns:step]
        b = mask[down:, right::step][:, : a.shape[1]]
        both = (a & b).mean()
        assert abs(both - (1 - rate) ** 2) < five_sigma((1 - rate) ** 2, a.size)


def test_the_low_half_of_a_word_is_as_random_as_the_high_one():
    for seed in range(2):
        columns = (~kept(0.1, seed=seed)).mean(axis=0)
        assert np.abs(columns - 0.1).max() < five_sigma(0.1, 512)


def test_two_keys_drop_independently():
    both = (kept(0.1) & kept(0.1, seed=1)).mean()
    assert abs(both - 0.81) < five_sigma(0.81, 512 * 1024)


@pytest.mark.parametrize("shape", [(16, 6, 33), (8, 2, 7, 7)])
def test_dropout_on_8_devices_equals_1_bit_for_bit(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    placed = jax.device_put(x, sharding.batch_sharding(mesh_of(8, fsdp=2)))
    one, eight = (dropout(jax.random.key(5), v, 0.3) for v in (x, placed))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one, eight)


def test_the_gradient_of_dropout_has_the_same_mask():
    x = np.random.default_rng(0).standard_normal((32, 17)).astype(np.float32)
    y, back = jax.vjp(lambda x: dropout(jax.random.key(1), x, 0.4), x)
    seed = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    (grad,) = back(seed)
    scale = np.where(np.asarray(y) == 0, 0, 1 / 0.6)
    # The kept share is 0.6 to 2^-17.
    np.testing.assert_allclose(grad, seed * scale, rtol=2**-16)


def test_dropout_keeps_16_bit_floats():
    y = np.asarray(dropout(jax.random.key(0), jnp.ones((9, 111), jnp.bfloat16), 0.1))
    assert y.dtype == jnp.bfloat16
    assert set(np.unique(y.astype(np.float32))) == {0.0, 1.109375}  # 1/.9 in 8 bits


def test_a_rate_below_the_smallest_that_16_bits_draw_drops_nothing():
    x = np.ones((64, 64), np.float32)
    np.testing.assert_array_equal(dropout(jax.random.key(0), x, 2.0**-18), x)


def test_dropout_does_nothing_unless_training_at_a_rate():
    x = np.ones((8, 8), np.float32)
    rngs = {"dropout": jax.random.key(0)}
    still = draws.Dropout(0.5).apply({}, x, None)  # needs no key
    np.testing.assert_array_equal(still, x)
    np.testing.assert_array_equal(draws.Dropout(0.0).apply({}, x, np.arange(8)), x)
    assert (
        np.asarray(draws.Dropout(0.5).apply({}, x, np.arange(8), rngs=rngs)) == 0
    ).any()


def test_two_layers_of_one_model_draw_different_masks():
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            first = draws.Dropout(0.5, name="a")(x, np.arange(64))
            return first, draws.Dropout(0.5, name="b")(x, np.arange(64))

    x, rngs = np.ones((64, 64), np.float32), {"dropout": jax.random.key(0)}
    a, b = (np.asarray(y) > 0 for y in Pair().apply({}, x, rngs=rngs))
    assert abs((a & b).mean() - 0.25) < five_sigma(0.25, 4096)


def attention_numpy(params, x, mask, heads):
    """Softmax attention in float64, head by head."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    q, k, v = (x @ p[n]["kernel"] + p[n]["bias"] for n in ("query", "key", "value"))
    width = x.shape[-1] // heads
    y = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        logits = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(width)
        weights = np.exp(logits) * mask[:, None, :]
        y[..., part] = weights / weights.sum(-1, keepdims=True) @ v[..., part]
    return y @ p["out"]["kernel"] + p["out"]["bias"]


def test_attention_equals_numpy_and_never_sees_a_masked_token():
    x = np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [3]])
    module = layers.Attention(3)
    params = random_params(module, x, mask, None)
    y = np.asarray(module.apply({"params": params}, x, mask, None))
    np.testing.assert_allclose(y, attention_numpy(params, x, mask, 3), atol=2e-6)
    full = module.apply({"params": params}, x, None, None)
    every = attention_numpy(params, x, np.ones_like(mask), 3)
    np.testing.assert_allclose(full, every, atol=2e-6)
    x[1, 3:] = 1e3  # padding of the second text
    other = np.asarray(module.apply({"params": params}, x, mask, None))
    np.testing.assert_array_equal(other[1, :3], y[1, :3])


def test_attention_drops_weights_after_the_softmax():
    # With values of 1 a head gives the sum of its kept weights: of 8 equal ones at rate
    # .5, k are kept and each counts 1/4, so the sum is k / 4.
    x = np.ones((64, 8, 4), np.float32)
    module = layers.Attention(2, dropout=0.5)
    zero = {"kernel": np.zeros((4, 4), np.float32), "bias": np.zeros(4, np.float32)}
    value = zero | {"bias": np.ones(4, np.float32)}
    out = zero | {"kernel": np.eye(4, dtype=np.float32)}
    params = {"query": zero, "key": zero, "value": value, "out": out}
    rngs = {"dropout": jax.random.key(0)}
    y = np.asarray(module.apply({"params": params}, x, None, np.arange(64), rngs=rngs))
    np.testing.assert_array_equal(y * 4, np.round(y * 4))
    assert abs((y / 2).mean() - 0.5) < five_sigma(0.5, 64 * 8 * 8 * 2)
    assert (y[..., :2] != y[..., 2:]).any()  # each head has its own mask
    still = module.apply({"params": params}, x, None, None)
    np.testing.assert_array_equal(still, 1)


def plain_attention(q, k, v, allowed, stays, rate):
    """The same, as it is written down; its gradients by JAX."""
    logits = jnp.einsum("bask,batk->bast", q, k) / np.sqrt(q.shape[-1])
    if allowed is not None:
        logits = jnp.where(allowed, logits, -1e30)
    weights = jax.nn.softmax(logits, axis=-1)
    if stays is not None:
        weights = jnp.where(stays, weights / (1 - rate), 0)
    return jnp.einsum("bast,batk->bask", weights, v)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_attention_has_the_gradients_of_its_definition(dtype, causal, rate):
    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal((2, 3, 9, 4)).astype(np.float32) for _ in "qkvg")
    q, k, v = (jnp.asarray(x, dtype) for x in (2 * q, 2 * k, v))
    allowed = (np.arange(9) < np.array([[9], [4]]))[:, None, None, :]
    allowed = allowed & np.tri(9, dtype=bool) if causal else allowed
    stays = rng.random((2, 3, 9, 9)) > rate if rate else None

    def run(attend, *args):
        def loss(*args):
            return jnp.sum(attend(*args, allowed, stays, rate) * g)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*args)

    value, grads = run(layers.attend, q, k, v)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    expected, slopes = run(plain_attention, *wide)
    # bfloat16 has 8 digits, and sums over 9 tokens of a few such products here.
    close = 3e-6 if dtype == jnp.float32 else 0.06
    np.testing.assert_allclose(value, expected, rtol=close, atol=10 * close)
    for found, slope in zip(grads, slopes, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found.astype(np.float32), slope, atol=close)


def test_gelu_and_its_gradient_equal_the_definition_far_out_too():
    x = np.linspace(-9, 9, 1001).astype(np.float32)
    value, back = jax.vjp(layers.gelu, x)
    y = x.astype(np.float64)
    below = (1 + np.vectorize(math.erf)(y / np.sqrt(2))) / 2
    slope = below + y * np.exp(-y * y / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(value, y * below, rtol=3e-7, atol=6e-7)
    np.testing.assert_allclose(back(np.ones_like(x))[0], slope, rtol=1e-6, atol=1e-6)


def test_cudnn_attention_refuses_dropout_on_its_weights():
    x = np.ones((2, 4, 8), np.float32)
    module = layers.Attention(2, dropout=0.1, implementation="cudnn")
    message = "attention 'cudnn' has no dropout on its weights; set attention_dropout"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: module.init(jax.random.key(0), x, None, np.arange(2)))


def test_mlp_has_the_exact_gelu():
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    module = layers.Mlp(7)
    p = random_params(module, x, None)
    h = x.astype(np.float64) @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    h = h * (1 + np.vectorize(math.erf)(h / np.sqrt(2))) / 2
    y = h @ p["fc2"]["kernel"] + p["fc2"]["bias"]
    # The tanh approximation of GELU is off by up to 5e-4.
    np.testing.assert_allclose(module.apply({"params": p}, x, None), y, atol=2e-6)


def test_an_unknown_remat_is_named():
    with pytest.raises(ValueError, match="remat 'all' is not one of none, block, dots"):
        layers.rematerialised(layers.Mlp, "all")


# --- drop path, and attention to other tokens ----------------------------------------


def paths(rate, samples=4000, train=True, seed=0):
    """Drop path on (samples, 2, 3) ones."""
    x = np.ones((samples, 2, 3), np.float32)
    rngs = {"dropout": jax.random.key(seed)} if train else {}
    return np.asarray(
        draws.DropPath(rate).apply(
            {}, x, np.arange(samples) if train else None, rngs=rngs
        )
    )


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drop_path_drops_whole_samples_at_its_rate_and_keeps_the_mean(rate):
    y = paths(rate)
    first = y[:, :1, :1]
    np.testing.assert_array_equal(y, np.broadcast_to(first, y.shape))
    dropped = (first == 0).mean()
    assert abs(dropped - rate) < five_sigma(rate, len(y))
    # The kept share is met to 2^-17.
    np.testing.assert_allclose(y[y > 0], 1 / (1 - rate), rtol=2**-17 / (1 - rate))
    sigma = np.sqrt(rate / (1 - rate) / len(y))
    assert abs(y.mean(dtype=np.float64) - 1) < 5 * sigma
    both = (first == 0) & (paths(rate, seed=1)[:, :1, :1] == 0)
    assert abs(both.mean() - rate**2) < five_sigma(rate**2, len(y))


def test_drop_path_does_nothing_unless_training_at_a_rate():
    np.testing.assert_array_equal(paths(0.5, train=False), 1)  # needs no key
    np.testing.assert_array_equal(paths(0.0), 1)


def test_drop_path_on_8_devices_equals_1_bit_for_bit():
    x = np.random.default_rng(0).standard_normal((64, 3, 5)).astype(np.float32)
    drop = jax.jit(
        lambda x, key: draws.DropPath(0.4).apply({}, x, jnp.arange(64), rngs=key)
    )
    placed = jax.device_put(x, sharding.batch_sharding(mesh_of(8, fsdp=2)))
    one, eight = (drop(v, {"dropout": jax.random.key(5)}) for v in (x, placed))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one, eight)


def test_drop_path_rises_block_by_block_from_0_to_the_towers_rate_on_both_branches():
    sizes = dict(features=2, layers=4, heads=1, hidden=2, dropout=0.0)
    tower = vit.ViT(height=2, width=2, patch=(2, 2), drop_path=0.6, **sizes)
    pixels = np.random.default_rng(0).standard_normal((2000, 2, 2, 3))
    params = random_params(tower, pixels[:1], None)

    def run(train):
        _, seen = tower.apply(
            {"params": params},
            pixels,
            np.arange(2000) if train else None,
            rngs={"dropout": jax.random.key(0)},
            capture_intermediates=lambda module, _: isinstance(module, draws.DropPath),
        )
        return seen["intermediates"]

    seen = jax.jit(run, static_argnums=0)(True)
    for i, rate in enumerate([0, 0.2, 0.4, 0.6]):
        branches = [seen[f"block_{i}"][f"drop_path{k}"]["__call__"][0] for k in (1, 2)]
        gone = [(np.asarray(x) == 0).all((1, 2)) for x in branches]
        for share in (x.mean() for x in gone):
            assert abs(share - rate) <= five_sigma(rate, 2000)
        assert abs((gone[0] & gone[1]).mean() - rate**2) <= five_sigma(rate**2, 2000)
    assert not any((x == 0).all((1, 2)).any() for x in jax.tree.leaves(run(False)))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_drop_path_that_is_no_rate_is_refused(rate):
    with pytest.raises(UserError, match=f"image.drop_path={rate} must be at least 0"):
        build(image=dict(drop_path=rate))


@pytest.mark.parametrize("head_width", [4, 7])  # 3 heads of 4 are 12 wide; of 7, wider
def test_cross_attention_equals_numpy_and_never_sees_a_masked_token(head_width):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 12)).astype(np.float32)
    tokens = rng.standard_normal((2, 5, 9)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [2]])
    module = layers.CrossAttention(3, head_width)
    params = random_params(module, x, tokens, mask)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def dense(name, y):
        return y @ p[name]["kernel"] + p[name]["bias"]

    q, k, v = dense("query", x), dense("key", tokens), dense("value", tokens)
    heads = []
    for i in range(3):
        part = slice(i * head_width, (i + 1) * head_width)
        logits = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(head_width)
        weights = np.exp(logits) * mask[:, None]
        heads.append(weights / weights.sum(-1, keepdims=True) @ v[..., part])
    expected = dense("out", np.concatenate(heads, -1))
    run = jax.jit(lambda tokens: module.apply({"params": params}, x, tokens, mask))
    found = np.asarray(run(tokens))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    tokens[1, 2:] = 1e3  # what is masked
    np.testing.assert_array_equal(run(tokens), found)


# --- products of matrices -------------------------------------------------------------


def product_of(x, kernel, out=None):
    """A product and its gradients for a random cotangent; the kernel's is turned."""
    g = np.random.default_rng(2).standard_normal((*x.shape[:-1], kernel.shape[0]))

    def loss(x, embedding):  # as a tied head has it
        y = layers.product(x, embedding.T, out)
        return jnp.sum(y.astype(jnp.float32) * g.astype(np.float32)), y

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, y), grads = run(x, kernel)
    return y, grads, g


@pytest.mark.parametrize("rows", [(1,), (6, 7), (2, 3, 5)])
def test_product_and_its_gradients_equal_numpy(rows):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*rows, 9)).astype(np.float32)
    kernel = rng.standard_normal((11, 9)).astype(np.float32)
    y, (dx, dk), g = product_of(x, kernel)
    np.testing.assert_allclose(y, x @ kernel.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, g @ kernel, rtol=1e-5, atol=1e-5)
    expected = g.reshape(-1, 11).T @ x.reshape(-1, 9)
    np.testing.assert_allclose(dk, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(1,), (48,), (8, 6), (2, 193)])
@pytest.mark.parametrize("out", [None, jnp.float32])
def test_a_16_bit_product_sums_in_32_bits_and_so_is_the_kernels_gradient(rows, out):
    rng = np.random.default_rng(0)
    # Whole numbers below 256 are exact in 16 bits; their sums are beyond its 8 digits.
    x = rng.integers(-9, 10, (*rows, 24))
    kernel = rng.integers(-9, 10, (300, 24)).astype(np.float32)
    y, (dx, dk), g = product_of(jnp.asarray(x, jnp.bfloat16), kernel, out)
    assert y.dtype == (out or jnp.bfloat16) and dx.dtype == jnp.bfloat16
    assert dk.dtype == jnp.float32
    exact = (x @ kernel.T).astype(jnp.bfloat16 if out is None else np.float32)
    np.testing.assert_array_equal(y, exact)
    g = np.asarray(g.astype(jnp.bfloat16), np.float64)
    expected = g.reshape(-1, 300).T @ x.reshape(-1, 24)
    # One rounding to bfloat16 would be of 2^-9, 2e-3.
    np.testing.assert_allclose(dk, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx.astype(np.float32), g @ kernel, rtol=2**-8, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_dense_layer_has_float32_parameters_and_gradients(dtype):
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    module = layers.Dense(6, dtype=dtype)
    params = random_params(module, x)

    def loss(params):
        y = module.apply({"params": params}, x)
        return jnp.sum(y.astype(jnp.float32) ** 2), y

    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(params)
    assert y.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves((params, grads))} == {
        np.dtype(np.float32)
    }
    wide = x @ params["kernel"] + params["bias"]
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(np.asarray(y, np.float32), wide, atol=tolerance)
    np.testing.assert_allclose(
        grads["bias"], 2 * wide.sum((0, 1)), rtol=tolerance, atol=5 * tolerance
    )
