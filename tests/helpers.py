"""What several test files share: a small model, random parameters, meshes."""

import functools

import jax
import numpy as np
import pytest

from unipt_jax import tree
from unipt_jax.models import unipt

PAD, CLS, SEP, MASK = 0, 1, 2, 3
FIRST = 4  # the first id that is a word
VOCABULARY = 24
HEIGHT, WIDTH = 16, 8

# Compiles a third as long: machine code that runs a moment does not repay polishing.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
if jax.__version_info__ < (0, 11):
    # The older emitters, gone since, need a third of that again: no passes over MLIR
    # for each of a step's hundreds of fusions.
    QUICK["xla_cpu_use_fusion_emitters"] = False
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


def mesh_of(devices, fsdp=1):
    """A mesh over the first `devices` of the virtual devices."""
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices")
    return jax.make_mesh(
        (devices // fsdp, fsdp),
        ("data", "fsdp"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )


def config(image=(), text=(), **head):
    """A config's `model` section: towers of one layer, float32, without dropout."""
    tower = dict(
        features=16,
        layers=1,
        heads=2,
        hidden=24,
        dropout=0.0,
        attention_dropout=0.0,
    )
    grid = dict(height=HEIGHT, width=WIDTH, patch=(8, 4))
    fields = dict(
        image=tower | grid | dict(image),
        text=tower | dict(kind="bert", features=12, positions=40) | dict(text),
        embedding=8,
        dtype="float32",
    )
    return fields | head


def build(**changes):
    """A small DualEncoder and random parameters for it."""
    model = unipt.build(
        config(**changes), vocabulary=VOCABULARY, pad=PAD, cls=CLS, sep=SEP
    )
    return model, random_like(lambda key: unipt.initialise(model, key))


def random_params(module, *args):
    """Random parameters for module(*args)."""
    return random_like(lambda key: module.init(key, *args)["params"])


def apply(model, params, method, *args):
    """A method of the model (None: its call), compiled as one program."""
    run = quick_jit(
        lambda params: model.apply({"params": params}, *args, method=method)
    )
    return np.asarray(run(params))


def random_like(initialise):
    """Numpy parameters of the shapes that initialise(key) has; compiles nothing.

    Every leaf is random: biases of 0 and scales of 1 would hide errors.
    """
    shapes = jax.eval_shape(initialise, jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(key_path, leaf):
        name = tree.path_of(key_path).rsplit("/")[-1]
        x = rng.standard_normal(leaf.shape)
        x = {"kernel": x / np.sqrt(leaf.shape[0] if x.ndim else 1)}.get(name, 0.3 * x)
        return np.asarray(x + (name == "scale"), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def arrays(params):
    """Path -> numpy array."""
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}


def texts(counts, length, seed=0, vocabulary=VOCABULARY):
    """(B, length) rows of [CLS], counts[i] words, [SEP], padding."""
    rng = np.random.default_rng(seed)
    tokens = np.full((len(counts), length), PAD, np.int32)
    for row, n in zip(tokens, counts, strict=True):
        row[0], row[n + 1] = CLS, SEP
        row[1 : n + 1] = rng.integers(FIRST, vocabulary, n)
    return tokens


def pixels(batch, seed=0, height=HEIGHT, width=WIDTH):
    """(B, H, W, 3) float32, about normalised."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, height, width, 3)).astype(np.float32)


def images(batch, seed=0, height=HEIGHT, width=WIDTH):
    """(B, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (batch, height, width, 3), np.uint8)


def five_sigma(p, trials):
    """How far a share of `trials` coins of probability p may lie from p."""
    return 5 * np.sqrt(p * (1 - p) / trials)
