"""Claims on the image tower, against transformers' ViTModel and DeiTModel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import apply, arrays, pixels, quick_jit, random_params

from unipt_jax.models import draws, layers, vit

SIZE = dict(height=24, width=16, patch=(8, 4))  # a grid of 3 x 4 patches
TOWER = dict(features=16, layers=2, heads=4, hidden=24, dropout=0.1)


def tower(**changes):
    return vit.ViT(**(SIZE | TOWER | changes))


@functools.cache
def tower_params(distillation=False):
    return random_params(tower(distillation=distillation), pixels(1, 0, 24, 16), None)


def torch_state(p):
    """Our parameters by the names of transformers' ViTModel, in PyTorch's layout."""
    torch = pytest.importorskip("torch")
    p = arrays(p)
    state = {"embeddings.cls_token": p["class_token"]}
    if "distillation_token" in p:
        state["embeddings.distillation_token"] = p["distillation_token"]
    state["embeddings.position_embeddings"] = p["position_embedding"][None]
    projection = "embeddings.patch_embeddings.projection"
    kernel = p["patch_embedding/kernel"].reshape(*SIZE["patch"], 3, -1)
    state[f"{projection}.weight"] = kernel.transpose(3, 2, 0, 1)  # (D, 3, PH, PW)
    state[f"{projection}.bias"] = p["patch_embedding/bias"]
    dense = {
        "attention.q_proj": "attention/query",
        "attention.k_proj": "attention/key",
        "attention.v_proj": "attention/value",
        "attention.o_proj": "attention/out",
        "mlp.fc1": "mlp/fc1",
        "mlp.fc2": "mlp/fc2",
    }
    norms = {"layernorm": "norm"}
    for i in range(TOWER["layers"]):
        norms[f"layers.{i}.layernorm_before"] = f"block_{i}/norm1"
        norms[f"layers.{i}.layernorm_after"] = f"block_{i}/norm2"
        for theirs, ours in dense.items():
            kernel = p[f"block_{i}/{ours}/kernel"]
            state[f"layers.{i}.{theirs}.weight"] = kernel.T
            state[f"layers.{i}.{theirs}.bias"] = p[f"block_{i}/{ours}/bias"]
    for theirs, ours in norms.items():
        state[f"{theirs}.weight"] = p[f"{ours}/scale"]
        state[f"{theirs}.bias"] = p[f"{ours}/bias"]
    return {k: torch.tensor(np.ascontiguousarray(v)) for k, v in state.items()}


@pytest.mark.parametrize(("kind", "norm_eps"), [("ViT", 1e-12), ("DeiT", 1e-6)])
def test_tower_equals_transformers_on_images_and_patches_that_are_not_square(
    kind, norm_eps
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        image_size=(24, 16),
        patch_size=(8, 4),
        layer_norm_eps=norm_eps,
    )
    theirs = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False)
    distillation = kind == "DeiT"
    params = tower_params(distillation)
    theirs.load_state_dict(torch_state(params))  # strict: every tensor, once
    theirs.eval()
    x = pixels(3, 0, 24, 16)
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).last_hidden_state
    module = tower(distillation=distillation, norm_eps=norm_eps)
    y = apply(module, params, None, x, None)
    assert module.prefix == 1 + distillation
    assert y.shape == (3, module.prefix + 3 * 4, 16)
    # Normalised features of size 1 after two blocks in float32.
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


def test_dropout_acts_where_vit_has_it(monkeypatch):
    seen = []

    def record(key, shape, rate, rows):
        seen.append((shape, rate))
        return jnp.ones(shape, bool)

    monkeypatch.setattr(draws, "kept", record)
    monkeypatch.setattr(layers, "kept", record)
    rngs = {"dropout": jax.random.key(0)}
    for rows in (np.arange(2), None):
        tower(attention_dropout=0.2, layers=1).apply(
            {"params": tower_params()}, pixels(2, 0, 24, 16), rows, rngs=rngs
        )
    assert seen == [
        ((2, 13, 16), 0.1),  # tokens with their positions
        ((2, 4, 13, 13), 0.2),  # attention weights
        ((2, 13, 16), 0.1),  # attention's output
        ((2, 13, 24), 0.1),  # inside the MLP
        ((2, 13, 16), 0.1),  # the MLP's output
    ]


def test_remat_changes_neither_value_nor_gradient_with_dropout_on():
    x, rngs = pixels(2, 0, 24, 16), {"dropout": jax.random.key(1, impl="rbg")}

    def run(remat):
        module = tower(remat=remat, layers=1, attention_dropout=0.1)

        def loss(params):
            y = module.apply({"params": params}, x, np.arange(2), rngs=rngs)
            return (y[:, 1:] * y[:, :-1]).mean()

        return quick_jit(jax.value_and_grad(loss))(tower_params())

    value, grads = run("none")
    for remat in ("block", "dots"):
        again, more = run(remat)
        np.testing.assert_allclose(again, value, rtol=1e-6)
        # The same arithmetic, perhaps fused in another way.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
            grads,
            more,
        )


def test_remat_blocks_are_recomputed():
    def jaxpr(remat):
        def loss(params):
            module = tower(remat=remat)
            return module.apply({"params": params}, pixels(1, 0, 24, 16), None).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(tower_params()))

    counts = {remat: jaxpr(remat).count("dot_general") for remat in layers.REMAT}
    # "block" repeats every product, "dots" those without weights, "none" none.
    assert counts["none"] < counts["dots"] < counts["block"]


def test_bfloat16_is_near_float32_and_only_near():
    params, x = tower_params(), pixels(3, 0, 24, 16)
    exact = apply(tower(), params, None, x, None)
    half = apply(tower(dtype=jnp.bfloat16), params, None, x, None)
    assert half.dtype == jnp.bfloat16
    error = np.sqrt(np.mean((half.astype(np.float32) - exact) ** 2))
    # 8 bits round by up to 2^-9 of the value, at each of some ten stages.
    assert 1e-4 < error / np.sqrt(np.mean(exact**2)) < 0.03


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="are 16x24, the image tower expects 24x16"):
        tower().apply({"params": tower_params()}, pixels(1, 0, 16, 24), None)


def test_a_patch_that_does_not_divide_the_image_is_refused():
    module = tower(patch=(7, 4))
    with pytest.raises(
        ValueError, match="patches of 7x4 do not divide images of 24x16"
    ):
        random_params(module, pixels(1, 0, 24, 16), None)
