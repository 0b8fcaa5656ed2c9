"""What all towers are made of: dropout, attention, MLP, and the axis letters.

Axis letters, everywhere in the package: B batch, H and W pixels (or patches), N image
tokens, L text tokens, S tokens of either, D width of a tower, F hidden width of an MLP,
A attention heads, K width of a head, P width of the shared embedding, V vocabulary,
M masked positions of a text.

rows: (B,) numbers of the samples in the global batch, while training; they alone decide
what dropout draws for each. None: nothing is dropped.
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


def draw(key: jax.Array, rows: jax.Array, count: int) -> jax.Array:
    """(B,) numbers of rows -> (B, count) random uint16, each row by its number alone.

    A batch may so be cut into parts, whose rows draw what they would in the whole.
    Threefry-2x32 with 13 rounds (Salmon et al., "Parallel Random Numbers: As Easy as
    1, 2, 3", SC 2011: the fewest that pass BigCrush), four draws to a block, counted by
    row and place: a quarter of the work of `jax.random.bits`. The first two words of the
    key are taken.
    """
    words = tuple(jax.random.key_data(key)[:2])
    row = jnp.asarray(rows, jnp.uint32)[:, None]
    place = jnp.arange(-(-count // 4), dtype=jnp.uint32)[None]
    # Without the barrier each of the two words would be computed for each of its uses.
    pair = jax.lax.optimization_barrier(threefry(words, row, place))
    halves = [jax.lax.bitcast_convert_type(word, jnp.uint16) for word in pair]
    return jnp.concatenate([x.reshape(len(rows), -1) for x in halves], 1)[:, :count]


def threefry(
    key: tuple[jax.Array, jax.Array], a: jax.Array, b: jax.Array, rounds: int = 13
) -> tuple[jax.Array, jax.Array]:
    """Enciphers the counters (a, b), uint32, to two random words; see `draw`."""
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    a, b = a + schedule[0], b + schedule[1]
    for i in range(rounds):
        turn = ((13, 15, 26, 6), (17, 29, 16, 24))[i // 4 % 2][i % 4]
        a = a + b
        b = ((b << turn) | (b >> (32 - turn))) ^ a
        if i % 4 == 3:
            s = i // 4 + 1
            a = a + schedule[s % 3]
            b = b + schedule[(s + 1) % 3] + jnp.uint32(s)
    return a, b


def dropout(key: jax.Array, x: jax.Array, rate: float, rows: jax.Array) -> jax.Array:
    """Zeroes about `rate` of x and scales the rest so that the mean stays.

    x: (B, ...). rows: (B,) numbers of its samples, see `draw`. 16 bits decide about an
    element, so the rate that is met (and scaled by) is the nearest multiple of 2^-16.
    The draw does not depend on how x is sharded.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout rate {rate} must be at least 0 and less than 1")
    keep = round((1 - rate) * 65536)
    if keep == 65536:
        return x
    drawn = draw(key, rows, x[0].size).reshape(x.shape)
    return jnp.where(drawn < keep, x * jnp.asarray(65536 / keep, x.dtype), 0)


class Dropout(nn.Module):
    """`dropout` with a key from the "dropout" collection; identity without rows."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None) -> jax.Array:
        if rows is None or self.rate == 0:
            return x
        return dropout(self.make_rng("dropout"), x, self.rate, rows)


class DropPath(nn.Module):
    """Leaves a whole branch out of a sample with probability `rate`; scales the rest.

    Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016).
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, rows: jax.Array | None) -> jax.Array:
        """x: (B, S, D), what a residual branch adds."""
        if rows is None or self.rate == 0:
            return x
        ones = jnp.ones((len(x), 1, 1), x.dtype)
        return x * dropout(self.make_rng("dropout"), ones, self.rate, rows)


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
    or of its result, which it then has no code for (jax 0.10 and 0.11, on CPUs).
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


ACTIVATIONS = {
    "gelu": functools.partial(
        jax.nn.gelu, approximate=False
    ),  # as ViT and BERT have it
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}


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
        weights = Dropout(self.dropout, name="dropout_weights")(weights, rows)
        return jnp.matmul(weights, v).transpose(0, 2, 1, 3)

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
