"""Claims on fused attention, traced for a GPU that is not there, and on the choice."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import MASK, build, config, images, random_params, texts

from unipt_jax import attention, objectives, train
from unipt_jax.errors import UserError
from unipt_jax.models import layers, unipt

TOWER = dict(heads=2, features=16, attention_dropout=0.0)


@pytest.mark.parametrize("tokens", [6, 7])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_on_an_even_length_equals_the_weighted_sum(
    tokens, causal, masked, monkeypatch
):
    lengths, plain = [], jax.nn.dot_product_attention

    def fused(q, k, v, *, implementation, **options):
        assert implementation == "cudnn"
        lengths.append(q.shape[1])
        return plain(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    x = np.random.default_rng(0).standard_normal((3, tokens, 16)).astype(np.float32)
    mask = np.arange(tokens) < np.array([[tokens], [3], [1]]) if masked else None
    make = functools.partial(layers.Attention, 2, causal=causal)
    params = random_params(make(), x, mask, None)

    def run(implementation):
        def loss(params, x):
            module = make(implementation=implementation)
            y = module.apply({"params": params}, x, mask, None)
            return (y[:, :1] ** 2).sum() + y[0].sum()

        return jax.value_and_grad(loss, (0, 1))(params, x)

    expected, found = run("xla"), run("cudnn")
    assert lengths and all(n == tokens + tokens % 2 for n in lengths)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


@pytest.mark.parametrize("tokens", [193, 194, 48])
def test_cudnn_takes_the_towers_lengths_forwards_and_backwards(tokens, monkeypatch):
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(kernels, "check_compute_capability", lambda _: True)
    module = layers.Attention(2, dtype=jnp.bfloat16, implementation="cudnn")
    x = jnp.ones((2, tokens, 16), jnp.bfloat16)
    mask = jnp.ones((2, tokens), bool)
    params = layers.Attention(2).init(jax.random.key(0), x, None, None)

    def loss(params, mask):
        return module.apply(params, x, mask, None).astype(jnp.float32).sum()

    for given in (None, mask):
        # Lengths and types are checked when it is traced; a GPU is for running it.
        traced = jax.jit(jax.grad(loss)).trace(params, given)
        assert "dot_product_attention" in str(traced.jaxpr)


def test_the_step_of_a_gpu_is_of_fused_attention_and_16_bit_products(monkeypatch):
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(kernels, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fused = dict(attention="cudnn", features=128)
    model, params = build(image=fused, text=fused, dtype="bfloat16")
    loss = objectives.pretrain(
        model,
        weights=objectives.PretrainWeights(),
        pixels=objectives.Pixels(0.5, 0.5, flips=True),
        masked=objectives.Masking(MASK),
    )
    batch = {"image": images(8), "tokens": texts([3] * 8, 16)}
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    traced = grad.trace(params, batch, jax.random.key(0))
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = set(re.findall(r"custom_call @([\w$]+)", program))
    assert calls >= {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    products = re.findall(r"stablehlo.dot_general[^\n]*: \((.*)\) ->", program)
    wide = [p for p in products if "f32>" in p.replace("bf16>", "")]
    assert len(products) > 40
    assert len(wide) == 3, wide  # the 8 x 8 cosines and their gradients


@pytest.mark.parametrize(
    ("tower", "dtype", "expected"),
    [
        (TOWER, "bfloat16", ("xla", "cudnn")),
        (TOWER, "float32", ("xla",)),
        (TOWER | dict(attention_dropout=0.1), "bfloat16", ("xla",)),
    ],
)
def test_what_a_tower_can_have_is_tried(tower, dtype, expected, monkeypatch):
    assert attention.candidates(tower, dtype) == ("xla",)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attention.candidates(tower, dtype) == expected


@pytest.mark.parametrize("fastest", ["xla", "cudnn"])
def test_the_fastest_is_taken(fastest, monkeypatch):
    monkeypatch.setattr(attention, "candidates", lambda *_: ("xla", "cudnn"))
    monkeypatch.setattr(attention, "pass_of", lambda tower, name, *_: name)
    monkeypatch.setattr(attention, "measure", lambda name: 2.0 - (name == fastest))
    name, seconds = attention.choose(TOWER, batch=2, tokens=6, dtype="bfloat16")
    assert name == fastest and sorted(seconds.values()) == [1.0, 2.0]


def test_one_that_does_not_run_here_is_left_out_and_said(monkeypatch, capsys):
    monkeypatch.setattr(attention, "candidates", lambda *_: ("xla", "cudnn"))
    options = dict(batch=2, tokens=6, dtype="bfloat16")
    name, seconds = attention.choose(TOWER, **options)  # no GPU: cudnn has no kernel
    assert name == "xla" and 0 < seconds["xla"] < seconds["cudnn"] == float("inf")
    assert "attention 'cudnn' does not run here" in capsys.readouterr().out


def test_a_run_keeps_the_attention_that_its_first_start_measured(tmp_path, monkeypatch):
    from configs import pretrain
    from unipt_jax import rundir, sharding

    def choose(tower, *, batch, tokens, dtype):
        seen.append((batch, tokens, dtype))
        return "cudnn", {"xla": 2.0, "cudnn": 1.0}

    seen = []
    monkeypatch.setattr(attention, "choose", choose)
    mesh = sharding.make_mesh(data=0, fsdp=2)
    config = pretrain.get_config("paper").unlock()
    config.model.text.attention = "xla"
    first = train._with_attention(config, str(tmp_path), mesh)
    assert seen == [(512 // 8, 193, "bfloat16")]
    assert first.model.image.attention == "cudnn"
    rundir.open_workdir(first, tmp_path, harmless=train.HARMLESS)
    again = train._with_attention(config, str(tmp_path), mesh)
    assert len(seen) == 1 and again.model.image.attention == "cudnn"


@pytest.mark.parametrize(("dtype", "has"), [("bfloat16", "cudnn"), ("float32", "xla")])
def test_what_was_trained_with_cudnn_is_read_in_float32_without(
    dtype, has, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fields = config(image=dict(attention="cudnn"), dtype=dtype)
    model = unipt.build(fields, vocabulary=8, pad=0, cls=1, sep=2)
    assert model.image.attention == has


@pytest.mark.parametrize("wrong", [dict(dtype="float32"), dict(dropout=0.1)])
def test_training_with_a_cudnn_that_cannot_be_is_refused(wrong, tmp_path):
    from configs import pretrain
    from unipt_jax import sharding

    given = pretrain.get_config("paper").unlock()
    given.model.image.attention = "cudnn"
    given.model.dtype = wrong.get("dtype", "bfloat16")
    given.model.image.attention_dropout = wrong.get("dropout", 0.0)
    mesh = sharding.make_mesh(data=0, fsdp=1)
    with pytest.raises(UserError, match="cudnn takes bfloat16, and drops no attention"):
        train._with_attention(given, str(tmp_path), mesh)


def test_the_folder_of_another_job_keeps_no_attention(tmp_path):
    (tmp_path / "config.json").write_text('{"job": "caption", "model": "a/clip"}')
    kept = train._kept_attention(str(tmp_path))
    assert kept == {"image": "auto", "text": "auto"}


@pytest.mark.parametrize("field", ["attention", "remat"])
def test_an_unknown_choice_is_named_with_those_there_are(field):
    known = {"attention": "auto, xla, cudnn", "remat": "none, block, dots"}[field]
    with pytest.raises(UserError, match=f"{field} 'flash' is not one of {known}"):
        build(image={field: "flash"})
