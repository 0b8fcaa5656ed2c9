"""Claims on the dual encoder: pooling, unit vectors, temperatures, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLS,
    PAD,
    SEP,
    VOCABULARY,
    apply,
    arrays,
    build,
    config,
    mesh_of,
    pixels,
    quick_jit,
    texts,
)

from unipt_jax import sharding, tree
from unipt_jax.models import unipt

TOKENS = texts([10, 1, 5], 16)


def encode(tokens, **changes):
    return apply(*build(**changes), "encode_text", tokens)


def unit_numpy(x):
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def projected(features, params, side):
    dense = params[f"{side}_projection"]
    return np.asarray(features, np.float64) @ dense["kernel"] + dense["bias"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embeddings_are_float32_of_length_1(dtype):
    model, params = build(dtype=dtype)
    both = (
        apply(model, params, "encode_image", pixels(3)),
        apply(model, params, "encode_text", TOKENS),
    )
    for x in both:
        assert x.dtype == jnp.float32 and x.shape == (3, 8)
        lengths = np.linalg.norm(np.asarray(x, np.float64), axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=0, atol=2e-7)


def test_bfloat16_embeddings_are_near_those_of_float32():
    cosines = (encode(TOKENS) * encode(TOKENS, dtype="bfloat16")).sum(1)
    assert (cosines > 0.999).all() and (cosines < 1 - 1e-7).any()


def test_padding_changes_an_embedding_only_where_it_is_pooled():
    long = np.pad(TOKENS, ((0, 0), (0, 16)), constant_values=PAD)
    # 16 and 32 tokens are two programs: sums in another order.
    np.testing.assert_allclose(encode(long), encode(TOKENS), rtol=0, atol=2e-6)
    moved = np.abs(encode(long, pool_padding=True) - encode(TOKENS, pool_padding=True))
    assert moved.max() > 1e-2


@pytest.mark.parametrize("pool_special", [True, False])
@pytest.mark.parametrize("pool_padding", [True, False])
def test_text_embedding_is_the_maximum_over_the_tokens_let_in(
    pool_special, pool_padding
):
    model, params = build(pool_special=pool_special, pool_padding=pool_padding)
    features = apply(model, params, "text_features", TOKENS, None)
    features = projected(features, params, "text")
    out = set() if pool_special else {CLS, SEP}
    out |= set() if pool_padding else {PAD}
    best = [
        row[[token not in out for token in text]].max(axis=0)
        for row, text in zip(features, TOKENS.tolist(), strict=True)
    ]
    y = apply(model, params, "encode_text", TOKENS)
    np.testing.assert_allclose(y, unit_numpy(np.array(best)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("distillation", "pool_special", "left_out"),
    [(False, True, 0), (False, False, 1), (True, True, 0), (True, False, 2)],
)
def test_image_embedding_leaves_out_the_class_tokens_if_asked(
    distillation, pool_special, left_out
):
    model, params = build(
        pool_special=pool_special, image=dict(distillation=distillation)
    )
    features = apply(model, params, lambda m, x: m.image(x, None), pixels(3))
    best = projected(features, params, "image")[:, left_out:].max(axis=1)
    y = apply(model, params, "encode_image", pixels(3))
    np.testing.assert_allclose(y, unit_numpy(best), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_pool_equals_numpy_also_where_all_values_are_negative(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 4)) - 9, dtype)
    mask = np.arange(5) < np.array([[5], [1], [3]])
    y = unipt.max_pool(x, mask)
    exact = np.asarray(x, np.float32)
    expected = [row[keep].max(axis=0) for row, keep in zip(exact, mask, strict=True)]
    np.testing.assert_array_equal(np.asarray(y, np.float32), expected)
    np.testing.assert_array_equal(
        np.asarray(unipt.max_pool(x, None), np.float32), exact.max(axis=1)
    )


def test_unit_equals_numpy_with_the_gradient_of_a_projection():
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    slope = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    y, back = jax.vjp(unipt.unit, x)
    np.testing.assert_allclose(y, unit_numpy(x), rtol=0, atol=2e-7)
    u = unit_numpy(x)
    expected = slope - (slope * u).sum(1, keepdims=True) * u
    expected /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(back(slope)[0], expected, rtol=1e-5, atol=1e-6)
    assert unipt.unit(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


def test_unit_of_a_zero_row_is_zero_with_a_zero_gradient():
    x = np.zeros((2, 4), np.float32)
    x[1, 0] = 2
    y, back = jax.vjp(unipt.unit, x)
    np.testing.assert_array_equal(y, [[0, 0, 0, 0], [1, 0, 0, 0]])
    (grad,) = back(np.ones_like(x))
    np.testing.assert_allclose(grad, [[0, 0, 0, 0], [0, 0.5, 0.5, 0.5]], atol=1e-7)


def test_a_text_with_nothing_to_pool_has_a_finite_gradient():
    tokens = texts([0, 3], 8)  # the first is [CLS] [SEP] alone
    model, params = build(pool_special=False)

    def total(params):
        y = model.apply({"params": params}, tokens, method="encode_text")
        return (y * np.arange(1, 9)).sum(), y

    (_, y), grads = quick_jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_array_equal(y[0], 0)
    assert all(np.isfinite(leaf).all() for leaf in arrays(grads).values())


def scale_of(**changes):
    model, params = build(**changes)
    return model, params, lambda p: model.apply({"params": p}, method="scale")


@pytest.mark.parametrize(
    ("temperature", "expected"), [("none", 1.0), ("fixed", 1 / 0.05)]
)
def test_a_temperature_that_is_not_learned_is_no_parameter(temperature, expected):
    _, params, scale = scale_of(temperature=temperature, temperature_init=0.05)
    assert "log_scale" not in params
    np.testing.assert_allclose(scale(params), expected, rtol=1e-6)


def test_a_learned_temperature_starts_at_its_value_and_stops_at_a_hundredth():
    model, _, scale = scale_of(temperature="learned", temperature_init=0.05)
    start = jax.jit(lambda key: unipt.initialise(model, key)["log_scale"])(
        jax.random.key(0)
    )
    # A weakly typed scalar would make the train step compile twice.
    assert not start.weak_type and start.dtype == jnp.float32
    np.testing.assert_allclose(scale({"log_scale": start}), 20, rtol=1e-6)
    slope = jax.grad(lambda x: scale({"log_scale": x}))
    np.testing.assert_allclose(slope(start), 20, rtol=1e-6)
    high = jnp.log(jnp.float32(300))
    np.testing.assert_allclose(scale({"log_scale": high}), 100, rtol=1e-6)
    assert slope(high) == 0


def test_a_temperature_of_no_known_mode_is_named():
    model = unipt.build(
        config(temperature="fix"), vocabulary=VOCABULARY, pad=PAD, cls=CLS, sep=SEP
    )
    with pytest.raises(ValueError, match="'fix' is not one of none, fixed, learned"):
        unipt.initialise(model, jax.random.key(0))


def test_a_dtype_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="'float16' is not one of float32, bfloat16"):
        build(dtype="float16")


def test_a_field_that_is_not_known_is_an_error():
    with pytest.raises(TypeError, match="pool_specials"):
        build(pool_specials=True)


def test_images_of_another_size_are_refused():
    model, params = build()
    with pytest.raises(ValueError, match="are 8x8, the image tower expects 16x8"):
        model.apply({"params": params}, pixels(1, height=8), method="encode_image")


BLOCK = {
    "attention/query/kernel": "dd",
    "attention/query/bias": "d",
    "attention/key/kernel": "dd",
    "attention/key/bias": "d",
    "attention/value/kernel": "dd",
    "attention/value/bias": "d",
    "attention/out/kernel": "dd",
    "attention/out/bias": "d",
    "mlp/fc1/kernel": "df",
    "mlp/fc1/bias": "f",
    "mlp/fc2/kernel": "fd",
    "mlp/fc2/bias": "d",
}
PUBLIC = {  # path -> shape: d 16, f 24; patches of 8x4x3 = 96; text width 12
    "image/class_token": (1, 1, 16),
    "image/position_embedding": (5, 16),
    "image/patch_embedding/kernel": (96, 16),
    "image/patch_embedding/bias": (16,),
    "image/block_0/norm1/scale": (16,),
    "image/block_0/norm1/bias": (16,),
    "image/block_0/norm2/scale": (16,),
    "image/block_0/norm2/bias": (16,),
    "image/norm/scale": (16,),
    "image/norm/bias": (16,),
    "text/token_embedding/embedding": (24, 12),
    "text/position_embedding/embedding": (40, 12),
    "text/type_embedding/embedding": (2, 12),
    "text/embedding_norm/scale": (12,),
    "text/embedding_norm/bias": (12,),
    "text/block_0/attention_norm/scale": (12,),
    "text/block_0/attention_norm/bias": (12,),
    "text/block_0/mlp_norm/scale": (12,),
    "text/block_0/mlp_norm/bias": (12,),
    "image_projection/kernel": (16, 8),
    "image_projection/bias": (8,),
    "text_projection/kernel": (12, 8),
    "text_projection/bias": (8,),
    "mlm_head/dense/kernel": (12, 12),
    "mlm_head/dense/bias": (12,),
    "mlm_head/norm/scale": (12,),
    "mlm_head/norm/bias": (12,),
    "mlm_head/bias": (24,),
}
for side, width in (("image", 16), ("text", 12)):
    for path, letters in BLOCK.items():
        shape = tuple(width if letter == "d" else 24 for letter in letters)
        PUBLIC[f"{side}/block_0/{path}"] = shape


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({}, {}),
        (
            dict(
                temperature="learned",
                mlm_output="untied",
                image=dict(distillation=True, remat="block"),
                text=dict(remat="dots"),
            ),
            {
                "log_scale": (),
                "mlm_head/kernel": (12, 24),
                "image/distillation_token": (1, 1, 16),
                "image/position_embedding": (6, 16),
            },
        ),
    ],
)
def test_parameter_paths_and_shapes_are_those_made_public(changes, more):
    _, params = build(dtype="bfloat16", **changes)
    leaves = tree.flatten(params)
    assert {path: leaf.shape for path, leaf in leaves.items()} == PUBLIC | more
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}


def test_parameters_are_drawn_the_same_on_8_devices_as_on_1():
    model, params = build()
    placement = sharding.shardings(params, mesh_of(8, fsdp=4))

    def initialise(key):
        return unipt.initialise(model, key)

    one = quick_jit(initialise)(jax.random.key(3))
    eight = quick_jit(initialise, out_shardings=placement)(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, one, eight)
    assert not eight["image_projection"]["kernel"].sharding.is_fully_replicated
    assert np.std(one["image_projection"]["kernel"]) > 0.1
