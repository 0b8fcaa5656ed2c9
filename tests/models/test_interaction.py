"""Claims on the encoder that reads the image for masked words, against PyTorch's modules."""

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
    quick_jit,
    random_params,
    texts,
)

from unipt_jax import sharding
from unipt_jax.models import interaction

torch = pytest.importorskip("torch")

B, L, N, P, HEADS = 8, 6, 5, 12, 3
COUNTS = np.array([[6], [2], [5], [1], [6], [4], [3], [6]])


def inputs():
    """Text, image and mask, and what the output is weighted by: 0 on padding."""
    rng = np.random.default_rng(0)
    mask = np.arange(L) < COUNTS
    text, image = rng.standard_normal((B, L, P)), rng.standard_normal((B, N, P))
    weights = rng.standard_normal((B, L, P)) * mask[..., None]
    return *(x.astype(np.float32) for x in (text, image)), mask, weights


class Encoder(torch.nn.Module):
    """Norms, multi-head attention from text to image, a pre-norm encoder, a norm."""

    def __init__(self, depth):
        super().__init__()
        nn = torch.nn
        self.text_norm, self.image_norm, self.norm = (
            nn.LayerNorm(P, eps=1e-5) for _ in range(3)
        )
        self.cross_attention = nn.MultiheadAttention(P, HEADS, batch_first=True)
        options = dict(dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                P,
                HEADS,
                4 * P,
                activation=lambda x: x * torch.sigmoid(1.702 * x),
                **options,
            )
            for _ in range(depth)
        )
        self.double()

    def forward(self, text, image, mask):
        image = self.image_norm(image)
        x, _ = self.cross_attention(self.text_norm(text), image, image)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=~mask)
        return self.norm(x)


def attention(p, ours, theirs):
    """Our attention's parameters by PyTorch's names, where three are one."""
    joined = [
        (p[f"{ours}/{x}/kernel"], p[f"{ours}/{x}/bias"])
        for x in ("query", "key", "value")
    ]
    return {
        f"{theirs}.in_proj_weight": np.concatenate([kernel.T for kernel, _ in joined]),
        f"{theirs}.in_proj_bias": np.concatenate([bias for _, bias in joined]),
        f"{theirs}.out_proj.weight": p[f"{ours}/out/kernel"].T,
        f"{theirs}.out_proj.bias": p[f"{ours}/out/bias"],
    }


def by_their_names(params, depth):
    """Our parameters or gradients by PyTorch's names, each once."""
    p = arrays(params)
    out = attention(p, "cross_attention", "cross_attention")
    pairs = {name: name for name in ("text_norm", "image_norm", "norm")}
    for i in range(depth):
        out |= attention(p, f"block_{i}/attention", f"blocks.{i}.self_attn")
        names = dict(norm1="norm1", norm2="norm2", linear1="mlp/fc1", linear2="mlp/fc2")
        pairs |= {f"blocks.{i}.{k}": f"block_{i}/{v}" for k, v in names.items()}
    for theirs, ours in pairs.items():
        kernel = "scale" if f"{ours}/scale" in p else "kernel"
        out[f"{theirs}.weight"] = p[f"{ours}/{kernel}"].T
        out[f"{theirs}.bias"] = p[f"{ours}/bias"]
    assert sum(x.size for x in out.values()) == sum(x.size for x in p.values())
    return out


@pytest.mark.parametrize(("devices", "depth"), [(1, 2), (8, 1)])
def test_the_encoder_and_its_gradients_equal_pytorchs_modules(devices, depth):
    text, image, mask, weights = inputs()
    model = interaction.Interaction(layers=depth, heads=HEADS)
    params = random_params(model, text, image, mask, False)
    module = Encoder(depth)
    values = by_their_names(params, depth)
    module.load_state_dict({k: torch.tensor(v) for k, v in values.items()})
    tensors = [torch.tensor(np.float64(x), requires_grad=True) for x in (text, image)]
    expected = module(*tensors, torch.tensor(mask))
    (expected * torch.tensor(weights)).sum().backward()

    def loss(params, text, image, mask, weights):
        out = model.apply({"params": params}, text, image, mask, np.arange(len(text)))
        return jnp.sum(out * weights), out

    placement = sharding.batch_sharding(mesh_of(devices))
    placed = jax.device_put((text, image, mask, np.float32(weights)), placement)
    run = quick_jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, found), (grads, *slopes) = run(params, *placed)
    real = np.asarray(found)[mask]
    np.testing.assert_allclose(real, expected.detach()[mask], rtol=0, atol=3e-6)
    grads = by_their_names(grads, depth)
    for name, leaf in module.named_parameters():
        error = np.linalg.norm(grads[name] - leaf.grad.numpy())
        assert error < 1e-5 * leaf.grad.norm().item(), name
    for slope, leaf in zip(slopes, tensors, strict=True):
        assert np.linalg.norm(slope - leaf.grad.numpy()) < 1e-5 * leaf.grad.norm()


def model_with_head():
    return build(interaction=dict(layers=1, heads=2), mlm_output="none")


def guesses(model, params, tokens, places, padding=0.0):
    """Logits of the places, with features that are `padding` where the tokens are."""
    rng = np.random.default_rng(1)
    text = rng.standard_normal((3, 12, 12)).astype(np.float32)[:, : tokens.shape[1]]
    image = rng.standard_normal((3, 5, 16)).astype(np.float32)
    text = np.where((tokens == PAD)[..., None], np.float32(padding), text)
    return apply(model, params, "cross_mlm_logits", text, image, tokens, places, None)


def test_guesses_never_read_padding():
    model, params = model_with_head()
    tokens = texts([3, 6, 1], 8)
    places = np.array([[1, 2], [6, 3], [1, 1]])
    found = guesses(model, params, tokens, places)
    assert found.shape == (3, 2, 24) and found.dtype == np.float32
    other = guesses(model, params, tokens, places, padding=50.0)
    np.testing.assert_array_equal(other, found)
    longer = np.pad(tokens, ((0, 0), (0, 4)), constant_values=PAD)
    found_in_longer = guesses(model, params, longer, places)
    np.testing.assert_allclose(found_in_longer, found, rtol=0, atol=2e-6)


def test_guesses_read_their_own_image_and_sentence_alone():
    model, params = model_with_head()
    tokens, places = texts([3, 6, 1], 8), np.array([[1], [4], [1]])
    rng = np.random.default_rng(2)
    text = rng.standard_normal((3, 8, 12)).astype(np.float32)
    image = rng.standard_normal((3, 5, 16)).astype(np.float32)

    def run(text, image):
        fixed = tokens, places, False
        return apply(model, params, "cross_mlm_logits", text, image, *fixed)

    plain, (word, picture) = run(text, image), (text.copy(), image.copy())
    word[1, 2] += 1  # another word than the one that is guessed
    picture[0] += 1
    for changed, row in ((run(word, image), 1), (run(text, picture), 0)):
        differs = np.abs(changed - plain).max((1, 2)) > 1e-3
        assert differs.tolist() == [i == row for i in range(3)]


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(ValueError, match="interaction.heads.?=?3 must divide"):
        build(interaction=dict(layers=1, heads=3))
