"""Losses: pure functions of arrays, in float32, each over the whole (global) batch."""

import jax
import jax.numpy as jnp

REDUCTIONS = ("sum", "mean")


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


def sigmoid(
    image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    """Each of the B x B pairs a question by itself: do the two belong together?

    Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (ICCV 2023), algorithm 1:
    the logistic losses of all pairs, added, by the number of images.

    image, text: (B, P) unit vectors, row i of one belongs to row i of the other. scale:
    what cosines are multiplied by (SigLIP starts at 10). bias: added then (-10).
    """
    cosine = jnp.matmul(image, text.T, preferred_element_type=jnp.float32)
    logits = scale * cosine + bias
    right = jnp.eye(len(image), dtype=bool)
    return jax.nn.softplus(jnp.where(right, -logits, logits)).sum() / len(image)


def ranking(
    key: jax.Array,
    image: jax.Array,
    text: jax.Array,
    ids: jax.Array,
    *,
    margin: float,
    reduction: str = "sum",
) -> jax.Array:
    """Hinge loss in both directions against one random semi-hard negative each.

    The anchor's positive is its own pair; its negative is drawn among those of another
    identity whose hinge, margin + negative - positive, lies between 0 and the margin
    (UniPT, section 3.3; Faghri et al., "VSE++", for the hinge; Schroff et al.,
    "FaceNet", for semi-hard). An anchor without such a negative adds nothing.

    key: of the draw. image, text: (B, P) unit vectors, row i of one belongs to row i of
    the other. ids: (B,) identities. reduction: "sum" or "mean" over the B anchors; both
    directions are added. Returns a scalar in float32.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction '{reduction}' is not one of sum, mean")
    similarity = jnp.matmul(image, text.T, preferred_element_type=jnp.float32)
    positive = jnp.diagonal(similarity)[:, None]
    other = ids[:, None] != ids[None, :]

    def one_way(key: jax.Array, negative: jax.Array) -> jax.Array:
        hinge = margin + negative - positive  # (B, B): anchors down, negatives across
        candidate = other & (hinge > 0) & (hinge < margin)
        lot = jax.random.uniform(key, hinge.shape)
        drawn = jnp.argmax(jnp.where(candidate, lot, -1.0), axis=1)
        taken = jnp.take_along_axis(hinge, drawn[:, None], axis=1)[:, 0]
        return jnp.where(candidate.any(axis=1), taken, 0.0)

    to_text, to_image = jax.random.split(key)
    losses = one_way(to_text, similarity) + one_way(to_image, similarity.T)
    return losses.sum() if reduction == "sum" else losses.mean()


def sdm(
    image: jax.Array,
    text: jax.Array,
    ids: jax.Array,
    scale: jax.Array,
    *,
    eps: float = 1e-8,
) -> jax.Array:
    """Similarity distribution matching, in both directions, added (IRRA, Eq. 4 to 6).

    KL(p || q), meant over the batch: p is the softmax of a row's scaled cosines, q
    shares 1 alike among those of the same identity.

    image, text: (B, P) unit vectors. ids: (B,) identities. scale: one over the
    temperature (IRRA: 0.02). eps: added to q. Source: Jiang and Ye, "Cross-Modal
    Implicit Relation Reasoning and Aligning" (CVPR 2023).
    """
    logits = scale * jnp.matmul(image, text.T, preferred_element_type=jnp.float32)
    same = (ids[:, None] == ids[None, :]).astype(jnp.float32)
    wanted = jnp.log(same / same.sum(axis=1, keepdims=True) + eps)

    def one_way(logits: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(logits, axis=1)
        return jnp.sum(jnp.exp(log_p) * (log_p - wanted), axis=1).mean()

    return one_way(logits) + one_way(logits.T)


def surprise(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """(..., C) float32 logits, (...,) class numbers -> (...,) softmax cross-entropies."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def mean_of(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The sum of losses by the sum of weights; 0 where every weight is 0."""
    return values.sum() / jnp.maximum(weights.sum(), 1)


def cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array):
    """Softmax cross-entropy, averaged over the places whose weight is not 0.

    logits: (..., C) float32. targets: (...,) class numbers. weights: (...,) 0 or 1.
    Returns a scalar; 0 where every weight is 0.
    """
    return mean_of(surprise(logits, targets) * weights, weights)
