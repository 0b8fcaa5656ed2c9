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


def augment(key: jax.Array, images: jax.Array, *, flips: bool, pad: int) -> jax.Array:
    """The training augmentation: `flip` and `pad_and_crop`, each if asked for."""
    flip_key, crop_key = jax.random.split(key)
    if flips:
        images = flip(flip_key, images)
    if pad:
        images = pad_and_crop(crop_key, images, pad)
    return images
