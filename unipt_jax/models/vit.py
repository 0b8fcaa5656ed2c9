"""Vision Transformer: normalised pixels in, token features out.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021); DeiT's distillation
token from Touvron et al. (ICML 2021); CLIP's variant from Radford et al. (ICML 2021).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from unipt_jax.errors import UserError
from unipt_jax.models import draws, layers


class ViT(nn.Module):
    """ViT at any height x width that the patch divides.

    height, width, patch: in pixels. distillation: adds DeiT's second token, after the
    class token. Positions are learned for exactly this grid; other grids are resized
    when weights are loaded. drop_path: the last block's rate; it rises from 0 in the
    first block, block by block. CLIP's image tower is the one with activation "quick_gelu",
    pre_norm (a norm between the positions and the first block) and no patch_bias.
    """

    height: int
    width: int
    patch: tuple[int, int]
    features: int
    layers: int
    heads: int
    hidden: int
    distillation: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    norm_eps: float = 1e-12
    activation: str = "gelu"
    pre_norm: bool = False
    patch_bias: bool = True
    remat: str = "none"
    attention: str = "xla"
    dtype: jnp.dtype = jnp.float32

    @property
    def prefix(self) -> int:
        """Tokens before the first patch: the class token, and the distillation one."""
        return 2 if self.distillation else 1

    @nn.compact
    def __call__(self, pixels: jax.Array, rows: jax.Array | None) -> jax.Array:
        """pixels: (B, H, W, 3), normalised -> (B, N, D), N = prefix + patches."""
        b, h, w, _ = pixels.shape
        if (h, w) != (self.height, self.width):
            raise ValueError(
                f"images are {h}x{w}, the image tower expects {self.height}x{self.width}"
            )
        if not 0 <= self.drop_path < 1:
            raise UserError(
                f"image.drop_path={self.drop_path} must be at least 0 and less than 1"
            )
        x = self._patches(pixels.astype(self.dtype))
        tokens = [self.param("class_token", nn.initializers.zeros, (1, 1, x.shape[-1]))]
        if self.distillation:
            tokens.append(
                self.param("distillation_token", nn.initializers.zeros, tokens[0].shape)
            )
        tokens = jnp.concatenate(tokens, 1).astype(self.dtype)
        tokens = jnp.broadcast_to(tokens, (b, *tokens.shape[1:]))
        x = jnp.concatenate([tokens, x], axis=1)
        positions = self.param(
            "position_embedding", layers.embedding_init, x.shape[1:], jnp.float32
        )
        x = x + positions.astype(self.dtype)
        x = draws.Dropout(self.dropout, name="dropout")(x, rows)
        if self.pre_norm:
            x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="pre_norm")(x)
        block = layers.rematerialised(layers.PreNormBlock, self.remat)
        for i in range(self.layers):
            fields = layers.block_fields(self)
            fields["drop_path"] = self.drop_path * i / max(self.layers - 1, 1)
            x = block(**fields, name=f"block_{i}")(x, None, rows)
        return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(x)

    def _patches(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, N, D): a convolution with stride = size, as a product."""
        b, h, w, c = x.shape
        ph, pw = self.patch
        if h % ph or w % pw:
            raise ValueError(f"patches of {ph}x{pw} do not divide images of {h}x{w}")
        x = x.reshape(b, h // ph, ph, w // pw, pw, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, (h // ph) * (w // pw), ph * pw * c)
        return layers.Dense(
            self.features,
            use_bias=self.patch_bias,
            dtype=self.dtype,
            name="patch_embedding",
        )(x)
