"""Claims on the schedule, AdamW and Adam, by hand and against torch.optim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import arrays, build, quick_jit

from configs import finetune
from unipt_jax import loop, optim, tree

# Independently of the source: what the method says takes no decay.
UNDECAYED = {"text/fc1/bias", "image/norm/scale", "image/norm/bias", "log_scale"}
SHAPES = {
    "image/fc1/kernel": (3, 4),
    "image/norm/bias": (4,),
    "image/norm/scale": (4,),
    "log_scale": (),
    "text/fc1/bias": (5,),
    "text/fc1/kernel": (2, 5),
}


def nested(flat):
    """{"a/b": x} -> {"a": {"b": x}}."""
    out = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = out
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return out


def draw(seed, size=1.0):
    rng = np.random.default_rng(seed)
    return {
        path: np.asarray(size * rng.standard_normal(shape), np.float32)
        for path, shape in SHAPES.items()
    }


def by_torch(params, grads, rates, *, factors, betas, eps, weight_decay, clip):
    """Ten updates of torch.optim.AdamW in float64, one group a parameter."""
    torch = pytest.importorskip("torch")
    leaves = {k: torch.tensor(v, dtype=torch.float64) for k, v in params.items()}
    groups = [
        dict(params=[leaf], weight_decay=0.0 if k in UNDECAYED else weight_decay)
        for k, leaf in leaves.items()
    ]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=eps)
    for rate, grad in zip(rates, grads, strict=True):
        for group, (k, leaf) in zip(adam.param_groups, leaves.items(), strict=True):
            group["lr"] = rate * factors(k)
            leaf.grad = torch.tensor(grad[k], dtype=torch.float64)
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        adam.step()
    return {k: v.numpy() for k, v in leaves.items()}


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_ten_updates_equal_torch_adamw_with_groups_decay_and_clipping(clip):
    rates = [
        0.01 * x for x in (1 / 3, 2 / 3, 1, 1, 6 / 7, 5 / 7, 4 / 7, 3 / 7, 2 / 7, 1 / 7)
    ]
    # Gradients of very different sizes: some are clipped, some are not.
    sizes = np.geomspace(0.02, 5, 10)
    grads = [draw(i + 1, size) for i, size in enumerate(sizes)]
    settings = dict(betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, clip=clip)
    optimiser = optim.Optimiser(
        optim.make_schedule(peak=0.01, warmup=3, total=10),
        groups=[("^text/", 0.1), ("norm", 3.0), ("", 1.0)],
        **settings,
    )

    def factors(path):
        return 0.1 if path.startswith("text/") else 3.0 if "norm" in path else 1.0

    state = optimiser.init(nested(draw(0)))
    update = quick_jit(optimiser.update)
    for i, grad in enumerate(grads):
        state, metrics = update(state, jnp.float32(1), nested(grad))
        np.testing.assert_allclose(metrics["lr"], rates[i], rtol=1e-6)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grad.values()))
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-6)
    assert (state.step, state.bad_step) == (10, -1)
    expected = by_torch(draw(0), grads, rates, factors=factors, **settings)
    for path, leaf in arrays(state.params).items():
        assert leaf.dtype == np.float32
        # 10 roundings of numbers of size 1 to 2^-24.
        np.testing.assert_allclose(leaf, expected[path], rtol=0, atol=1e-6)


def test_of_a_real_model_vectors_and_scalars_take_no_decay_and_all_else_does():
    _, params = build(temperature="learned", mlm_output="untied")
    decay = tree.flatten(tree.assign(params, optim.DECAY))
    for path, leaf in tree.flatten(params).items():
        assert decay[path] == (leaf.ndim > 1), path


LINEAR = [0.25, 0.5, 0.75, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0, 0]
COSINE = [
    *(0.25, 0.5, 0.75, 1, 1),
    *((1 + np.cos(np.pi * k / 8)) / 2 for k in range(1, 8)),
    *(0, 0),
]
CONSTANT = [0.25, 0.5, 0.75] + [1] * 11


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("linear", LINEAR), ("cosine", COSINE), ("constant", CONSTANT)],
)
def test_schedule_by_hand_4_of_12_steps_warm_up(decay, expected):
    schedule = optim.make_schedule(peak=3e-4, warmup=4, total=12, decay=decay)
    rates = [float(schedule(jnp.int32(step))) for step in range(14)]
    np.testing.assert_allclose(rates, 3e-4 * np.array(expected), rtol=1e-6, atol=1e-11)


def test_schedule_without_warm_up_starts_at_the_peak():
    schedule = optim.make_schedule(peak=2.0, warmup=0, total=4)
    rates = [float(schedule(step)) for step in range(5)]
    assert rates == [2, 1.5, 1, 0.5, 0]


def test_a_schedule_of_warm_up_alone_ends_at_the_peak():
    schedule = optim.make_schedule(peak=2.0, warmup=4, total=4)
    assert [float(schedule(step)) for step in range(4)] == [0.5, 1, 1.5, 2]


def test_an_unknown_decay_is_named():
    with pytest.raises(ValueError, match="decay 'exp' is not one of linear, cosine"):
        optim.make_schedule(peak=1, warmup=1, total=2, decay="exp")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_from_the_first_value_that_is_not_finite_updates_are_withheld(where, value):
    optimiser = optim.Optimiser(lambda _: jnp.float32(0.1), clip=1.0)
    update = quick_jit(optimiser.update)
    state, _ = update(optimiser.init(nested(draw(0))), 1.0, nested(draw(1)))
    good = state
    assert not np.array_equal(
        arrays(good.params)["text/fc1/bias"], draw(0)["text/fc1/bias"]
    )
    bad = draw(2)
    if where == "gradient":
        bad["text/fc1/bias"][3] = value
    loss = value if where == "loss" else 1.0
    # The bad one, two good ones, another bad one.
    for step, grad in enumerate((bad, draw(3), draw(4), bad), start=2):
        state, _ = update(state, loss if grad is bad else 1.0, nested(grad))
        assert (state.step, state.bad_step) == (step, 1)
        same = state.replace(step=good.step, bad_step=good.bad_step)
        jax.tree.map(np.testing.assert_array_equal, good, same)


def test_a_bad_first_step_is_remembered_as_step_0():
    optimiser = optim.Optimiser(lambda _: jnp.float32(0.1))
    state = optimiser.init(nested(draw(0)))
    state, _ = quick_jit(optimiser.update)(state, np.nan, nested(draw(1)))
    assert (state.step, state.bad_step) == (1, 0)


def test_a_group_that_matches_no_parameter_is_an_error():
    groups = [("^pgu/", 10.0), ("", 1.0)]
    optimiser = optim.Optimiser(lambda _: jnp.float32(0.1), groups=groups)
    state = optimiser.init(nested(draw(0)))
    with pytest.raises(ValueError, match=r"nothing matched by \['\^pgu/'\]"):
        optimiser.update(state, jnp.float32(1), nested(draw(1)))


def test_a_parameter_without_a_group_is_an_error():
    groups = [("^text/", 10.0)]
    optimiser = optim.Optimiser(lambda _: jnp.float32(0.1), groups=groups)
    state = optimiser.init(nested(draw(0)))
    with pytest.raises(ValueError, match="no rule for .*image/fc1/kernel"):
        optimiser.update(state, jnp.float32(1), nested(draw(1)))


def test_20_updates_equal_torch_adam_with_l2_groups_a_large_eps_and_clipping():
    torch = pytest.importorskip("torch")
    settings = dict(betas=(0.9, 0.999), eps=1e-3, weight_decay=0.05)
    rates = [0.01] * 8 + [0.001] * 12
    grads = [draw(i + 1, size) for i, size in enumerate(np.geomspace(0.02, 5, 20))]
    optimiser = optim.Optimiser(
        optim.make_schedule(peak=0.01, warmup=0, total=20, decay="steps", drops=(8,)),
        groups=[("kernel$", 5.0), ("bias$", 2.0), ("", 1.0)],
        decoupled=False,
        clip=1.0,
        **settings,
    )
    factors = {"kernel": 5.0, "bias": 2.0}
    leaves = {k: torch.tensor(v, dtype=torch.float64) for k, v in draw(0).items()}
    adam = torch.optim.Adam(
        [
            dict(params=[leaf]) | (dict(weight_decay=0.0) if k in UNDECAYED else {})
            for k, leaf in leaves.items()
        ],
        **settings,
    )
    state, update = optimiser.init(nested(draw(0))), quick_jit(optimiser.update)
    for rate, grad in zip(rates, grads, strict=True):
        for group, (k, leaf) in zip(adam.param_groups, leaves.items(), strict=True):
            group["lr"] = rate * factors.get(k.split("/")[-1], 1.0)
            leaf.grad = torch.tensor(grad[k], dtype=torch.float64)
        norm = torch.nn.utils.clip_grad_norm_(leaves.values(), 1.0)
        adam.step()
        state, metrics = update(state, jnp.float32(1), nested(grad))
        np.testing.assert_allclose(metrics["lr"], rate, rtol=1e-6)
        np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-6)
    for path, leaf in arrays(state.params).items():
        # 1 - 0.999^count is off by up to 6e-5 of itself in float32, and so the first of
        # the steps, of up to 0.05 each, by 3e-5 of theirs.
        np.testing.assert_allclose(leaf, leaves[path], rtol=0, atol=5e-6, err_msg=path)


@pytest.mark.parametrize(
    ("drops", "expected"),
    [
        ((6, 9, 9), [0.25, 0.5, 0.75, 1, 1, 1, 0.2, 0.2, 0.2, 0.008, 0.008]),
        ((2, 4), [0.25, 0.5, 0.75, 1] + [0.04] * 7),  # one falls into the warm-up
        ((), [0.25, 0.5, 0.75] + [1] * 8),
    ],
)
def test_a_schedule_in_steps_by_hand_4_of_them_warm_up(drops, expected):
    schedule = optim.make_schedule(
        peak=3e-4, warmup=4, total=11, decay="steps", drops=drops, factor=0.2
    )
    rates = [float(schedule(jnp.int32(step))) for step in range(11)]
    np.testing.assert_allclose(rates, 3e-4 * np.array(expected), rtol=1e-6)


def test_the_paper_drops_its_rate_after_20_40_and_50_of_60_epochs():
    config = finetune.get_config("cuhk_pedes")
    schedule = loop.make_optimiser(config, steps=60 * 7).schedule
    rates = [float(schedule(epoch * 7 + at)) for epoch in range(60) for at in (0, 6)]
    expected = [1e-4] * 40 + [1e-5] * 40 + [1e-6] * 20 + [1e-7] * 20
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
