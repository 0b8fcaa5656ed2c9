"""Claims that a step of fine-tuning is the method's, against PyTorch in float64.

The other side is `reference_finetuning`. It is given our parameters, the places that
`masking.mask_tokens` chose and the negatives that `losses.ranking` drew: those are random,
all else is not. That what is drawn is legal is shown where those are tested.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    CLS,
    MASK,
    PAD,
    SEP,
    VOCABULARY,
    arrays,
    build,
    images,
    mesh_of,
    quick_jit,
    texts,
)

from unipt_jax import losses, masking, objectives, sharding
from unipt_jax.errors import UserError
from unipt_jax.models import unipt

torch = pytest.importorskip("torch")
reference = importlib.import_module("reference_finetuning")

MARGIN, RATE = 0.3, 0.3
KEY = jax.random.key(4)
BATCH = {
    "image": images(8),
    "tokens": texts([10, 1, 5, 9, 14, 3, 7, 8], 16),
    "label": np.array([0, 0, 1, 2, 2, 2, 3, 4], np.int32),
}
PGU = dict(parts=3, layers=1, heads=2, head_width=7, hidden=10, features=5)
# No two weights alike, so that none can stand for another.
WEIGHTS = dict(identity=0.7, ranking=1.3, pgu=0.6, sdm=0.8, contrastive=1.1, mlm=0.9)
ALL = dict(
    # Bare towers, which compile in half the time: their blocks are compared elsewhere.
    image=dict(
        layers=0, distillation=True
    ),  # PGU reads neither of the first two tokens
    text=dict(layers=0),
    pgu=PGU | dict(tokens="projected"),
    interaction=dict(layers=1, heads=2),
    mlm_output="none",
    temperature="learned",
    temperature_init=0.2,
    identities=6,
)
# Without PGU and the encoder that crosses: words are guessed from the text alone.
PLAIN = dict(identities=6, temperature="fixed", temperature_init=0.1)
CASES = {
    "all": (ALL, WEIGHTS, "sum"),
    "plain": (PLAIN, WEIGHTS | dict(pgu=0.0), "mean"),
}


def objective(model, weights, reduction="sum", rate=RATE, mask_id=MASK, **augmented):
    """Our loss, where every weight that is not given is 0."""
    return objectives.finetune(
        model,
        weights=objectives.FinetuneWeights(**dict.fromkeys(WEIGHTS, 0.0) | weights),
        pixels=objectives.Pixels(mean=0.5, std=0.5, **augmented),
        masked=objectives.Masking(mask_id, rate),
        margin=MARGIN,
        reduction=reduction,
    )


@functools.cache
def ours(name):
    """A case's parameters and loss."""
    changes, weights, reduction = CASES[name]
    model, params = build(**changes)
    if "log_scale" in params:
        params["log_scale"] = np.float32(np.log(7))
    return params, objective(model, weights, reduction)


# --- the other side ------------------------------------------------------------------


mask = quick_jit(
    functools.partial(
        masking.mask_tokens,
        special=(PAD, CLS, SEP),
        mask_id=MASK,
        vocabulary=VOCABULARY,
        rate=RATE,
    )
)


@functools.cache
def masked():
    """Masked texts; rows, columns and words of what is to be guessed."""
    key = jax.random.split(KEY, 4)[1]
    changed, places, targets, used = mask(key, BATCH["tokens"])
    rows, slots = np.nonzero(used)
    assert len(rows) < used.size  # some slots hold nothing to guess
    chosen = rows, np.asarray(places)[rows, slots], np.asarray(targets)[rows, slots]
    return [torch.tensor(np.asarray(x, np.int64)) for x in (changed, *chosen)]


draw = quick_jit(jax.grad(losses.ranking, 1), static_argnames="margin")


def drawn(key, cosines):
    """How often each pair is drawn as a negative, see `reference.ranking`."""
    label, base = BATCH["label"], np.eye(8, dtype=np.float32)
    values = cosines.detach().numpy().astype(np.float32)
    times = draw(key, values, base, label, margin=MARGIN)
    times = torch.tensor(np.asarray(times, np.float64))
    ways = reference.candidates(cosines.detach(), torch.tensor(label), MARGIN)
    assert ((ways[0] | ways[1].T) | (times <= 0)).all()
    anchors = sum(way.any(1).double() for way in ways)
    assert torch.equal(-times.diag(), anchors) and anchors.sum() > 4
    return times


