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


# --- random erasing ------------------------------------------------------------------

COLOUR = (0.2, 0.5, 0.9)
PAINT = np.array([51, 128, 230])  # of 51, 127.5 and 229.5: halves go to the even one
erase = jax.jit(
    transforms.erase, static_argnames=("probability", "colour", "area", "ratio")
)


def dark(batch, height, width):
    """Random images without the paint."""
    return images(batch, height=height, width=width) % 50


def rectangles(before, out):
    """(n, 4) top, left, height, width of each image with paint, and which these are.

    Fails where the paint is no rectangle, or anything else has changed.
    """
    out = np.asarray(out)
    assert (out.dtype, out.shape) == (np.uint8, before.shape)
    painted = (out == PAINT).all(-1)
    np.testing.assert_array_equal(np.where(painted[..., None], before, out), before)
    rows, columns = painted.any(2), painted.any(1)
    np.testing.assert_array_equal(painted, rows[:, :, None] & columns[:, None])
    erased, sides = rows.any(1), []
    for lines in (rows[erased], columns[erased]):
        first, length = lines.argmax(1), lines.sum(1)
        last = lines.shape[1] - 1 - lines[:, ::-1].argmax(1)
        np.testing.assert_array_equal(last - first + 1, length)  # without a gap
        sides += [first, length]
    return np.stack([sides[0], sides[2], sides[1], sides[3]], 1), erased


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_erase_paints_one_rectangle_over_that_share_of_images_and_nothing_else(
    probability,
):
    before = dark(1000, 24, 8)
    out = erase(jax.random.key(0), before, probability=probability, colour=COLOUR)
    _, erased = rectangles(before, out)
    assert abs(erased.mean() - probability) <= five_sigma(probability, 1000)


def test_erased_areas_and_ratios_lie_evenly_within_their_bounds_and_anywhere():
    (low, high), (flat, tall) = area, ratio = (0.05, 0.15), (0.5, 3.0)
    before = dark(1500, 60, 60)  # so large that no side is cut
    options = dict(probability=1.0, colour=COLOUR, area=area, ratio=ratio)
    found, _ = rectangles(before, erase(jax.random.key(1), before, **options))
    top, left, height, width = found.T.astype(float)
    # Sides are rounded to whole pixels.
    rounding = (height + width) / 2 + 0.25
    pixels = height * width
    assert np.all(pixels >= low * 3600 - rounding)
    assert np.all(pixels <= high * 3600 + rounding)
    assert np.all((height + 0.5) / (width - 0.5) >= flat)
    assert np.all((height - 0.5) / (width + 0.5) <= tall)
    for share in (
        (pixels / 3600 - low) / (high - low),
        np.log(height / width / flat) / np.log(tall / flat),
        top / (60 - height),
        left / (60 - width),
    ):
        # Of each quarter as many; a hundredth or two is moved by the rounding.
        quarter = np.histogram(share.clip(0, 1), bins=4, range=(0, 1))[0] / 1500
        assert np.abs(quarter - 0.25).max() < five_sigma(0.25, 1500) + 0.02
    for start, side in ((top, height), (left, width)):
        assert start.min() == 0 and (start + side).max() == 60


def test_an_erased_side_longer_than_the_image_is_cut_to_it():
    before = dark(1000, 48, 16)  # as people are: three times as tall as wide
    out = erase(jax.random.key(2), before, probability=1.0, colour=COLOUR)
    *_, height, width = rectangles(before, out)[0].T
    assert width.max() == 16 and (width == 16).mean() > 0.05
    assert height.max() <= np.ceil(np.sqrt(0.4 * 48 * 16 * 3.3))
    assert (height * width).max() <= 0.4 * 48 * 16 + (height + width).max() / 2 + 1


def test_augment_erases_with_the_colour_what_it_would_have_given_without():
    before, key = dark(400, 9, 6), jax.random.key(3)
    options = dict(flips=True, pad=2)
    plain = np.asarray(transforms.augment(key, before, **options))
    options |= dict(erasing=0.5, colour=COLOUR)
    _, erased = rectangles(plain, transforms.augment(key, before, **options))
    assert abs(erased.mean() - 0.5) < five_sigma(0.5, 400)
    grey = transforms.augment(key, before, **options | dict(colour=0.5))
    changed = (np.asarray(grey) != plain).any(-1)
    assert (np.asarray(grey)[changed] == 128).all() and changed.any()


def test_erasing_is_the_same_on_8_devices_as_on_1():
    batch = dark(16, 12, 6)
    placed = jax.device_put(batch, sharding.batch_sharding(mesh_of(8)))
    one, eight = (
        erase(jax.random.key(4), x, probability=0.6, colour=COLOUR)
        for x in (batch, placed)
    )
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(one, eight)
