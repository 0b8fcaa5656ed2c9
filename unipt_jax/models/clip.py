"""CLIP's text tower: token ids in, token features out. Its image tower is `vit.ViT`.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(ICML 2021).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from unipt_jax.models import draws, layers


class ClipText(nn.Module):
    """A causal transformer of pre-norm blocks, with a norm after the last.

    `positions` bounds the length of a text (CLIP: 77). A token sees itself and what
    comes before it, so only the end-of-text token has seen a whole sentence.
    """

    vocabulary: int
    positions: int
    features: int
    layers: int
    heads: int
    hidden: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    norm_eps: float = 1e-5
    activation: str = "quick_gelu"
    remat: str = "none"
    attention: str = "xla"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        embed = dict(features=self.features, embedding_init=layers.embedding_init)
        self.token_embedding = nn.Embed(self.vocabulary, **embed)
        self.position_embedding = nn.Embed(self.positions, **embed)
        self.embedding_dropout = draws.Dropout(self.dropout)
        block = layers.rematerialised(layers.PreNormBlock, self.remat)
        fields = layers.block_fields(self)
        self.block = [block(**fields, causal=True) for _ in range(self.layers)]
        self.norm = nn.LayerNorm(self.norm_eps, dtype=self.dtype)

    def __call__(
        self, tokens: jax.Array, mask: jax.Array, rows: jax.Array | None
    ) -> jax.Array:
        """tokens: (B, L) ids. mask: (B, L), False on padding -> (B, L, D)."""
        length = tokens.shape[1]
        if length > self.positions:
            raise ValueError(
                f"texts of {length} tokens; the text tower holds {self.positions}"
            )
        x = self.token_embedding(tokens) + self.position_embedding(jnp.arange(length))
        x = self.embedding_dropout(x.astype(self.dtype), rows)
        for block in self.block:
            x = block(x, mask, rows)
        return self.norm(x)
