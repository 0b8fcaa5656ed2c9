"""Which attention is the fastest here: a tower and a batch in, an implementation out."""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from unipt_jax.errors import UserError
from unipt_jax.models import layers

AUTO = "auto"
# What may be tried, by platform; the first is what every tower can have.
CANDIDATES = {"gpu": ("xla", "cudnn")}


def of_towers(
    model: Mapping[str, Any], *, batch: int, longest: int
) -> dict[str, tuple[str, dict[str, float]]]:
    """What `choose` says for each tower of a config's `model` section that has "auto".

    batch: samples on one device. longest: tokens of the longest text.
    Raises UserError for a tower that has "cudnn" and cannot train with it.
    """
    for name in ("image", "text"):
        _check(name, model[name], model["dtype"])
    image = model["image"]
    grid = image["height"] // image["patch"][0] * (image["width"] // image["patch"][1])
    tokens = {"image": grid + 1 + image["distillation"], "text": longest}
    return {
        name: choose(model[name], batch=batch, tokens=n, dtype=model["dtype"])
        for name, n in tokens.items()
        if model[name]["attention"] == AUTO
    }


def _check(name: str, tower: Mapping[str, Any], dtype: str) -> None:
    dropped = tower["attention_dropout"]
    if tower["attention"] == "cudnn" and (dtype == "float32" or dropped):
        raise UserError(
            f"model.{name}.attention=cudnn with model.dtype={dtype} and "
            f"attention_dropout={dropped}: cudnn takes bfloat16, and drops no attention "
            f"weights; set model.{name}.attention=xla, or the other two after it"
        )


def candidates(tower: Mapping[str, Any], dtype: str) -> tuple[str, ...]:
    """The implementations that a tower can have on this platform.

    tower: a tower's section of a config. cudnn takes 16-bit floats alone, and does not
    drop attention weights.
    """
    every = CANDIDATES.get(jax.default_backend(), ("xla",))
    if dtype == "float32" or tower["attention_dropout"]:
        return every[:1]
    return every


def choose(
    tower: Mapping[str, Any], *, batch: int, tokens: int, dtype: str
) -> tuple[str, dict[str, float]]:
    """The fastest implementation for a tower, the same on all processes.

    batch: sequences on one device. tokens: of the longest. Where there are several
    candidates, each takes a forward and a backward pass of one layer; one that cannot
    be compiled here is left out. Returns a name, and the seconds that were measured.
    """
    names = candidates(tower, dtype)
    if len(names) == 1:
        return names[0], {}
    seconds = {}
    for name in names:
        try:
            seconds[name] = measure(pass_of(tower, name, batch, tokens, dtype))
        except Exception as error:  # whatever a driver or a compiler may say
            if name == names[0]:
                raise
            print(f"attention '{name}' does not run here: {error}", flush=True)
            seconds[name] = float("inf")
    if jax.process_count() > 1:
        seen = np.array([seconds[name] for name in names])
        shared = multihost_utils.process_allgather(seen).reshape(-1, len(names)).max(0)
        seconds = dict(zip(names, shared.tolist(), strict=True))
    return min(names, key=seconds.__getitem__), seconds


def pass_of(
    tower: Mapping[str, Any], name: str, batch: int, tokens: int, dtype: str
) -> Callable[[], Any]:
    """A forward and backward pass of one attention layer on random tokens, compiled."""
    module = layers.Attention(
        tower["heads"], 0.0, jnp.dtype(dtype), name, tower.get("kind") == "clip"
    )
    shape = (batch, tokens, tower["features"])
    x = jax.random.normal(jax.random.key(0), shape, jnp.dtype(dtype))
    mask = jnp.ones(shape[:2], bool) if "kind" in tower else None  # texts have padding
    params = jax.jit(module.init)(jax.random.key(1), x[:1], None, None)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return module.apply(params, x, mask, None).astype(jnp.float32).sum()

    run = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()
    return lambda: jax.block_until_ready(run(params, x))


def measure(run: Callable[[], Any], repeats: int = 7) -> float:
    """The median seconds of a warm run."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return median(seconds)