def granularity(net, image, text, real, label, rank):
    """Lpgu of the projected tokens."""
    parts = net.parts(image[:, net.prefix :], None), net.parts(text, real)
    classifiers = net.p["part_classifiers/kernel"], net.p["part_classifiers/bias"]
    entropy = torch.nn.functional.cross_entropy
    of_parts = [
        sum(entropy(x[:, i] @ kernel + bias, label) for x in parts)
        for i, (kernel, bias) in enumerate(zip(*classifiers, strict=True))
    ]
    joined = reference.cosines(*(x.flatten(1) for x in parts))
    return sum(of_parts) / len(of_parts) + rank(joined)


@functools.cache
def theirs(name):
    """The other side: our parameters by path, each loss by name, and the accuracy."""
    reduction = CASES[name][2]
    leaves = {
        path: torch.tensor(x, dtype=torch.float64, requires_grad=True)
        for path, x in arrays(ours(name)[0]).items()
    }
    options = dict(layers=0, prefix=2) if name == "all" else dict(layers=1, prefix=1)
    options |= dict(patch=(8, 4), pad=PAD, part_layers=PGU["layers"])
    net = reference.Network(leaves, **options)
    tokens, label = (torch.tensor(BATCH[x]).long() for x in ("tokens", "label"))
    real, rank_key = tokens != PAD, jax.random.split(KEY, 4)[3]

    def rank(cosines, key=rank_key):
        loss = reference.ranking(cosines, drawn(key, cosines), MARGIN)
        return loss if reduction == "sum" else loss / len(label)

    image = net.dense("image_projection", net.see(torch.tensor(BATCH["image"])))
    text = net.dense("text_projection", net.read(tokens))
    pooled = image.amax(1), text.masked_fill(~real[..., None], -torch.inf).amax(1)
    logits = [net.dense("classifier", x) for x in pooled]
    entropy = torch.nn.functional.cross_entropy
    cosines = reference.cosines(*pooled)
    scale = leaves["log_scale"].exp() if "log_scale" in leaves else 10.0
    out = dict(
        identity=entropy(logits[0], label) + entropy(logits[1], label),
        ranking=rank(cosines),
        sdm=reference.sdm(cosines, label, scale),
        contrastive=reference.infonce(cosines, scale),
    )
    changed, rows, places, words = masked()
    read, head = net.read(changed), "mlm_head"
    if name == "all":
        of_parts = functools.partial(rank, key=jax.random.fold_in(rank_key, 1))
        out["pgu"] = granularity(net, image, text, real, label, of_parts)
        read, head = net.dense("text_projection", read), "cross_mlm_head"
        read = net.cross(read, image, real)
    out["mlm"] = entropy(net.guess(head, read[rows, places]), words)
    right = torch.cat([x.argmax(1) == label for x in logits]).double()
    return leaves, out, right.mean().item()


def total(name):
    """The other side's weighted sum."""
    return sum(CASES[name][1][key] * value for key, value in theirs(name)[1].items())


def assert_values(name, metrics):
    """Asserts that each loss, by name, is the other side's, and that there is no other."""
    leaves, out, accuracy = theirs(name)
    learned = {"temperature"} if "log_scale" in leaves else set()
    assert set(metrics) == set(out) | {"accuracy"} | learned
    for key, value in out.items():
        np.testing.assert_allclose(metrics[key], value.item(), rtol=1e-6, err_msg=key)
    assert 0 < accuracy < 1 and metrics["accuracy"] == accuracy


def assert_gradients(name, loss, grads):
    """Asserts that gradients by path are those of the other side's `loss`."""
    leaves = theirs(name)[0]
    assert grads.keys() == leaves.keys()
    wanted = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, materialize_grads=True
    )
    wanted = dict(zip(leaves, (x.numpy() for x in wanted), strict=True))
    whole = np.sqrt(sum(np.vdot(x, x) for x in wanted.values()))
    for path, grad in grads.items():
        size, error = (np.linalg.norm(x) for x in (wanted[path], grad - wanted[path]))
        # Biases of keys add the same to all logits of a softmax: nothing depends on them.
        idle = path.endswith("key/bias")
        assert error <= (1e-6 * whole if idle else 1e-5 * size), f"{path}: {error:.1e}"
        assert not idle or size < 1e-12 * whole


# --- equal to it ---------------------------------------------------------------------


