"""Claims on the part features, against numpy and PyTorch."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    PAD,
    apply,
    arrays,
    build,
    mesh_of,
    pixels,
    quick_jit,
    random_params,
    texts,
)

from unipt_jax import sharding
from unipt_jax.models import pgu, unipt

SIZES = dict(parts=3, layers=2, heads=2, head_width=7, hidden=10, features=5)


def norm(x, p, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * p[f"{name}/scale"] + p[f"{name}/bias"]


def dense(x, p, name):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def by_numpy(p, tokens, real):
    """One image's or text's parts: the tokens that are not real are simply absent."""
    p = {path: x.astype(np.float64) for path, x in p.items()}
    out = []
    for row, keep in zip(tokens.astype(np.float64), real, strict=True):
        row, x = row[keep], p["queries"]
        for i in range(SIZES["layers"]):
            b = f"block_{i}"
            y, heads = norm(x, p, f"{b}/norm1"), []
            q = dense(y, p, f"{b}/attention/query")
            k = dense(row, p, f"{b}/attention/key")
            v = dense(row, p, f"{b}/attention/value")
            for at in np.split(np.arange(q.shape[-1]), SIZES["heads"]):
                w = np.exp(q[:, at] @ k[:, at].T / np.sqrt(len(at)))
                heads.append(w / w.sum(-1, keepdims=True) @ v[:, at])
            x = x + dense(np.concatenate(heads, -1), p, f"{b}/attention/out")
            y = dense(norm(x, p, f"{b}/norm2"), p, f"{b}/mlp/fc1")
            x = x + dense(np.maximum(y, 0), p, f"{b}/mlp/fc2")
        x = norm(x, p, "norm")
        out.append([x[i] @ p["part_projection"][i] for i in range(SIZES["parts"])])
    return np.array(out)


@pytest.mark.parametrize("masked", [False, True])
def test_parts_equal_numpy_on_the_tokens_that_are_real(masked):
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((3, 6, 8)).astype(np.float32)
    real = np.arange(6) < np.array([[6], [1], [4]]) if masked else np.ones((3, 6), bool)
    model = pgu.Pgu(**SIZES)
    params = random_params(model, tokens, real)
    found = apply(model, params, None, tokens, real if masked else None)
    expected = by_numpy(arrays(params), tokens, real)
    assert found.shape == (3, SIZES["parts"], SIZES["features"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def pair(retrieval, **changes):
    return build(pgu=SIZES | dict(tokens="projected"), retrieval=retrieval, **changes)


def test_image_parts_read_the_patches_and_not_the_class_token():
    model, params = pair("pgu")
    features = np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)
    parts = apply(model, params, "image_parts", features)
    projected = dense(features, arrays(params), "image_projection")[:, 1:]
    alone = {
        k.removeprefix("pgu/"): v for k, v in arrays(params).items() if "pgu/" in k
    }
    expected = by_numpy(alone, projected, np.ones((2, 4), bool))
    np.testing.assert_allclose(parts, expected, rtol=0, atol=2e-5)


def test_text_parts_do_not_depend_on_padding():
    model, params = pair("pgu")
    tokens = texts([3, 5], 7)
    longer = np.pad(tokens, ((0, 0), (0, 4)), constant_values=PAD)
    np.testing.assert_allclose(
        apply(model, params, "encode_text", tokens),
        apply(model, params, "encode_text", longer),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(("retrieval", "width"), [("pgu", 15), ("both", 23)])
def test_retrieval_features_are_unit_vectors_of_the_stated_width(retrieval, width):
    model, params = pair(retrieval)
    for out in (
        apply(model, params, "encode_image", pixels(2)),
        apply(model, params, "encode_text", texts([3, 5], 7)),
    ):
        assert out.shape == (2, width) and model.width == width
        np.testing.assert_allclose(np.linalg.norm(out, axis=-1), 1, atol=1e-6)


def test_both_is_the_global_and_the_joined_parts_side_by_side():
    model, params = pair("both")
    both = apply(model, params, "encode_image", pixels(2))
    halves = [
        apply(pair(name)[0], params, "encode_image", pixels(2))
        for name in ("global", "pgu")
    ]
    expected = np.concatenate(halves, axis=-1) / np.sqrt(2)
    np.testing.assert_allclose(both, expected, rtol=0, atol=1e-6)


def test_retrieval_by_parts_without_parts_is_refused():
    with pytest.raises(ValueError, match=r"pgu\.parts"):
        build(retrieval="pgu")


def test_a_section_builds_the_module_that_it_was_taken_from():
    for model in (pair("both")[0], build()[0]):
        ids = dict(pad=model.pad, cls=model.cls, sep=model.sep)
        section = unipt.section(model)
        assert unipt.build(section, vocabulary=model.text.vocabulary, **ids) == model


@pytest.mark.parametrize("devices", [1, 8])
def test_parts_and_all_gradients_equal_pytorch(devices):
    torch = pytest.importorskip("torch")
    reference = importlib.import_module("reference_finetuning")
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((8, 6, 8)).astype(np.float32)
    real = np.arange(6) < rng.integers(1, 7, (8, 1))
    weights = rng.standard_normal((8, SIZES["parts"], SIZES["features"]))
    model = pgu.Pgu(**SIZES)
    params = random_params(model, tokens, real)
    values = {f"pgu/{k}": np.float64(v) for k, v in arrays(params).items()}
    leaves = {k: torch.tensor(v, requires_grad=True) for k, v in values.items()}
    leaves["tokens"] = torch.tensor(np.float64(tokens), requires_grad=True)
    net = reference.Network(leaves, patch=(8, 4), prefix=1, pad=PAD)
    expected = net.parts(leaves["tokens"], torch.tensor(real))
    (expected * torch.tensor(weights)).sum().backward()

    def loss(params, tokens, real, weights):
        parts = model.apply({"params": params}, tokens, real)
        return jnp.sum(parts * weights), parts

    placement = sharding.batch_sharding(mesh_of(devices))
    placed = jax.device_put((tokens, real, np.float32(weights)), placement)
    run = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, found), (grads, slope) = run(params, *placed)
    np.testing.assert_allclose(found, expected.detach(), rtol=0, atol=3e-6)
    grads = {f"pgu/{k}": v for k, v in arrays(grads).items()} | {"tokens": slope}
    assert grads.keys() == leaves.keys()
    for name, leaf in leaves.items():
        error, size = np.linalg.norm(grads[name] - leaf.grad.numpy()), leaf.grad.norm()
        if name.endswith("key/bias"):  # adds the same to all logits of a softmax
            assert size < 1e-12 and error < 1e-5, name
        else:
            assert error < 1e-5 * size, f"{name}: {error:.1e} of {size:.1e}"


def test_each_part_is_classified_by_a_kernel_and_bias_of_its_own():
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((4, 3, 5)).astype(np.float32)
    model = pgu.PartClassifiers(7)
    params = random_params(model, parts)
    found = apply(model, params, None, parts)
    expected = [
        parts[:, i].astype(np.float64) @ params["kernel"][i] + params["bias"][i]
        for i in range(3)
    ]
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=0, atol=2e-6)
    half = apply(model, params, None, parts.astype(jnp.bfloat16))
    assert half.dtype == np.float32  # thousands of logits lie close together


def test_both_towers_are_read_by_the_same_queries_and_blocks():
    model, params = pair("pgu")
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((2, 5, 16)).astype(np.float32)
    tokens = texts([3, 3], 5)
    # A text whose projected tokens are the patches: 8 numbers, solved for 12.
    wanted = dense(patches, arrays(params), "image_projection")
    kernel = params["text_projection"]["kernel"].astype(np.float64)
    words = (wanted - params["text_projection"]["bias"]) @ np.linalg.pinv(kernel)
    seen = np.concatenate([np.zeros((2, 1, 16), np.float32), patches], 1)
    image = apply(model, params, "image_parts", seen)
    text = apply(model, params, "text_parts", words.astype(np.float32), tokens)
    np.testing.assert_allclose(text, image, rtol=0, atol=2e-5)
