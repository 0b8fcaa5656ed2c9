"""Claims that a step of pre-training is the method's, against PyTorch in float64.

The other side is `reference_pretraining`. It is given our parameters under its names,
and the places that `masking.mask_tokens` chose: masks are random, all else is not.
"""

import functools
import importlib
import re

import jax
import numpy as np
import pytest
from helpers import (
    CLS,
    FIRST,
    MASK,
    PAD,
    SEP,
    arrays,
    images,
    mesh_of,
    quick_jit,
    random_like,
    texts,
)

from configs import pretrain
from unipt_jax import loop, masking, objectives, sharding, tree
from unipt_jax.models import unipt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
reference = importlib.import_module("reference_pretraining")

VOCABULARY = 60
CONTINUES = np.arange(VOCABULARY) >= 40  # the ids of pieces that continue a word
PAPER = reference.Method()
RELEASED = reference.Method(tied=False, padding=True, whole_words=True)
WORDS = reference.Method(special=False)
FIXED = reference.Method(temperature=0.05)
LEARNED = reference.Method(temperature="learned")
# What is asked of our config, and what must come of it.
CASES = {
    "paper": ("paper", {}, PAPER),
    "released": ("released", {}, RELEASED),
    "words alone": ("paper", dict(pool_special=False), WORDS),
    "fixed": ("paper", dict(temperature="fixed", temperature_init=0.05), FIXED),
    "learned": ("paper", dict(temperature="learned"), LEARNED),
}
BATCH = {
    "image": images(8, height=48, width=16),
    "tokens": texts([18, 1, 5, 9, 14, 3, 7, 12], 20, vocabulary=VOCABULARY),
}
KEY = jax.random.key(4)
# Biases of keys: they add the same to all logits of a softmax, so nothing depends on
# them, and their gradient in float32 is numbers that cancel but for rounding.
IDLE = ("k_proj.bias", "self.key.bias")


def exact(preset, **changes):
    """A preset in float32, without what is random but for masks."""
    config = pretrain.get_config(preset).unlock()
    for tower in (config.model.image, config.model.text):
        tower.update(dropout=0.0, attention_dropout=0.0)
    config.model.update(dtype="float32", **changes)
    config.pixels.flips = False
    return config


def small(preset, **changes):
    """`exact` with small towers: no two widths alike, and a grid of 6x2 patches."""
    config = exact(preset, embedding=20, **changes)
    grid = dict(height=48, width=16, patch=(8, 8))
    config.model.image.update(features=32, hidden=64, layers=2, heads=4, **grid)
    config.model.text.update(features=24, hidden=40, layers=2, heads=4, positions=32)
    return config


def ours(config, vocabulary=VOCABULARY):
    """The config's model and loss, put together as `train.pretrain` does."""
    ids = dict(pad=PAD, cls=CLS, sep=SEP)
    model = unipt.build(config.model, vocabulary=vocabulary, **ids)
    objective = objectives.pretrain(
        model,
        weights=objectives.PretrainWeights(**config.loss),
        pixels=objectives.Pixels(**config.pixels),
        masked=objectives.Masking(
            MASK, config.mlm.rate, CONTINUES if config.mlm.whole_words else None
        ),
    )
    return model, objective


def theirs(config, method, params, vocabulary=VOCABULARY, frozen=PAD):
    """The other side, with our parameters."""

    def tower(fields):
        return dict(
            hidden_size=fields.features,
            num_hidden_layers=fields.layers,
            num_attention_heads=fields.heads,
            intermediate_size=fields.hidden,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-12,
        )

    image, text = config.model.image, config.model.text
    vit = dict(image_size=(image.height, image.width), patch_size=tuple(image.patch))
    bert = dict(
        vocab_size=vocabulary,
        max_position_embeddings=text.positions,
        pad_token_id=frozen,
    )
    module = reference.Pretraining(
        transformers.ViTConfig(**tower(image), **vit),
        transformers.BertConfig(**tower(text), **bert),
        config.model.embedding,
        method,
    ).train()
    values, leaves = by_their_names(params, config.model), parameters(module)
    assert leaves.keys() == values.keys()
    with torch.no_grad():
        for name, leaf in leaves.items():
            leaf.copy_(torch.tensor(values[name]))  # float32 in float64: no loss
    return module


