"""The best of a gallery, against a sort of all scores in float64."""

import types

import helpers
import jax
import numpy as np
import pytest

from unipt_jax.search import gallery as galleries
from unipt_jax.search.gallery import Gallery


def unit(rng, *shape):
    rows = rng.standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def sorted_out(query, rows, k):
    """Scores and numbers of the k best by float64 arithmetic; of equals the lower."""
    scores = np.asarray(query, np.float64) @ np.asarray(rows, np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def grid(rng, rows, width):
    """Rows of few small whole numbers: products are exact, and many are equal."""
    return rng.integers(-2, 3, (rows, width)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(galleries, "CPU_ROWS", (16, 64))
    monkeypatch.setattr(galleries, "QUERIES", 8)
    galleries._best.clear_cache()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [1, 5, 16, 333])
def test_the_best_are_those_of_a_sort(small_blocks, devices, dtype, rows):
    rng = np.random.default_rng(rows)
    gallery, query = unit(rng, rows, 12).astype(dtype), unit(rng, 19, 12)
    k = min(rows, 7)
    scores, numbers = Gallery(gallery, helpers.mesh_of(devices)).top_k(query, k)
    right, order = sorted_out(query, gallery, k)
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_allclose(scores, right, atol=3e-7)
    assert scores.dtype == np.float32 and numbers.dtype == np.int32


@pytest.mark.parametrize("devices", [1, 8])
def test_of_equals_the_lower_number_stands_first(small_blocks, devices):
    rng = np.random.default_rng(0)
    gallery, query = grid(rng, 410, 4), grid(rng, 5, 4)
    scores, numbers = Gallery(gallery, helpers.mesh_of(devices)).top_k(query, 60)
    right, order = sorted_out(query, gallery, 60)
    assert len(np.unique(right[0])) < 40  # there are many equals
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_array_equal(scores, right)


@pytest.mark.parametrize("room", [1, 50, 160, 409])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_gallery_too_large_for_the_devices_comes_in_stretches(
    small_blocks, monkeypatch, devices, room
):
    rng = np.random.default_rng(room)
    gallery, query = grid(rng, 410, 4), grid(rng, 11, 4)
    monkeypatch.setattr(galleries, "_room", lambda mesh, rows: room)
    asked = Gallery(gallery, helpers.mesh_of(devices))
    assert asked._resident is None
    scores, numbers = asked.top_k(query, 30)
    right, order = sorted_out(query, gallery, 30)
    np.testing.assert_array_equal(numbers, order)
    np.testing.assert_array_equal(scores, right)


def test_the_room_is_half_of_what_the_fullest_device_has_left():
    def device(used):
        stats = {"bytes_limit": 10_000, "bytes_in_use": used}
        return types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)

    devices = [device(0), device(4_000)]
    mesh = types.SimpleNamespace(
        local_devices=devices, devices=np.array(devices), size=2
    )
    assert galleries._room(mesh, np.zeros((5, 10), np.float16)) == 2 * (3_000 // 20)


@pytest.mark.parametrize("devices", [1, 8])
def test_approximate_search_on_a_cpu_finds_all_of_them(small_blocks, devices):
    rng = np.random.default_rng(3)
    gallery, query = unit(rng, 700, 8), unit(rng, 3, 8)
    asked = Gallery(gallery, helpers.mesh_of(devices))
    exact = asked.top_k(query, 9)
    for a, b in zip(exact, asked.top_k(query, 9, approximate=True), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("approximate", [False, True])
def test_a_gpu_and_a_tpu_get_a_program_of_their_own(platform, approximate):
    rows = jax.ShapeDtypeStruct((80_000, 8), np.float16)
    query = jax.ShapeDtypeStruct((4, 8), np.float32)
    size = jax.ShapeDtypeStruct((), np.int32)
    options = dict(mesh=helpers.mesh_of(1), k=16, block=galleries.ROWS)
    traced = galleries._best.trace(
        query, rows, size, approximate=approximate, **options
    )
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in text
    assert ("ApproxTopK" in text) == approximate


def test_a_mapped_file_is_not_copied(tmp_path):
    rows = unit(np.random.default_rng(0), 64, 32).astype(np.float16)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    asked = Gallery(mapped, helpers.mesh_of(1))
    (shard,) = asked._resident.addressable_shards
    assert shard.data.unsafe_buffer_pointer() == mapped.ctypes.data
    assert asked.top_k(np.asarray(rows[5:6], np.float32), 1)[1].item() == 5
    eight = Gallery(mapped, helpers.mesh_of(8))
    places = [
        s.data.unsafe_buffer_pointer() for s in eight._resident.addressable_shards
    ]
    assert places == [mapped.ctypes.data + i * 8 * 32 * 2 for i in range(8)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((0, 4), np.float32), r"shape \(0, 4\)"),
        (np.zeros(4, np.float32), r"shape \(4,\)"),
        (np.zeros((3, 4)), "float64; give float16 or float32"),
    ],
)
def test_what_is_no_gallery_is_refused(rows, says):
    with pytest.raises(ValueError, match=says):
        Gallery(rows)


@pytest.mark.parametrize(
    ("query", "k", "says"),
    [
        (np.zeros((2, 3)), 1, r"shape \(2, 3\); give \(queries, 4\)"),
        (np.zeros((0, 4)), 1, "at least one query"),
        (np.full((1, 4), np.nan), 1, "not finite"),
        (np.zeros((1, 4)), 0, "k 0 must be from 1 to the 9"),
        (np.zeros((1, 4)), 10, "k 10 must be from 1 to the 9"),
    ],
)
def test_what_is_no_question_is_refused(query, k, says):
    asked = Gallery(np.ones((9, 4), np.float32))
    with pytest.raises(ValueError, match=says):
        asked.top_k(query, k)


def test_few_programs_serve_all_numbers_of_answers():
    rng = np.random.default_rng(1)
    asked, query = Gallery(unit(rng, 500, 8)), unit(rng, 3, 8)
    galleries._best.clear_cache()
    wide = asked.top_k(query, 50)
    for k in range(1, 51, 7):
        for some, whole in zip(asked.top_k(query, k), wide, strict=True):
            np.testing.assert_array_equal(some, whole[:, :k])
    assert galleries._best._cache_size() == 3  # 16, 32 and 64 at once
