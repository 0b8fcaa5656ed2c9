"""Claims on normalisation and augmentation, against numpy."""

import functools

import jax
import numpy as np
import pytest
from helpers import five_sigma, images, mesh_of

from unipt_jax import sharding
from unipt_jax.data import transforms

flip = jax.jit(transforms.flip)
pad_and_crop = jax.jit(transforms.pad_and_crop, static_argnums=2)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.449, 0.226)])
def test_normalise_equals_numpy_for_every_byte(mean, std):
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    out = transforms.normalise(every, mean=mean, std=std)
    assert out.dtype == np.float32
    expected = (every.astype(np.float64) / 255 - mean) / std
    # 255 * mean is rounded to 2^-24 of 128, then divided by 255 * std.
    np.testing.assert_allclose(out, expected, rtol=0, atol=3e-7)


def test_flip_mirrors_about_half_of_the_images_and_changes_nothing_else():
    batch = images(1000, height=2, width=5)
    out = np.asarray(flip(jax.random.key(0), batch))
    assert out.dtype == np.uint8
    same = (out == batch).all(axis=(1, 2, 3))
    mirrored = (out == batch[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < five_sigma(0.5, 1000)


@functools.cache
def shifts(pad, seed=0):
    """The (down, right) shifts of 400 images, found by trying them all in numpy."""
    batch = np.maximum(images(400, height=9, width=6), 1)  # no black but the padding
    out = np.asarray(pad_and_crop(jax.random.key(seed), batch, pad))
    assert (out.dtype, out.shape) == (np.uint8, batch.shape)
    padded = np.pad(batch, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    found = []
    for image, moved in zip(padded, out, strict=True):
        (shift,) = [
            (y, x)
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            if np.array_equal(moved, image[y : y + 9, x : x + 6])
        ]
        found.append(shift)
    return np.array(found)


def test_each_image_is_a_crop_of_itself_on_black_moved_by_at_most_pad():
    found = shifts(2)  # fails where an image is no such crop
    for axis in (0, 1):
        share = np.bincount(found[:, axis], minlength=5) / len(found)
        assert np.abs(share - 1 / 5).max() < five_sigma(1 / 5, len(found))


def test_down_and_right_are_drawn_apart_and_anew_for_each_key():
    found = shifts(2)
    assert abs((found[:, 0] == found[:, 1]).mean() - 1 / 5) < five_sigma(1 / 5, 400)
    assert (found != shifts(2, seed=1)).any()


def test_augment_does_what_is_asked_for_alone():
    batch = images(64, height=4, width=4)
    key = jax.random.key(3)
    still = transforms.augment(key, batch, flips=False, pad=0)
    np.testing.assert_array_equal(still, batch)
    flipped = np.asarray(transforms.augment(key, batch, flips=True, pad=0))
    assert (flipped != batch).any()
    np.testing.assert_array_equal(
        np.sort(flipped, axis=2), np.sort(batch, axis=2)
    )  # pixels stay in their rows
    symmetric = np.concatenate([batch, batch[:, :, ::-1]], axis=2)
    mirrored = transforms.augment(key, symmetric, flips=True, pad=0)
    np.testing.assert_array_equal(mirrored, symmetric)
    moved = np.asarray(transforms.augment(key, batch, flips=False, pad=1))
    both = np.asarray(transforms.augment(key, batch, flips=True, pad=1))
    assert (moved != batch).any() and (both != moved).any()


def test_augmentation_is_the_same_on_8_devices_as_on_1():
    batch = images(16, height=6, width=4)
    augment = jax.jit(functools.partial(transforms.augment, flips=True, pad=2))
    placed = jax.device_put(batch, sharding.batch_sharding(mesh_of(8)))
    one, eight = (augment(jax.random.key(0), x) for x in (batch, placed))
    np.testing.assert_array_equal(one, eight)
