"""What all towers are made of: products, attention, MLP, and the axis letters.

Axis letters, everywhere in the package: B batch, H and W pixels (or patches), N image
tokens, L text tokens, S tokens of either, D width of a tower, F hidden width of an MLP,
A attention heads, K width of a head, P width of the shared embedding, V vocabulary,
M masked positions of a text.

rows: (B,) numbers of the samples in the global batch while training, see `draws`; None:
nothing is left out.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from unipt_jax.models.draws import Dropout, DropPath, kept, share

kernel_init = nn.initializers.xavier_uniform()
embedding_init = nn.initializers.normal(stddev=0.02)
# So small that all identities start alike, whatever the scale of the features.
classifier_init = nn.initializers.normal(stddev=0.001)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, kernel: jax.Array, out: Any = None) -> jax.Array:
    """(..., D) @ (D, F) -> (..., F): x in the precision of compute, kernel in float32.

    The product is taken in x's precision and given in `out`, else in x's. Its gradients
    are two products of matrices (for JAX's own rule XLA on CPUs copies activations); the
    kernel's stays in float32, in which it is summed.
    """
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    return _multiply(x, kernel.astype(x.dtype), dims, out or x.dtype)


def _product_forward(x, kernel, out):
    return product(x, kernel, out), (x, kernel)


def _product_backward(_, saved, g):
    x, kernel = saved
    g = g.astype(x.dtype)
    dims = (((g.ndim - 1,), (1,)), ((), ()))
    dx = _multiply(g, kernel.astype(x.dtype), dims, x.dtype)
    rows, inputs = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
    return dx, _outer(inputs, rows)


product.defvjp(_product_forward, _product_backward)


def _multiply(a: jax.Array, b: jax.Array, dims: Any, out: Any) -> jax.Array:
    """dot_general with the result in `out`."""
    if _plain(a):
        return jax.lax.dot_general(a, b, dims, preferred_element_type=out)
    # XLA on CPUs takes 16-bit floats at twice the speed where it may give float32.
    wide = jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
    return _flat(wide).astype(out)


def _outer(x: jax.Array, g: jax.Array) -> jax.Array:
    """(R, D), (R, F) -> (D, F), the sum over rows, in float32."""
    if _plain(x):
        dims = (((0,), (0,)), ((), ()))
        return jax.lax.dot_general(x, g, dims, preferred_element_type=jnp.float32)
    # Its product of 16-bit floats is twice as fast on rows that lie in a piece.
    return _flat(jnp.matmul(_flat(x.T), g, preferred_element_type=jnp.float32))


def _plain(x: jax.Array) -> bool:
    return x.dtype == jnp.float32 or jax.default_backend() != "cpu"


def _flat(x: jax.Array) -> jax.Array:
    """x as it is, laid out row by row in memory.

    XLA would else turn the layout of a 16-bit product's arguments, which makes it slow,
    or of its result, which it then has no code for (jax 0.10, on CPUs).
    """
    return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


class Dense(nn.Module):
    """x @ kernel + bias, in `dtype`, with float32 parameters. kernel: (D, features)."""

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = kernel_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., D) -> (..., features)."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        # The name is what remat "dots" keeps.
        y = checkpoint_name(product(x.astype(self.dtype), kernel), "product")
        if not self.use_bias:
            return y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return add_bias(y, bias)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """(..., D) + (D,) float32, in x's precision; the bias's gradient is in float32."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(_, g):
    # As rows: XLA on CPUs sums over one axis ten times faster than over two.
    return g, g.reshape(-1, g.shape[-1]).astype(jnp.float32).sum(0)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), None), _add_bias_backward)


def quick_gelu(x: jax.Array) -> jax.Array:
    """CLIP's approximation of GELU: x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution's share below it, exact, as ViT and BERT have it.

    In float32 inside; x alone is kept for the gradient. (`jax.nn.gelu` takes erfc, whose
    two branches cost a CPU three times as much.)
    """
    y = x.astype(jnp.float32)
    return (y * _below(y)).astype(x.dtype)


def _below(y: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf(y * math.sqrt(0.5)))