def parameters(module):
    """Name -> parameter; a tied one once."""
    return dict(module.named_parameters())


def dense(kernel):
    return kernel.T


def convolution(kernel):
    return kernel.T[..., None]


def patches(kernel, patch):
    """(H W 3, D), pixels in rows -> (D, 3, H, W)."""
    return kernel.reshape(*patch, 3, -1).transpose(3, 2, 0, 1)


# Their name: our path. A "*" is the number of a block.
IMAGE_NORMS = {
    "layers.*.layernorm_before": "block_*/norm1",
    "layers.*.layernorm_after": "block_*/norm2",
    "layernorm": "norm",
}
IMAGE_DENSE = {
    "layers.*.attention.q_proj": "block_*/attention/query",
    "layers.*.attention.k_proj": "block_*/attention/key",
    "layers.*.attention.v_proj": "block_*/attention/value",
    "layers.*.attention.o_proj": "block_*/attention/out",
    "layers.*.mlp.fc1": "block_*/mlp/fc1",
    "layers.*.mlp.fc2": "block_*/mlp/fc2",
}
TEXT_NORMS = {
    "embeddings.LayerNorm": "embedding_norm",
    "encoder.layer.*.attention.output.LayerNorm": "block_*/attention_norm",
    "encoder.layer.*.output.LayerNorm": "block_*/mlp_norm",
}
TEXT_DENSE = {
    "encoder.layer.*.attention.self.query": "block_*/attention/query",
    "encoder.layer.*.attention.self.key": "block_*/attention/key",
    "encoder.layer.*.attention.self.value": "block_*/attention/value",
    "encoder.layer.*.attention.output.dense": "block_*/attention/out",
    "encoder.layer.*.intermediate.dense": "block_*/mlp/fc1",
    "encoder.layer.*.output.dense": "block_*/mlp/fc2",
}
TEXT_EMBEDDINGS = {
    "embeddings.word_embeddings": "token_embedding",
    "embeddings.position_embeddings": "position_embedding",
    "embeddings.token_type_embeddings": "type_embedding",
}


def names(tables, blocks):
    """The tables' rows with numbers for the "*": (theirs, ours, table's index)."""
    for index, table in enumerate(tables):
        for their, our in table.items():
            for i in range(blocks) if "*" in their else [0]:
                yield their.replace("*", str(i)), our.replace("*", str(i)), index


def by_their_names(params, model):
    """Our tree as {their name: array}, each leaf once; their shapes, our numbers."""
    left, out = arrays(params), {}

    def take(their, our, change=lambda x: x):
        out[their] = change(left.pop(our))

    def pair(their, our, kernel, change=dense):
        take(f"{their}.weight", f"{our}/{kernel}", change)
        take(f"{their}.bias", f"{our}/bias")

    same = dict(kernel="scale", change=lambda x: x)
    rows = names([IMAGE_NORMS, IMAGE_DENSE], model.image.layers)
    for their, our, is_dense in rows:
        options = dict(kernel="kernel") if is_dense else same
        pair(f"image.{their}", f"image/{our}", **options)
    for their, our, is_dense in names([TEXT_NORMS, TEXT_DENSE], model.text.layers):
        options = dict(kernel="kernel") if is_dense else same
        pair(f"text.{their}", f"text/{our}", **options)
    for their, our in TEXT_EMBEDDINGS.items():
        take(f"text.{their}.weight", f"text/{our}/embedding")
    grid = functools.partial(patches, patch=model.image.patch)
    place = "image.embeddings"
    take(f"{place}.cls_token", "image/class_token")
    take(f"{place}.position_embeddings", "image/position_embedding", lambda x: x[None])
    projection = f"{place}.patch_embeddings.projection"
    pair(projection, "image/patch_embedding", "kernel", grid)
    for name in ("image_projection", "text_projection"):
        pair(name, name, "kernel", convolution)
    pair("transform.dense", "mlm_head/dense", "kernel")
    pair("transform.LayerNorm", "mlm_head/norm", **same)
    take("decoder.bias", "mlm_head/bias")
    for their, our, change in (
        ("decoder.weight", "mlm_head/kernel", dense),
        ("log_scale", "log_scale", lambda x: x),
    ):
        if our in left:
            take(their, our, change)
    assert not left, f"not compared: {sorted(left)}"
    return out


