"""Losses of all pairs in a batch, in tiles: the B x B logits never exist.

Each device keeps its own images while the texts travel round all devices, a block at a
time; a tile is a block's `chunk` texts against the device's images. Values and gradients
are those of the dense losses in `losses`; memory grows linearly with the batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

AXES = ("data", "fsdp")
ROWS, WHOLE = PartitionSpec(AXES), PartitionSpec()


def contrastive(
    image: jax.Array, text: jax.Array, scale: jax.Array, *, chunk: int, mesh: Mesh
) -> jax.Array:
    """`losses.contrastive`, in tiles of `chunk` texts.

    image, text: (B, P) unit vectors, rows shared evenly by the devices of the mesh; a
    device's share is padded to a multiple of `chunk` on its way. scale: what cosines are
    multiplied by. Returns a scalar.
    """
    _check(image, chunk, mesh)
    return _contrastive(_Ring(chunk, mesh), image, text, jnp.float32(scale))


def sigmoid(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    chunk: int,
    mesh: Mesh,
) -> jax.Array:
    """`losses.sigmoid`, in tiles of `chunk` texts; arguments as of `contrastive`."""
    _check(image, chunk, mesh)
    scale, bias = jnp.float32(scale), jnp.float32(bias)
    return _sigmoid(_Ring(chunk, mesh), image, text, scale, bias)


def _check(image: jax.Array, chunk: int, mesh: Mesh) -> None:
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be 1 text or more")
    if len(image) % mesh.size:
        raise ValueError(
            f"a batch of {len(image)} cannot be shared by {mesh.size} devices evenly"
        )


@dataclasses.dataclass(frozen=True)
class _Ring:
    """Walks over the tiles of one device, in the body of a shard_map."""

    chunk: int
    mesh: Mesh

    def map(self, body: Callable, inputs: tuple, outputs: Any) -> Callable:
        """body on every device, with specs of its inputs and outputs."""
        return jax.shard_map(
            body, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False
        )

    def over(self, visit: Callable, stay: Any, travel: Any) -> tuple[Any, Any]:
        """Every tile once: visit(stay, tile, real, own) -> (stay, tile).

        stay: what the device sums up. travel: arrays (b, ...) of the device's texts; a
        tile is `chunk` rows of each, of whichever device's texts are visiting, and comes
        home changed by all. real: (chunk,) False on padding. own: (chunk,) the row of
        the device's images that a text belongs to; -1 for texts of others, and padding.
        Returns stay and travel, home again.
        """
        b = len(jax.tree.leaves(travel)[0])
        chunk = min(self.chunk, b)
        many = -(-b // chunk)
        row = jnp.pad(jnp.arange(b), (0, many * chunk - b), constant_values=-1)
        row = row.reshape(many, chunk)

        def cut(x: jax.Array) -> jax.Array:
            pad = [(0, many * chunk - b)] + [(0, 0)] * (x.ndim - 1)
            return jnp.pad(x, pad).reshape(many, chunk, *x.shape[1:])

        def turn(step: jax.Array, state: tuple) -> tuple:
            stay, travel = state
            home = step == 0  # the device's own texts are on it before the first move

            def tile(stay: Any, at: tuple) -> tuple:
                part, real = at
                return visit(stay, part, real >= 0, jnp.where(home, real, -1))

            stay, travel = jax.lax.scan(tile, stay, (travel, row))
            return stay, jax.tree.map(self._pass_on, travel)

        state = stay, jax.tree.map(cut, travel)
        stay, travel = jax.lax.fori_loop(0, self.mesh.size, turn, state)
        home = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:b], travel)
        return stay, home

    def _pass_on(self, x: jax.Array) -> jax.Array:
        """What travels goes to the next device."""
        d = self.mesh.size
        if d == 1:
            return x
        return jax.lax.ppermute(x, AXES, [(i, (i + 1) % d) for i in range(d)])


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


# --- InfoNCE -------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contrastive(ring: _Ring, image, text, scale) -> jax.Array:
    return _contrastive_forward(ring, image, text, scale)[0]


def _contrastive_forward(ring: _Ring, image, text, scale):
    def body(image, text, scale):
        low = jnp.full(len(image), -jnp.inf, jnp.float32)
        none = jnp.zeros(len(image), jnp.float32)

        def visit(rows, tile, real, _):
            text, columns = tile[0], tile[1:]
            logits = scale * _dot(image, text.T)  # (b, chunk)
            seen = jnp.where(real, logits, -jnp.inf)
            return _add_up(rows, seen, 1), (text, *_add_up(columns, logits, 0))

        rows, home = ring.over(visit, (low, none), (text, low, none))
        (row_max, row_sum), (_, column_max, column_sum) = rows, home
        to_text = row_max + jnp.log(row_sum)
        to_image = column_max + jnp.log(column_sum)
        right = scale * jnp.sum(image * text, axis=1, dtype=jnp.float32)
        total = jax.lax.psum(jnp.sum(to_text + to_image - 2 * right), AXES)
        return total, to_text, to_image

    run = ring.map(body, (ROWS, ROWS, WHOLE), (WHOLE, ROWS, ROWS))
    total, to_text, to_image = run(image, text, scale)
    loss = total / (2 * len(image))
    return loss, (image, text, scale, to_text, to_image)


def _add_up(state: tuple, logits: jax.Array, axis: int) -> tuple:
    """Maximum and sum of exponentials along an axis, with those seen before."""
    top, total = state
    new = jnp.maximum(top, logits.max(axis))
    weights = jnp.exp(logits - jnp.expand_dims(new, axis))
    return new, total * jnp.exp(top - new) + weights.sum(axis)


def _contrastive_backward(ring: _Ring, saved, g):
    image, text, scale, to_text, to_image = saved

    def body(image, text, scale, to_text, to_image, g):
        def visit(stay, tile, real, own):
            d_image, d_scale = stay
            text, to_image, d_text = tile
            cosine = _dot(image, text.T)
            logits = scale * cosine
            pull = jnp.exp(logits - to_text[:, None]) + jnp.exp(logits - to_image)
            right = own == jnp.arange(len(image))[:, None]
            pull = jnp.where(real, g * (pull - 2 * right), 0)  # d loss / d logits
            d_image += scale * _dot(pull, text)
            d_text += scale * _dot(pull.T, image)
            return (d_image, d_scale + jnp.sum(pull * cosine)), (text, to_image, d_text)

        stay = jnp.zeros_like(image), jnp.float32(0)
        stay, home = ring.over(visit, stay, (text, to_image, jnp.zeros_like(text)))
        (d_image, d_scale), (_, _, d_text) = stay, home
        return d_image, d_text, jax.lax.psum(d_scale, AXES)

    inputs = (ROWS, ROWS, WHOLE, ROWS, ROWS, WHOLE)
    run = ring.map(body, inputs, (ROWS, ROWS, WHOLE))
    return run(image, text, scale, to_text, to_image, g / (2 * len(image)))


_contrastive.defvjp(_contrastive_forward, _contrastive_backward)


# --- sigmoid -------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sigmoid(ring: _Ring, image, text, scale, bias) -> jax.Array:
    return _sigmoid_forward(ring, image, text, scale, bias)[0]


def _sigmoid_forward(ring: _Ring, image, text, scale, bias):
    def body(image, text, scale, bias):
        def visit(total, tile, real, own):
            logits = scale * _dot(image, tile.T) + bias
            right = own == jnp.arange(len(image))[:, None]
            cost = jax.nn.softplus(jnp.where(right, -logits, logits))
            return total + jnp.sum(jnp.where(real, cost, 0)), tile

        total, _ = ring.over(visit, jnp.float32(0), text)
        return jax.lax.psum(total, AXES)

    run = ring.map(body, (ROWS, ROWS, WHOLE, WHOLE), WHOLE)
    loss = run(image, text, scale, bias) / len(image)
    return loss, (image, text, scale, bias)


def _sigmoid_backward(ring: _Ring, saved, g):
    def body(image, text, scale, bias, g):
        def visit(stay, tile, real, own):
            d_image, d_scale, d_bias = stay
            text, d_text = tile
            cosine = _dot(image, text.T)
            right = own == jnp.arange(len(image))[:, None]
            pull = jax.nn.sigmoid(scale * cosine + bias) - right
            pull = jnp.where(real, g * pull, 0)  # d loss / d logits
            d_image += scale * _dot(pull, text)
            d_text += scale * _dot(pull.T, image)
            d_scale += jnp.sum(pull * cosine)
            return (d_image, d_scale, d_bias + pull.sum()), (text, d_text)

        stay = jnp.zeros_like(image), jnp.float32(0), jnp.float32(0)
        stay, (_, d_text) = ring.over(visit, stay, (text, jnp.zeros_like(text)))
        d_image, d_scale, d_bias = stay
        return d_image, d_text, *jax.lax.psum((d_scale, d_bias), AXES)

    inputs = (ROWS, ROWS, WHOLE, WHOLE, WHOLE)
    run = ring.map(body, inputs, (ROWS, ROWS, WHOLE, WHOLE))
    return run(*saved, g / len(saved[0]))


_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)