def _gelu_backward(x: jax.Array, g: jax.Array) -> tuple[jax.Array]:
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    return ((g * (_below(y) + y * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


ACTIVATIONS = {
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    allowed: jax.Array | None,
    stays: jax.Array | None,
    rate: float,
) -> jax.Array:
    """Softmax attention of each head by itself, softmax in float32.

    q, k, v: (B, A, S, K). allowed: True where a token may be attended to, broadcast to
    (B, A, S, S); None: everywhere. stays: (B, A, S, S), which weights dropout at `rate`
    keeps; None: all. Returns (B, A, S, K).

    Its gradient takes the sum over a row's weights from the output, as FlashAttention's
    does (Dao et al., NeurIPS 2022, appendix B.2), and each of its products in the form
    that XLA on CPUs does several times faster than the transposed one.
    """
    return _attend_forward(q, k, v, allowed, stays, rate)[0]


_ROWS = (((3,), (2,)), ((0, 1), (0, 1)))  # a @ b, head by head
_COLUMNS = (((3,), (3,)), ((0, 1), (0, 1)))  # a @ b.T


def _attend_forward(q, k, v, allowed, stays, rate):
    logits = _multiply(q * q.dtype.type(q.shape[-1] ** -0.5), k, _COLUMNS, jnp.float32)
    if allowed is not None:
        logits = jnp.where(allowed, logits, jnp.float32(-1e30))
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    y = _multiply(_thinned(weights, stays, rate), v, _ROWS, v.dtype)
    return y, (q, k, v, weights, stays, y)


def _thinned(weights: jax.Array, stays: jax.Array | None, rate: float) -> jax.Array:
    if stays is None:
        return weights
    return jnp.where(stays, weights * jnp.asarray(1 / share(rate), weights.dtype), 0)


def _attend_backward(rate, saved, g):
    q, k, v, weights, stays, y = saved
    g, scale = g.astype(v.dtype), q.shape[-1] ** -0.5
    d_v = _multiply(_turned(g), _thinned(weights, stays, rate), _ROWS, v.dtype)
    d_weights = _thinned(_multiply(g, v, _COLUMNS, jnp.float32), stays, rate)
    sums = jnp.sum(g.astype(jnp.float32) * y.astype(jnp.float32), -1, keepdims=True)
    slope = (weights.astype(jnp.float32) * (d_weights - sums) * scale).astype(q.dtype)
    d_q = _multiply(slope, k, _ROWS, q.dtype)
    d_k = _multiply(_turned(q), slope, _ROWS, k.dtype)
    return d_q, d_k.swapaxes(2, 3), d_v.swapaxes(2, 3), None, None


def _turned(x: jax.Array) -> jax.Array:
    """(B, A, S, K) -> (B, A, K, S); on a CPU in memory too, see `attend`."""
    x = x.swapaxes(2, 3)
    return _flat(x) if jax.default_backend() == "cpu" else x


attend.defvjp(_attend_forward, _attend_backward)


class Attention(nn.Module):
    """Multi-head self-attention; softmax in float32.

    causal: a token attends to itself and what comes before it. implementation: "xla", or
    "cudnn" (16-bit floats on an NVIDIA GPU, without dropout on the attention weights).
    """

    heads: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32
    implementation: str = "xla"
    causal: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, mask: jax.Array | None, rows: jax.Array | None
    ) -> jax.Array:
        """x: (B, S, D). mask: (B, S), True where a token may be attended to."""
        b, s, d = x.shape
        split = (b, s, self.heads, d // self.heads)  # (B, S, D) -> (B, S, A, K)
        q = Dense(d, dtype=self.dtype, name="query")(x).reshape(split)
        k = Dense(d, dtype=self.dtype, name="key")(x).reshape(split)
        v = Dense(d, dtype=self.dtype, name="value")(x).reshape(split)
        if self.implementation == "xla":
            y = self._weighted(q, k, v, mask, rows)
        else:
            y = self._fused(q, k, v, mask, rows)
        return Dense(d, dtype=self.dtype, name="out")(y.reshape(b, s, d))

    def _weighted(self, q, k, v, mask, rows):
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))  # -> (B, A, S, K)
        allowed = None if mask is None else mask[:, None, None, :]
        if self.causal:
            before = jnp.tri(q.shape[2], dtype=bool)
            allowed = before if allowed is None else allowed & before
        stays = None
        if rows is not None and self.dropout:
            shape = (*q.shape[:3], q.shape[2])
            stays = kept(self.make_rng("dropout"), shape, self.dropout, rows)
        return attend(q, k, v, allowed, stays, self.dropout).transpose(0, 2, 1, 3)

    def _fused(self, q, k, v, mask, rows):
        if rows is not None and self.dropout:
            raise ValueError(
                f"attention '{self.implementation}' has no dropout on its weights; "
                "set attention_dropout to 0 or attention to 'xla'"
            )
        b, s = q.shape[:2]
        lengths = None if mask is None else mask.sum(-1).astype(jnp.int32)
        if s % 2:  # cudnn trains on even lengths alone
            lengths = jnp.full(b, s, jnp.int32) if lengths is None else lengths
            q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        options = dict(is_causal=self.causal, implementation=self.implementation)
        y = jax.nn.dot_product_attention(
            q, k, v, key_value_seq_lengths=lengths, **options
        )
        return y[:, :s]


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
    def __call__(self, x: jax.Array, rows: jax.Array | None) -> jax.Array:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation '{self.activation}' is not one of {', '.join(ACTIVATIONS)}"
            )
        width = x.shape[-1]
        h = Dense(self.hidden, dtype=self.dtype, name="fc1")(
            x
        )  # (B, S, D) -> (B, S, F)
        h = ACTIVATIONS[self.activation](h)
        h = Dropout(self.dropout, name="dropout_hidden")(h, rows)
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
    def __call__(
        self, x: jax.Array, mask: jax.Array | None, rows: jax.Array | None
    ) -> jax.Array:
        """x: (B, S, D). mask: (B, S), True where a token may be attended to."""
        y = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm1")(x)
        y = Attention(
            self.heads,
            self.attention_dropout,
            self.dtype,
            self.attention,
            self.causal,
            name="attention",
        )(y, mask, rows)
        y = Dropout(self.dropout, name="dropout1")(y, rows)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, rows)
        y = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm2")(x)
        mlp = Mlp(self.hidden, self.dropout, self.dtype, self.activation, name="mlp")
        y = Dropout(self.dropout, name="dropout2")(mlp(y, rows), rows)
        return x + DropPath(self.drop_path, name="drop_path2")(y, rows)


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
    return nn.remat(block, policy=REMAT[remat])
