"""Learning rates and AdamW: gradients in, new parameters out, with groups by path."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from unipt_jax import tree

# Biases and normalisation take no weight decay (METHOD.md, section 2); nor does a
# temperature. Everything else does.
DECAY = (
    (r"(bias|scale|log_scale)$", 0.0),
    ("", 1.0),
)


def make_schedule(
    *, peak: float, warmup: int, total: int, decay: str = "linear"
) -> Callable[[jax.Array], jax.Array]:
    """Learning rate by step: up to `peak` over `warmup` steps, then down to 0.

    decay: "linear", "cosine", or "constant" after the warm-up. Step 0 has peak /
    warmup, so that no update is lost.
    """
    if decay not in ("linear", "cosine", "constant"):
        raise ValueError(f"decay '{decay}' is not one of linear, cosine, constant")

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        up = (step + 1) / max(warmup, 1)
        part = jnp.clip((step - warmup) / max(total - warmup, 1), 0, 1)
        down = {
            "linear": 1 - part,
            "cosine": (1 + jnp.cos(jnp.pi * part)) / 2,
            "constant": jnp.ones_like(part),
        }[decay]
        return jnp.float32(peak) * jnp.where(step < warmup, up, down)

    return schedule


@flax.struct.dataclass
class TrainState:
    """All that an update reads and writes.

    step: updates completed. bad_step: the first step whose loss or gradient was not
    finite, -1 while there was none.
    """

    step: jax.Array
    params: Any
    moments: Any
    bad_step: jax.Array


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """AdamW with decoupled weight decay, gradient clipping and groups by path.

    groups: (pattern, factor): the first pattern found in a parameter's path gives the
    factor on its learning rate. clip: the largest norm of the whole gradient; 0: none.
    """

    schedule: Callable[[jax.Array], jax.Array]
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: float = 0.0
    groups: Sequence[tuple[str, float]] = (("", 1.0),)

    def _transform(self, params: Any) -> optax.GradientTransformation:
        decay = jax.tree.map(bool, tree.assign(params, DECAY))
        return optax.chain(
            optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
            optax.scale_by_adam(*self.betas, self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=decay),
        )

    def init(self, params: Any) -> TrainState:
        """The state before the first update."""
        return TrainState(
            step=jnp.int32(0),
            params=params,
            moments=self._transform(params).init(params),
            bad_step=jnp.int32(-1),
        )

    def update(
        self, state: TrainState, loss: jax.Array, grads: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update, withheld from the first loss or gradient on that is not finite.

        Returns the new state and {"lr", "gradient_norm"}.
        """
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        good = finite & (state.bad_step < 0)
        updates, moments = self._transform(state.params).update(
            grads, state.moments, state.params
        )
        lr = self.schedule(state.step)
        factors = tree.assign(state.params, self.groups)
        params = jax.tree.map(
            lambda p, u, f: p - (lr * f) * u, state.params, updates, factors
        )
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(good, new, old),
            (params, moments),
            (state.params, state.moments),
        )
        first_bad = ~finite & (state.bad_step < 0)
        bad_step = jnp.where(first_bad, state.step, state.bad_step)
        new = TrainState(state.step + 1, params, moments, bad_step)
        return new, {"lr": lr, "gradient_norm": norm}
