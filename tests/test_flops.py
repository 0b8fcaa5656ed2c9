"""Model FLOPs: equal to those of the step's own products, and by hand; peaks by name."""

import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from unipt_jax import flops, masking, objectives
from unipt_jax.errors import UserError
from unipt_jax.models import bert, clip, vit

LENGTH, BATCH, RATE = 12, 3, 0.3  # 12 tokens: 10 words, of which 3 are hidden
PGU = dict(parts=2, layers=2, heads=2, head_width=12, hidden=20, features=10)
PIXELS = objectives.Pixels(0.5, 0.5, flips=True)
MASKING = objectives.Masking(helpers.MASK, RATE)


def inner_jaxprs(eqn):
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else [value]:
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


def products(jaxpr):
    """FLOPs of all products of matrices in a program, two for a multiply and an add."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2 * summed * math.prod(eqn.outvars[0].aval.shape)
        inner = [products(inner) for inner in inner_jaxprs(eqn)]
        # One way of several, for the platform at hand, or all that is inside.
        total += max(inner) if eqn.primitive.name == "cond" else sum(inner)
    return total


def of_program(loss, params):
    """FLOPs of the gradient of a loss, on texts that fill their rows."""
    batch = {
        "image": helpers.images(BATCH),
        "tokens": helpers.texts([LENGTH - 2] * BATCH, LENGTH),
        "label": np.arange(BATCH, dtype=np.int32),
    }
    whole = jax.make_jaxpr(jax.grad(loss, has_aux=True))(
        params, batch, jax.random.key(0)
    )
    # What nothing reads (a gradient to the pixels) is not computed.
    used, _ = partial_eval.dce_jaxpr(whole.jaxpr, [True] * len(whole.jaxpr.outvars))
    return products(used)


def counted(model, losses, rate=RATE, lengths=(LENGTH,) * BATCH):
    return flops.step(model, np.array(lengths), losses=losses, mlm_rate=rate)


def clip_text():
    fields = dict(kind="clip", activation="quick_gelu", norm_eps=1e-5)
    return helpers.config()["text"] | fields


# --- a step --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "mlm"),
    [
        ({}, 1.0),
        ({}, 0.0),
        (dict(mlm_output="untied", pool_special=False, embedding=28), 1.0),
        (dict(pool="token", image=dict(distillation=True, layers=2)), 1.0),
        (dict(image=dict(remat="dots", hidden=20), text=dict(remat="block")), 0.0),
        (dict(text=clip_text(), mlm_output="none", temperature="learned"), 0.0),
    ],
)
def test_a_pretraining_step_counts_exactly_its_products(changes, mlm):
    model, params = helpers.build(**changes)
    plain = {
        tower: {k: v for k, v in fields.items() if k != "remat"}
        for tower, fields in changes.items()
        if isinstance(fields, dict)
    }
    # Recomputation does not count: what is counted is the program without it.
    twin, _ = helpers.build(**changes | plain)
    loss = objectives.pretrain(
        twin,
        weights=objectives.PretrainWeights(mlm=mlm),
        pixels=PIXELS,
        masked=MASKING,
    )
    losses = {"contrastive", "mlm"} if mlm else {"contrastive"}
    assert counted(model, losses) == of_program(loss, params)


@pytest.mark.parametrize(
    ("weights", "changes"),
    [
        (dict(identity=1.0), dict(identities=7)),
        (dict(ranking=1.0), {}),
        (dict(sdm=1.0, mlm=1.0), {}),
        (
            dict(pgu=1.0),
            dict(identities=7, pgu=PGU | dict(tokens="tower"), text=dict(features=16)),
        ),
        (dict(pgu=1.0), dict(identities=7, pgu=PGU, embedding=28)),
        (dict(mlm=1.0), dict(interaction=dict(layers=2, heads=2), mlm_output="none")),
    ],
)
def test_each_loss_of_fine_tuning_counts_exactly_its_products(weights, changes):
    model, params = helpers.build(**changes)
    none = dict.fromkeys(("identity", "ranking", "pgu", "sdm", "contrastive", "mlm"), 0)
    loss = objectives.finetune(
        model,
        weights=objectives.FinetuneWeights(**none | weights),
        pixels=PIXELS,
        masked=MASKING,
    )
    assert counted(model, weights.keys()) == of_program(loss, params)


def test_a_product_that_several_losses_share_counts_once():
    changes = dict(identities=7, pgu=PGU, interaction=dict(layers=1, heads=2))
    model, _ = helpers.build(**changes)
    names = ("ranking", "sdm", "contrastive", "identity", "pgu", "mlm")
    parts = flops.forward(model, (LENGTH,) * BATCH, losses=names, mlm_rate=RATE)
    p = model.embedding
    tokens = flops.patches(model.image) + model.image.prefix
    # Each image token once; clean texts for pooling and PGU, masked ones to be guessed.
    rows = BATCH * (tokens * model.image.features + 2 * LENGTH * model.text.features)
    assert parts["projection"] == 2 * rows * p
    assert parts["similarity"] == 2 * BATCH * BATCH * p


def test_a_text_counts_as_long_as_it_is_and_steps_add_up():
    model, _ = helpers.build()
    lengths = np.array([4, 12, 7, 7, 2, 30])
    d, f = model.text.features, model.text.hidden
    layers = model.text.layers

    def by_hand(n):
        return layers * (8 * n * d * d + 4 * n * n * d + 4 * n * d * f)

    assert flops.text_tower(model.text, lengths) == sum(map(by_hand, lengths))
    losses = {"contrastive", "mlm"}
    two = counted(model, losses, lengths=lengths[:3])
    two += counted(model, losses, lengths=lengths[3:])
    swapped = counted(model, losses, lengths=lengths[[5, 1, 3]])
    swapped += counted(model, losses, lengths=lengths[[2, 4, 0]])
    assert two == swapped


def test_vit_b16_of_384x128_by_hand():
    tower = vit.ViT(
        height=384, width=128, patch=(16, 16), features=768, layers=12, heads=12,
        hidden=3072,
    )  # fmt: skip
    kernels = 12 * (4 * 768 * 768 + 2 * 768 * 3072)  # 84,934,656 weights of the blocks
    dense = 2 * 193 * kernels  # 24 x 8 patches and the class token
    attention = 12 * 2 * (2 * 193 * 193 * 768)
    patches = 2 * 192 * (16 * 16 * 3) * 768
    assert flops.image_tower(tower) == dense + attention + patches == 34_384_416_768


def test_bert_base_on_a_caption_of_32_tokens_by_hand():
    fields = dict(positions=512, features=768, layers=12, heads=12, hidden=3072)
    tower = bert.Bert(vocabulary=30522, **fields)
    by_hand = 2 * 32 * 84_934_656 + 12 * 2 * (2 * 32 * 32 * 768)
    assert flops.text_tower(tower, np.array([32])) == by_hand
    # A causal mask leaves products as they are.
    causal = clip.ClipText(vocabulary=49408, **fields)
    assert flops.text_tower(causal, np.array([32])) == by_hand
    head = 2 * (768 * 768 + 768 * 30522)
    assert flops.mlm_head(4, 768, 30522) == 4 * head  # round(.15 x 30) words of it


def test_hidden_words_are_those_that_masking_hides():
    words = [0, 1, 2, 3, 5, 10, 16, 17, 23, 30]
    tokens = jnp.asarray(helpers.texts(words, 32))

    def used(rate):
        return masking.mask_tokens(
            jax.random.key(0),
            tokens,
            special=(helpers.PAD, helpers.CLS, helpers.SEP),
            mask_id=helpers.MASK,
            vocabulary=helpers.VOCABULARY,
            rate=rate,
        )[-1].sum()

    rates = 0.05, 0.15, 0.5
    found = helpers.quick_jit(lambda: [used(rate) for rate in rates])()
    lengths = np.array(words) + 2
    assert [flops.hidden_words(lengths, rate) for rate in rates] == found


def test_a_loss_that_is_not_known_is_refused():
    model, _ = helpers.build()
    with pytest.raises(ValueError, match=r"\['focal'\] are not among"):
        counted(model, {"contrastive", "focal"})


# --- peaks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("A100-SXM4-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("Tesla V100-SXM2-16GB", 15.7),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("TPU v2", 22.5),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
    ],
)
def test_the_peak_of_a_device_goes_by_its_name(kind, tflops):
    assert flops.device_peak(kind, "bfloat16") == tflops * 1e12


@pytest.mark.parametrize(
    "kind",
    [
        "cpu",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA L40",
        "TPU v4 lite",
        "",
    ],
)
def test_other_devices_have_no_peak(kind):
    assert flops.device_peak(kind, "bfloat16") is None


def test_float32_has_the_peak_of_the_arithmetic_that_jax_does_it_in():
    def peak(kind, precision=None):
        return flops.device_peak(kind, "float32", precision)

    assert peak("NVIDIA H200") == peak("NVIDIA H200", "high") == 494.5e12
    assert peak("NVIDIA H200", "highest") == peak("NVIDIA H200", "float32") == 67e12
    assert peak("TPU v4") == 275e12 and peak("TPU v4", "highest") is None


def test_the_peak_of_a_mesh_is_that_of_all_its_devices():
    for devices in (1, 8):
        mesh = helpers.mesh_of(devices)
        assert flops.mesh_peak(mesh, "bfloat16") is None  # CPUs
        assert flops.mesh_peak(mesh, "bfloat16", 2.5) == devices * 2.5e12


@pytest.mark.parametrize("tflops", [-1.0, float("nan")])
def test_a_peak_below_0_is_refused(tflops):
    with pytest.raises(UserError, match="peak_tflops=.* one device, or 0"):
        flops.mesh_peak(helpers.mesh_of(1), "float32", tflops)


def test_a_tower_that_no_loss_reads_is_not_counted():
    model, _ = helpers.build()
    lengths = np.array([5, 9])
    words = flops.forward(model, lengths, losses=("mlm",), mlm_rate=0.3)
    both = flops.forward(model, lengths, losses=("mlm", "contrastive"), mlm_rate=0.3)
    assert words["image"] == 0 < both["image"]
    assert both["text"] == words["text"] > 0  # clean and masked texts pass together
    total = flops.step(model, lengths, losses=("mlm",), mlm_rate=0.3)
    assert total == 3 * sum(words.values())