@functools.cache
def masker(vocabulary, whole_words):
    """`masking.mask_tokens` with the method's settings, compiled once."""
    return quick_jit(
        functools.partial(
            masking.mask_tokens,
            special=(PAD, CLS, SEP),
            mask_id=MASK,
            vocabulary=vocabulary,
            rate=0.15,
            continuation=CONTINUES if whole_words else None,
        )
    )


def inputs(batch, key, method, vocabulary=VOCABULARY):
    """The other side's arguments: the batch, the masked texts, and what was masked."""
    tokens, mask = batch["tokens"], masker(vocabulary, method.whole_words)
    masked, places, _, used = mask(jax.random.split(key, 3)[1], tokens)
    rows, slots = np.nonzero(used)
    chosen = rows, np.asarray(places)[rows, slots]
    labels = np.full(tokens.shape, reference.IGNORED)
    labels[chosen] = tokens[chosen]
    values = batch["image"], tokens, np.array(masked), labels
    return [torch.tensor(np.asarray(x, np.int64)) for x in values]


def backward(module, *args):
    """The other side's losses; the gradients stay with its parameters."""
    losses = module(*args, pad=PAD, cls=CLS, sep=SEP)
    module.zero_grad()
    losses["total"].backward()
    return {name: loss.item() for name, loss in losses.items()}


@functools.cache
def case(name):
    """Our config, parameters and compiled loss with gradients; the other side."""
    preset, changes, method = CASES[name]
    config = small(preset, **changes)
    model, objective = ours(config)
    params = random_like(lambda key: unipt.initialise(model, key))
    run = quick_jit(jax.value_and_grad(objective, has_aux=True))
    return config, params, run, theirs(config, method, params)


def compare(result, model, losses, module):
    """Asserts that losses, and gradients of all parameters, are the other side's."""
    (total, metrics), grads = result
    for name, value in losses.items():
        got = (metrics | {"total": total})[name]
        np.testing.assert_allclose(got, value, rtol=1e-6, err_msg=name)
    grads, leaves = by_their_names(grads, model), parameters(module)
    assert grads.keys() == leaves.keys()
    wanted = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    whole = np.sqrt(sum(np.vdot(x, x) for x in wanted.values()))
    for name, grad in grads.items():
        size = np.linalg.norm(wanted[name])
        error = np.linalg.norm(grad - wanted[name])
        if name.endswith(IDLE):
            assert size < 1e-12 * whole and error < 1e-7 * whole, name
        else:
            assert error < 2e-5 * size, f"{name}: {error / size:.1e} of {size:.1e}"


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_equal_the_method_in_pytorch(name):
    config, params, run, module = case(name)
    losses = backward(module, *inputs(BATCH, KEY, CASES[name][2]))
    compare(run(params, BATCH, KEY), config.model, losses, module)


@pytest.mark.parametrize(("name", "fsdp"), [("paper", 1), ("released", 4)])
def test_8_devices_give_the_losses_and_gradients_of_the_method(name, fsdp):
    config, params, run, module = case(name)
    mesh = mesh_of(8, fsdp)
    batch = sharding.place_batch(BATCH, sharding.local_rows(8, mesh), 8, mesh)
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    losses = backward(module, *inputs(BATCH, KEY, CASES[name][2]))
    compare(run(placed, batch, KEY), config.model, losses, module)


def test_padding_does_not_train_its_embedding_though_it_is_in_the_maximum():
    # The output layer of this recipe is untied, so nothing else trains that row either.
    _, params, run, _ = case("released")
    grads = run(params, BATCH, KEY)[1]
    grad = np.asarray(grads["text"]["token_embedding"]["embedding"])
    assert not grad[PAD].any() and np.delete(grad, PAD, axis=0).any()


