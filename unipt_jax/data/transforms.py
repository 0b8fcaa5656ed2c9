"""uint8 images in, augmented and normalised floats out: on the device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def normalise(
    images: jax.Array, *, mean: float | Sequence[float], std: float | Sequence[float]
) -> jax.Array:
    """(B, H, W, 3) uint8 -> float32, (x / 255 - mean) / std.

    mean, std: one number for all channels, or one for each of the three.
    """
    offset = np.asarray(255 * np.asarray(mean, np.float64), np.float32)
    factor = np.asarray(1 / (255 * np.asarray(std, np.float64)), np.float32)
    return (images.astype(jnp.float32) - offset) * factor


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability one half."""
    turn = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(turn, images[:, :, ::-1], images)


def pad_and_crop(key: jax.Array, images: jax.Array, pad: int) -> jax.Array:
    """Moves each image by up to `pad` pixels each way; edges are filled with black."""
    b, h, w, _ = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    offsets = jax.random.randint(key, (b, 2), 0, 2 * pad + 1)

    def crop(image, offset):
        start = (offset[0], offset[1], 0)
        return jax.lax.dynamic_slice(image, start, (h, w, image.shape[-1]))

    return jax.vmap(crop)(padded, offsets)


def erase(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float,
    colour: Sequence[float],
    area: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 3.3),
) -> jax.Array:
    """Paints a rectangle over an image with some probability.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020). images: (B, H, W, 3)
    uint8. colour: of the paint by channel, 0 to 1. area: bounds of the rectangle's share
    of the image, drawn uniformly; ratio: of its height to its width, drawn uniformly in
    the logarithm. A side that is longer than the image's is cut to it.
    """
    b, h, w, _ = images.shape
    keys = jax.random.split(key, 5)

    def draw(key: jax.Array, low: float, high: float) -> jax.Array:
        return jax.random.uniform(key, (b,), jnp.float32, low, high)

    chosen = draw(keys[0], 0, 1) < probability
    pixels = draw(keys[1], *area) * (h * w)
    shape = jnp.exp(draw(keys[2], *np.log(ratio).tolist()))
    height = jnp.clip(jnp.round(jnp.sqrt(pixels * shape)), 1, h)
    width = jnp.clip(jnp.round(jnp.sqrt(pixels / shape)), 1, w)
    top = jnp.floor(draw(keys[3], 0, 1) * (h - height + 1))
    left = jnp.floor(draw(keys[4], 0, 1) * (w - width + 1))

    def within(first: jax.Array, length: jax.Array, size: int) -> jax.Array:
        place = jnp.arange(size)
        return (place >= first[:, None]) & (place < (first + length)[:, None])

    rows, columns = within(top, height, h), within(left, width, w)
    hidden = rows[:, :, None] & columns[:, None, :] & chosen[:, None, None]
    paint = np.round(255 * np.broadcast_to(colour, 3)).astype(np.uint8)
    return jnp.where(hidden[..., None], paint, images)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    flips: bool,
    pad: int,
    erasing: float = 0.0,
    colour: Sequence[float] = (0.5, 0.5, 0.5),
) -> jax.Array:
    """The training augmentation: `flip`, `pad_and_crop`, `erase`, each if asked for.

    erasing: its probability. colour: of what is erased.
    """
    flip_key, crop_key = jax.random.split(key)
    if flips:
        images = flip(flip_key, images)
    if pad:
        images = pad_and_crop(crop_key, images, pad)
    if erasing:
        erase_key = jax.random.fold_in(key, 2)  # the other two stay as they were
        images = erase(erase_key, images, probability=erasing, colour=colour)
    return images
