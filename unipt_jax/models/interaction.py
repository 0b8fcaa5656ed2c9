"""Cross-modal interaction: text tokens that read the image's, for masked words.

Jiang and Ye, "Cross-Modal Implicit Relation Reasoning and Aligning for Text-to-Image
Person Retrieval" (CVPR 2023), section 3.2: only training needs it.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from unipt_jax.models import layers


class Interaction(nn.Module):
    """One cross-attention from text to image, then blocks of self-attention.

    layers: blocks after the cross-attention, 4 in IRRA. heads: of both, 8 in IRRA.
    """

    layers: int
    heads: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, text: jax.Array, image: jax.Array, mask: jax.Array, rows: jax.Array | None
    ) -> jax.Array:
        """text: (B, L, P). image: (B, N, P). mask: (B, L), False on padding.

        Returns (B, L, P): what each word can be guessed from.
        """
        width = text.shape[-1]
        norm = dict(epsilon=self.norm_eps, dtype=self.dtype)
        x = layers.CrossAttention(
            self.heads, width // self.heads, self.dtype, name="cross_attention"
        )(
            nn.LayerNorm(name="text_norm", **norm)(text),
            nn.LayerNorm(name="image_norm", **norm)(image),
            None,
        )
        for i in range(self.layers):
            x = layers.PreNormBlock(
                heads=self.heads,
                hidden=4 * width,
                dropout=0.0,
                attention_dropout=0.0,
                norm_eps=self.norm_eps,
                dtype=self.dtype,
                attention="xla",
                activation=self.activation,
                name=f"block_{i}",
            )(x, mask, rows)
        return nn.LayerNorm(name="norm", **norm)(x)
