"""BERT: token ids in, token features out; and its head for masked words.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers" (NAACL 2019).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from unipt_jax.models import draws, layers


class Block(nn.Module):
    """Post-norm block: norm(x + attention(x)), norm(x + mlp(x))."""

    heads: int
    hidden: int
    dropout: float
    attention_dropout: float
    norm_eps: float
    dtype: jnp.dtype
    attention: str
    activation: str = "gelu"

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None, rows: jax.Array | None
    ) -> jax.Array:
        y = layers.Attention(
            self.heads,
            self.attention_dropout,
            self.dtype,
            self.attention,
            name="attention",
        )(x, mask, rows)
        y = draws.Dropout(self.dropout, name="dropout1")(y, rows)
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="attention_norm")(x + y)
        mlp = layers.Mlp(self.hidden, 0.0, self.dtype, self.activation, name="mlp")
        y = mlp(x, rows)
        y = draws.Dropout(self.dropout, name="dropout2")(y, rows)
        return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="mlp_norm")(x + y)


class Bert(nn.Module):
    """BERT's encoder, without its pooler. `positions` bounds the length of a text."""

    vocabulary: int
    positions: int
    features: int
    layers: int
    heads: int
    hidden: int
    dropout: float = 0.1
    attention_dropout: float = 0.1
    norm_eps: float = 1e-12
    activation: str = "gelu"
    remat: str = "none"
    attention: str = "xla"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        embed = dict(features=self.features, embedding_init=layers.embedding_init)
        self.token_embedding = nn.Embed(self.vocabulary, **embed)
        self.position_embedding = nn.Embed(self.positions, **embed)
        self.type_embedding = nn.Embed(2, **embed)
        self.embedding_norm = nn.LayerNorm(self.norm_eps, dtype=self.dtype)
        self.embedding_dropout = draws.Dropout(self.dropout)
        block = layers.rematerialised(Block, self.remat)
        fields = layers.block_fields(self)
        self.block = [block(**fields) for _ in range(self.layers)]

    def __call__(
        self, tokens: jax.Array, mask: jax.Array, rows: jax.Array | None
    ) -> jax.Array:
        """tokens: (B, L) ids. mask: (B, L), False on padding -> (B, L, D)."""
        length = tokens.shape[1]
        if length > self.positions:
            raise ValueError(
                f"texts of {length} tokens; the text tower holds {self.positions}"
            )
        x = self.token_embedding(tokens)
        # As in transformers, padding does not train its row of the table. That matters
        # only where padding takes part in the maximum, as in the released recipe.
        x = jnp.where(mask[..., None], x, jax.lax.stop_gradient(x))
        x = x + self.position_embedding(jnp.arange(length))
        x = x + self.type_embedding(jnp.zeros_like(tokens[:1]))
        x = self.embedding_dropout(self.embedding_norm(x), rows)
        for block in self.block:
            x = block(x, mask, rows)
        return x


class MlmHead(nn.Module):
    """Dense, GELU, norm, then a product with the vocabulary.

    tied: the product is with the token embedding, as in BERT; otherwise with a kernel
    of its own, as in the released UniPT code.
    """

    vocabulary: int
    tied: bool = True
    norm_eps: float = 1e-12
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """x: (..., D) features. embedding: (V, D) -> (..., V) logits in float32."""
        d = x.shape[-1]
        x = layers.Dense(d, dtype=self.dtype, name="dense")(x)
        x = layers.gelu(x)
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(x)
        if self.tied:
            kernel = embedding.T
        else:
            shape = (d, self.vocabulary)
            kernel = self.param("kernel", layers.kernel_init, shape, jnp.float32)
        bias = self.param(
            "bias", nn.initializers.zeros, (self.vocabulary,), jnp.float32
        )
        return layers.product(x.astype(self.dtype), kernel, jnp.float32) + bias
