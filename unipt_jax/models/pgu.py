"""Prototype-based granularity unification: token features in, features of parts out.

Shao et al., "Learning Granularity-Unified Representations for Text-to-Image Person
Re-identification" (ACM MM 2022), which UniPT's fine-tuning builds on: the same few learned
queries read the tokens of either tower, so part i means the same thing in both.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from unipt_jax.models import layers


class PartClassifiers(nn.Module):
    """A linear classifier of identities for each part, in float32."""

    identities: int

    @nn.compact
    def __call__(self, parts: jax.Array) -> jax.Array:
        """parts: (B, parts, F) -> (B, parts, identities) logits."""
        _, q, f = parts.shape
        shape = (q, f, self.identities)
        kernel = self.param("kernel", layers.classifier_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (q, self.identities))
        parts = parts.astype(jnp.float32)
        return jnp.einsum("bqf,qfc->bqc", parts, kernel) + bias


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x), tokens), then x + mlp(norm(x)), with ReLU."""

    heads: int
    head_width: int
    hidden: int
    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: jax.Array, mask: jax.Array | None
    ) -> jax.Array:
        """x: (B, Q, D). tokens: (B, S, D). mask: (B, S) -> (B, Q, D)."""
        norm = dict(epsilon=self.norm_eps, dtype=self.dtype)
        read = layers.CrossAttention(
            self.heads, self.head_width, self.dtype, name="attention"
        )
        x = x + read(nn.LayerNorm(name="norm1", **norm)(x), tokens, mask)
        mlp = layers.Mlp(self.hidden, 0.0, self.dtype, "relu", name="mlp")
        return x + mlp(nn.LayerNorm(name="norm2", **norm)(x), None)


class Pgu(nn.Module):
    """Learned queries, cross-attention blocks, and a projection for each part.

    parts: queries, and so features out. layers, heads, head_width, hidden: of the
    blocks. features: width of a part's feature. tokens: what is read, "projected"
    tokens (after the projection to the shared width) or those of the "tower" itself,
    which asks for two towers of one width.
    """

    parts: int
    layers: int
    heads: int
    head_width: int
    hidden: int
    features: int
    tokens: str = "projected"
    norm_eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
        """tokens: (B, S, D). mask: (B, S), False on padding -> (B, parts, features)."""
        b, _, d = tokens.shape
        shape = (self.parts, d)
        queries = self.param("queries", layers.embedding_init, shape, jnp.float32)
        x = jnp.broadcast_to(queries.astype(self.dtype), (b, *shape))
        for i in range(self.layers):
            x = Block(
                self.heads,
                self.head_width,
                self.hidden,
                self.norm_eps,
                self.dtype,
                name=f"block_{i}",
            )(x, tokens, mask)
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(x)
        shape = (self.parts, d, self.features)
        kernels = self.param(
            "part_projection", nn.initializers.lecun_normal(), shape, jnp.float32
        )
        kernels = kernels.astype(self.dtype)
        return jnp.einsum("bqd,qdf->bqf", x, kernels)  # each part by its own kernel
