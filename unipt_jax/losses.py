"""Losses: pure functions of arrays, in float32, each over the whole (global) batch."""

import jax
import jax.numpy as jnp


def contrastive(image: jax.Array, text: jax.Array, scale: jax.Array) -> jax.Array:
    """InfoNCE over the batch in both directions, averaged (UniPT Eq. 1; CLIP's loss).

    image, text: (B, P) unit vectors, row i of one belongs to row i of the other.
    scale: what cosines are multiplied by, one over temperature. Returns a scalar; at
    chance it is log(B).
    """
    logits = scale * jnp.matmul(image, text.T, preferred_element_type=jnp.float32)
    right = jnp.diagonal(logits)
    to_text = jax.nn.logsumexp(logits, axis=1) - right
    to_image = jax.nn.logsumexp(logits, axis=0) - right
    return (to_text.mean() + to_image.mean()) / 2


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array):
    """Softmax cross-entropy, averaged over the places whose weight is not 0.

    logits: (..., C) float32. targets: (...,) class numbers. weights: (...,) 0 or 1.
    Returns a scalar; 0 where every weight is 0.
    """
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.sum(losses * weights) / jnp.maximum(weights.sum(), 1)
