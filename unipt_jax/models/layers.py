"""What all towers are made of: dropout, attention, MLP, and the axis letters.

Axis letters, everywhere in the package: B batch, H and W pixels (or patches), N image
tokens, L text tokens, S tokens of either, D width of a tower, F hidden width of an MLP,
A attention heads, K width of a head, P width of the shared embedding, V vocabulary,
M masked positions of a text.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

kernel_init = nn.initializers.xavier_uniform()
embedding_init = nn.initializers.normal(stddev=0.02)
# So small that all identities start alike, whatever the scale of the features.
classifier_init = nn.initializers.normal(stddev=0.001)


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes about `rate` of x and scales the rest so that the mean stays.

    x: (..., D). Draws 16 bits an element, two elements to a 32-bit word, which costs
    half of what `jax.random.bernoulli` does; the rate that is met (and scaled by) is
    the nearest multiple of 2^-16. The draw does not depend on how x is sharded.
    """
    width = x.shape[-1]
    if not 0 <= rate < 1:
        raise ValueError(f"dropout rate {rate} must be at least 0 and less than 1")
    keep = round((1 - rate) * 65536)
    if keep == 65536:
        return x
    words = jax.random.bits(key, (*x.shape[:-1], (width + 1) // 2), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16)  # (..., D/2, 2)
    draw = halves.reshape(*x.shape[:-1], -1)[..., :width]
    return jnp.where(draw < keep, x * jnp.asarray(65536 / keep, x.dtype), 0)


class Dropout(nn.Module):
    """`dropout` with a key from the "dropout" collection; identity unless training."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)


class DropPath(nn.Module):
    """Leaves a whole branch out of a sample with probability `rate`; scales the rest.

    Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """x: (B, S, D), what a residual branch adds."""
        if not train or self.rate == 0:
            return x
        keep = 1 - self.rate
        stays = jax.random.bernoulli(self.make_rng("dropout"), keep, (len(x), 1, 1))
        return jnp.where(stays, x / jnp.asarray(keep, x.dtype), 0)


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., D) @ (D, F), with its gradients as two products of matrices.

    JAX's own rule for the kernel gives a product and a transpose, for which XLA on CPUs
    copies activations.
    """
    return jnp.matmul(x, kernel)


def _product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def _product_backward(saved, g):
    x, kernel = saved
    rows, inputs = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    dx = jax.lax.dot_general(g, kernel, (((g.ndim - 1,), (1,)), ((), ())))
    return dx, jax.lax.dot_general(inputs, rows, (((0,), (0,)), ((), ())))


product.defvjp(_product_forward, _product_backward)


def _dot_general(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    # nn.Dense asks for nothing else. The name is what remat "dots" keeps.
    return checkpoint_name(product(x, kernel), "product")


class Dense(nn.Dense):
    """nn.Dense with the house's initialiser and its product."""

    kernel_init: nn.initializers.Initializer = kernel_init
    dot_general: Any = _dot_general


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of GELU: x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": functools.partial(
        jax.nn.gelu, approximate=False
    ),  # as ViT and BERT have it
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


class Attention(nn.Module):
    """Multi-head self-attention; softmax in float32.

    causal: a token attends to itself and what comes before it. implementation: "xla", or "cudnn" (16-bit floats on an NVIDIA GPU, without dropout
    on the attention weights).
    """

    heads: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    implementation: str = "xla"
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """x: (B, S, D). mask: (B, S), True where a token may be attended to."""
        b, s, d = x.shape
        split = (b, s, self.heads, d // self.heads)  # (B, S, D) -> (B, S, A, K)
        q = Dense(d, dtype=self.dtype, name="query")(x).reshape(split)
        k = Dense(d, dtype=self.dtype, name="key")(x).reshape(split)
        v = Dense(d, dtype=self.dtype, name="value")(x).reshape(split)
        if self.implementation == "xla":
            y = self._weighted(q, k, v, mask, train)
        else:
            y = self._fused(q, k, v, mask, train)
        return Dense(d, dtype=self.dtype, name="out")(y.reshape(b, s, d))

    def _weighted(self, q, k, v, mask, train):
        # One matrix product a head, heads first: XLA on CPUs does these several times
        # faster than it contracts the four axes as they come.
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))  # -> (B, A, S, K)
        q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
        k = k.swapaxes(-1, -2)
        logits = jnp.matmul(q, k, preferred_element_type=jnp.float32)  # (B, A, S, S)
        if mask is not None:
            logits = jnp.where(mask[:, None, None, :], logits, jnp.float32(-1e30))
        if self.causal:
            before = jnp.tri(logits.shape[-1], dtype=bool)
            logits = jnp.where(before, logits, jnp.float32(-1e30))
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        weights = Dropout(self.dropout, name="dropout_weights")(weights, train)
        return jnp.matmul(weights, v).transpose(0, 2, 1, 3)

    def _fused(self, q, k, v, mask, train):
        if train and self.dropout:
            raise ValueError(
                f"attention '{self.implementation}' has no dropout on its weights; "
                "set attention_dropout to 0 or attention to 'xla'"
            )
        lengths = None if mask is None else mask.sum(-1).astype(jnp.int32)
        options = dict(is_causal=self.causal, implementation=self.implementation)
        return jax.nn.dot_product_attention(
            q, k, v, key_value_seq_lengths=lengths, **options
        )


