"""A large batch through the towers, a part at a time, with the whole batch's gradient."""

from collections.abc import Callable
from typing import Any

import jax


def by_parts(encode: Callable, batch: Any, *, size: int, devices: int = 1) -> Any:
    """encode(batch), `size` rows at a time; 0: all at once.

    What a part computes on its way is computed again for its gradient, so that the
    activations of one part alone are ever held; the loss may then compare all rows with
    each other. Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup" (RepL4NLP 2021), by rematerialisation in place of a second loop.

    batch: arrays (B, ...), rows shared evenly by so many devices, which keep theirs in
    every part. encode: rows (b, ...) in, a tree of rows (b, ...) out, each a function of
    its own row. size: a divisor of B, and a multiple of `devices`.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if not size or size >= rows:
        return encode(batch)
    if rows % size or size % devices:
        raise ValueError(
            f"parts of {size} must divide a batch of {rows}, and be a multiple of "
            f"{devices} devices"
        )
    many, share = rows // size, size // devices

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(devices, many, share, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(many, size, *x.shape[3:])

    def join(x: jax.Array) -> jax.Array:
        x = x.reshape(many, devices, share, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(rows, *x.shape[3:])

    # A loop's body has nothing that it could be merged with.
    again = jax.checkpoint(encode, prevent_cse=False)
    return jax.tree.map(join, jax.lax.map(again, jax.tree.map(cut, batch)))