def pulled_back(loss, params, batch, key, cotangents):
    """Loss by name, "total" among them, and the gradients of their weighted sum."""

    def each(params):
        total, metrics = loss(params, batch, key)
        return {name: metrics[name] for name in WEIGHTS} | {"total": total}, metrics

    values, back, metrics = jax.vjp(each, params, has_aux=True)
    return values["total"], metrics, back(cotangents)[0]


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 2)])
def test_each_loss_and_their_sum_with_all_gradients_equal_the_method_in_pytorch(
    devices, fsdp
):
    params, loss = ours("all")
    mesh = mesh_of(devices, fsdp)
    batch = sharding.place_batch(BATCH, sharding.local_rows(8, mesh), 8, mesh)
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    run = quick_jit(functools.partial(pulled_back, loss))
    wanted = theirs("all")[1] | {"total": total("all")}
    for name, own in wanted.items():
        chosen = dict.fromkeys(wanted, 0.0) | {name: 1.0}
        chosen = {k: np.float32(v) for k, v in chosen.items()}
        value, metrics, grads = run(placed, batch, KEY, chosen)
        assert_gradients("all", own, arrays(grads))
    assert_values("all", metrics)
    np.testing.assert_allclose(metrics["temperature"], 1 / 7, rtol=1e-6)
    np.testing.assert_allclose(value, total("all").item(), rtol=1e-6)


def test_without_pgu_and_interaction_the_losses_equal_the_method_in_pytorch():
    params, loss = ours("plain")
    assert not any(x in params for x in ("pgu", "part_classifiers", "interaction"))
    value, metrics = quick_jit(loss)(params, BATCH, KEY)
    assert_values("plain", metrics)
    np.testing.assert_allclose(value, total("plain").item(), rtol=1e-6)


# --- weights, parts and draws --------------------------------------------------------

# What each loss pays for. The two towers and their summaries are always there.
PAYS = {
    "identity": {"classify"},
    "ranking": {"ranking"},
    "pgu": {"image_parts", "text_parts", "classify_parts", "ranking"},
    "sdm": {"sdm"},
    "contrastive": {"contrastive"},
    "mlm": {"mask_tokens", "cross_mlm_logits"},
}


@pytest.mark.parametrize("name", PAYS)
def test_a_loss_alone_is_reported_alone_and_nothing_else_is_computed(name, monkeypatch):
    model, params = build(**ALL)
    called = set()

    def spy(place, function):
        inner = getattr(place, function)

        def counting(*args, **kwargs):
            called.add(function)
            return inner(*args, **kwargs)

        monkeypatch.setattr(place, function, counting)

    for function in set().union(*PAYS.values()):
        places = (masking, losses, unipt.DualEncoder)
        spy(next(x for x in places if hasattr(x, function)), function)
    loss = objective(model, {name: 0.5})
    batch = {k: jnp.asarray(v) for k, v in BATCH.items()}
    metrics = jax.eval_shape(loss, params, batch, KEY)[1]
    more = {"accuracy"} if name == "identity" else set()
    assert set(metrics) == {name, "temperature"} | more
    assert called == PAYS[name]


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        ({}, {}, "every weight in config.loss is 0, .* give a loss that counts"),
        (dict(mlm=1.0), dict(rate=0.0), "loss.mlm alone is not and mlm.rate is 0"),
        (dict(sdm=1.0, ranking=-0.5), {}, "below 0: .*ranking=-0.5"),
        (dict(pgu=0.5), {}, "loss.pgu=0.5, but model.pgu.parts=0; .* loss.pgu=0"),
        (dict(pgu=0.5), dict(pgu=PGU), "loss.pgu=0.5, but model.identities=0"),
        (dict(identity=0.5), {}, "loss.identity=0.5 .* but model.identities=0"),
        (dict(mlm=1.0), dict(mask_id=None), "no mask token .mlm.add_mask=True"),
        (dict(mlm=1.0), dict(mlm_output="none"), "no head for it .*interaction.layers"),
    ],
)
def test_a_loss_without_its_part_is_refused(weights, changes, message):
    ours = {k: v for k, v in changes.items() if k in ("rate", "mask_id")}
    model, _ = build(**{k: v for k, v in changes.items() if k not in ours})
    with pytest.raises(UserError, match=message):
        objective(model, weights, **ours)


def test_drop_path_and_augmentation_are_on_and_the_key_alone_decides_them():
    model, params = build(image=dict(layers=2, drop_path=0.5), text=dict(layers=0))

    def run(**options):
        loss = quick_jit(objective(model, dict(sdm=1.0), **options))
        return lambda seed: float(loss(params, BATCH, jax.random.key(seed))[0])

    dropped, erased = run(), run(flips=True, shift=2, erasing=0.7)
    assert dropped(4) == dropped(4) != dropped(5)
    assert erased(4) == erased(4) != dropped(4)