class CrossAttention(nn.Module):
    """Queries read tokens; softmax in float32. Heads may be wider than D / A."""

    heads: int
    head_width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, tokens: jax.Array, mask: jax.Array | None
    ) -> jax.Array:
        """x: (B, Q, D). tokens: (B, S, D). mask: (B, S), False on padding."""
        inner = self.heads * self.head_width

        def heads(name: str, y: jax.Array) -> jax.Array:
            y = Dense(inner, dtype=self.dtype, name=name)(y)
            y = y.reshape(*y.shape[:2], self.heads, self.head_width)
            return y.transpose(0, 2, 1, 3)  # (B, S, D) -> (B, A, S, K)

        q, k, v = heads("query", x), heads("key", tokens), heads("value", tokens)
        q = q * jnp.asarray(self.head_width**-0.5, q.dtype)
        k = k.swapaxes(-1, -2)
        logits = jnp.matmul(q, k, preferred_element_type=jnp.float32)  # (B, A, Q, S)
        if mask is not None:
            logits = jnp.where(mask[:, None, None, :], logits, jnp.float32(-1e30))
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        y = jnp.matmul(weights, v).transpose(0, 2, 1, 3)
        y = y.reshape(*y.shape[:2], inner)
        return Dense(x.shape[-1], dtype=self.dtype, name="out")(y)


class Mlp(nn.Module):
    """Dense, activation, Dense."""

    hidden: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation '{self.activation}' is not one of {', '.join(ACTIVATIONS)}"
            )
        width = x.shape[-1]
        h = Dense(self.hidden, dtype=self.dtype, name="fc1")(
            x
        )  # (B, S, D) -> (B, S, F)
        h = ACTIVATIONS[self.activation](h)
        h = Dropout(self.dropout, name="dropout_hidden")(h, train)
        return Dense(width, dtype=self.dtype, name="fc2")(h)


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the block of ViT and of CLIP."""

    heads: int
    hidden: int
    dropout: float
    attention_dropout: float
    norm_eps: float
    dtype: jnp.dtype
    attention: str
    activation: str = "gelu"
    causal: bool = False
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None, train: bool) -> jax.Array:
        """x: (B, S, D). mask: (B, S), True where a token may be attended to."""
        y = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm1")(x)
        y = Attention(
            self.heads,
            self.attention_dropout,
            self.dtype,
            self.attention,
            self.causal,
            name="attention",
        )(y, mask, train)
        y = Dropout(self.dropout, name="dropout1")(y, train)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)
        y = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm2")(x)
        mlp = Mlp(self.hidden, self.dropout, self.dtype, self.activation, name="mlp")
        y = Dropout(self.dropout, name="dropout2")(mlp(y, train), train)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


def block_fields(tower: nn.Module) -> dict[str, Any]:
    """What every block of a tower has from its tower."""
    names = ("heads", "hidden", "dropout", "attention_dropout", "norm_eps", "dtype")
    names += ("attention", "activation")
    return {name: getattr(tower, name) for name in names}


REMAT = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names("product"),
}


def rematerialised(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """The block's class, recomputing in the backward pass what `remat` does not keep.

    remat: "none" keeps all, "block" keeps a block's input alone, "dots" keeps the
    outputs of matrix products with weights.
    """
    if remat not in REMAT:
        raise ValueError(f"remat '{remat}' is not one of {', '.join(REMAT)}")
    if remat == "none":
        return block
    return nn.remat(block, static_argnums=(3,), policy=REMAT[remat])
