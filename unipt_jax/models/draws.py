"""What is drawn while training: which elements, and which branches, are left out.

rows: (B,) numbers of the samples in the global batch; they alone decide what is drawn
for each. None: nothing is left out.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn


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

    x: (B, ...). rows: (B,) numbers of its samples, see `draw`. The draw does not depend
    on how x is sharded.
    """
    if share(rate) == 1:
        return x
    stays = kept(key, x.shape, rate, rows)
    return jnp.where(stays, x * jnp.asarray(1 / share(rate), x.dtype), 0)


def share(rate: float) -> float:
    """What dropout keeps: 16 bits decide, so 1 - rate to the nearest 2^-16."""
    if not 0 <= rate < 1:
        raise ValueError(f"dropout rate {rate} must be at least 0 and less than 1")
    return round((1 - rate) * 65536) / 65536


def kept(
    key: jax.Array, shape: tuple[int, ...], rate: float, rows: jax.Array
) -> jax.Array:
    """(B, ...) True where dropout keeps an element, each row by its number alone."""
    drawn = draw(key, rows, math.prod(shape[1:]))
    return (drawn < round(65536 * share(rate))).reshape(shape)


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