def quiet(path):
    """True for what attention adds to a block's tokens, and for the blocks' biases."""
    return re.search("block_.*(out/kernel|bias)$", path)


@pytest.mark.full_size
def test_loss_and_every_gradient_at_base_size_equal_the_method_in_pytorch():
    config, size = exact("paper"), 30522
    model, objective = ours(config, size)
    params = random_like(lambda key: unipt.initialise(model, key))
    # A dozen blocks as random as these would make all tokens one, and gradients small
    # differences of large numbers; as in trained towers, a token keeps what it is.
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: np.float32(0.3 if quiet(tree.path_of(path)) else 1) * x, params
    )
    batch = {
        # Of coloured blocks: mere noise looks all alike. Of a seed without near ties in
        # the maximum, where rounding would choose: first and second are 6e-5 apart.
        "image": images(4, seed=4, height=6, width=2)
        .repeat(64, axis=1)
        .repeat(64, axis=2),
        "tokens": texts([30, 4, 17, 22], 32, vocabulary=size),
    }
    run = quick_jit(jax.value_and_grad(objective, has_aux=True))
    result = jax.tree.map(np.asarray, run(params, batch, KEY))
    module = theirs(config, PAPER, params, size)
    losses = backward(module, *inputs(batch, KEY, PAPER, size))
    compare(result, config.model, losses, module)


STEPS = 20


def lesson(step):
    """A batch of something to learn: each picture of one colour, which its text says."""
    rng = np.random.default_rng(step)
    colours = rng.permutation(8)
    hue = np.stack([colours & 1, colours >> 1 & 1, colours >> 2], -1) * 160
    noise = rng.integers(0, 96, (8, 48, 16, 3))
    tokens = texts(rng.integers(6, 19, 8), 20, seed=step, vocabulary=VOCABULARY)
    tells = (tokens >= FIRST) & (rng.random(tokens.shape) < 0.8)
    tokens = np.where(tells, FIRST + colours[:, None], tokens)
    image = (hue[:, None, None] + noise).astype(np.uint8)
    return {"image": image, "tokens": tokens.astype(np.int32)}


def our_steps(config, model, objective, mesh):
    """The losses of STEPS real steps; the parameters before and after."""
    optimiser = loop.make_optimiser(config, STEPS)
    state, shardings = loop.initial_state(model, optimiser, config.seed, mesh)
    before = jax.tree.map(np.array, state.params)  # a copy: the state is donated
    step = loop.make_step(objective, optimiser, config.seed, shardings)
    rows, out = sharding.local_rows(8, mesh), []
    for i in range(STEPS):
        batch = sharding.place_batch(lesson(i), rows, 8, mesh)
        state, metrics = step(state, batch)
        out.append([metrics[name] for name in ("loss", "contrastive", "mlm")])
    return np.array(out), before, state.params


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_20_steps_of_training_equal_20_of_torch_adamw(preset):
    config, method = small(preset), CASES[preset][2]
    config.lr = 3e-3
    losses, before, after = our_steps(config, *ours(config), mesh_of(1))
    module, expected = theirs(config, method, before), []
    optimiser, rates = reference.adamw(module, rate=3e-3, warmup=2, total=STEPS)
    for i in range(STEPS):
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        values = backward(module, *inputs(lesson(i), key, method))
        optimiser.step()
        rates.step()
        expected.append(list(values.values()))
    assert np.all(np.mean(losses[-4:], 0) < 0.9 * losses[0])
    np.testing.assert_allclose(losses, expected, rtol=2e-6)
    start, end = (by_their_names(x, config.model) for x in (before, after))
    for name, leaf in parameters(module).items():
        if not name.endswith(IDLE):  # Adam makes whole steps of their rounding
            leaf = leaf.detach().numpy()
            error = np.linalg.norm(end[name] - leaf)
            # Scales are about 1 and move by little: 1e-5 of that is their rounding.
            assert error < 5e-5 * np.linalg.norm(leaf - start[name]), name
