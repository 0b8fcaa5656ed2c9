"""Learning rates and AdamW: gradients in, new parameters out, with groups by path."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from unipt_jax import tree

# Biases and normalisation take no weight decay, as in BERT and the released code; nor
# does a temperature. Everything else does.
DECAY = (
    (r"(bias|scale|log_scale)$", 0.0),
    ("", 1.0),
)


DECAYS = ("linear", "cosine", "constant", "steps")


def make_schedule(
    *,
    peak: float,
    warmup: int,
    total: int,
    decay: str = "linear",
    drops: Sequence[int] = (),
    factor: float = 0.1,
) -> Callable[[jax.Array], jax.Array]:
    """Learning rate by step: up to `peak` over `warmup` steps, then down.

    decay: after the warm-up, "linear" or "cosine" to 0, "constant", or in "steps": times
    `factor` from each of the steps `drops` on. Step 0 has peak / warmup, so that no
    update is lost.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay '{decay}' is not one of {', '.join(DECAYS)}")

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        up = (step + 1) / max(warmup, 1)
        part = jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)
        dropped = sum((step >= drop).astype(jnp.float32) for drop in drops)
        down = {
            "steps": jnp.float32(factor) ** dropped,
            "linear": 1 - part,
            "cosine": (1 + jnp.cos(jnp.pi * part)) / 2,
            "constant": jnp.ones_like(part),
        }[decay]
        return jnp.float32(peak) * jnp.where(step < warmup, up, down)

    return schedule


@flax.struct.dataclass
class TrainState:
    """All that an update reads and writes.

    step: updates completed. mean, square: Adam's two moments, as the parameters are.
    bad_step: the first step whose loss or gradient was not finite, -1 while there was
    none.
    """

    step: jax.Array
    params: Any
    mean: Any
    square: Any
    bad_step: jax.Array


def global_norm(values: Any) -> jax.Array:
    """The length of all leaves as one vector, in float32.

    By dot products, which XLA does in parallel on CPUs too; its plain sums are serial.
    """
    squares = [jnp.vdot(x, x) for x in jax.tree.leaves(values)]
    return jnp.sqrt(sum(squares))


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """AdamW with decoupled weight decay, gradient clipping and groups by path.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019), as
    `optax.adamw` has it, in two passes over memory: with optax, XLA computes the moments
    anew for the parameters, and a CPU takes five times as long (`benchmarks.train_step`
    shows the whole step).

    groups: (pattern, factor): the first pattern found in a parameter's path gives the
    factor on its learning rate. clip: the largest norm of the whole gradient; 0: none.
    decoupled: the weight decay is AdamW's; else it is added to the clipped gradient, as
    `torch.optim.Adam` does.
    """

    schedule: Callable[[jax.Array], jax.Array]
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 0.0
    groups: Sequence[tuple[str, float]] = (("", 1.0),)
    decoupled: bool = True

    def init(self, params: Any) -> TrainState:
        """The state before the first update."""
        return TrainState(
            step=jnp.int32(0),
            params=params,
            mean=jax.tree.map(jnp.zeros_like, params),
            square=jax.tree.map(jnp.zeros_like, params),
            bad_step=jnp.int32(-1),
        )

    def update(
        self, state: TrainState, loss: jax.Array, grads: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update, withheld from the first loss or gradient on that is not finite.

        Returns the new state and {"lr", "gradient_norm"}.
        """
        norm = global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        good = finite & (state.bad_step < 0)
        shrink = jnp.minimum(1.0, self.clip / norm) if self.clip else jnp.float32(1.0)
        decays = tree.assign(state.params, DECAY)
        if not self.decoupled:  # added to the clipped gradient

            def add(g: jax.Array, p: jax.Array, decay: float) -> jax.Array:
                return shrink * g + self.weight_decay * decay * p

            grads = jax.tree.map(add, grads, state.params, decays)
            shrink = jnp.float32(1.0)
        b1, b2 = self.betas

        def mean(m: jax.Array, g: jax.Array) -> jax.Array:
            return jnp.where(good, b1 * m + ((1 - b1) * shrink) * g, m)

        def square(v: jax.Array, g: jax.Array) -> jax.Array:
            # In this order: a plain g * g would be shared with the norm, and stored.
            return jnp.where(good, b2 * v + ((1 - b2) * shrink**2 * g) * g, v)

        means = jax.tree.map(mean, state.mean, grads)
        squares = jax.tree.map(square, state.square, grads)
        # Without the barrier XLA would compute both again for the parameters.
        means, squares = jax.lax.optimization_barrier((means, squares))
        lr = self.schedule(state.step)
        count = (state.step + 1).astype(jnp.float32)
        unbias1, unbias2 = 1 / (1 - b1**count), 1 / (1 - b2**count)

        def move(p: jax.Array, m: jax.Array, v: jax.Array, factor: float, decay: float):
            towards = m * unbias1 / (jnp.sqrt(v * unbias2) + self.eps)
            if self.decoupled:
                towards = towards + self.weight_decay * decay * p
            step = lr * factor * towards
            return jnp.where(good, p - step, p)

        factors = tree.assign(state.params, self.groups)
        params = jax.tree.map(move, state.params, means, squares, factors, decays)
        first_bad = ~finite & (state.bad_step < 0)
        bad_step = jnp.where(first_bad, state.step, state.bad_step)
        new = TrainState(state.step + 1, params, means, squares, bad_step)
        return new, {"lr": lr, "gradient_norm": norm}
