"""Claims on meshes and placement, on eight virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of
from jax.sharding import PartitionSpec

from unipt_jax import optim, sharding, tree
from unipt_jax.errors import UserError

MESHES = [(1, 1), (8, 1), (8, 2), (8, 8)]  # devices, fsdp


@pytest.fixture(autouse=True)
def eight():
    if jax.device_count() != 8:
        pytest.skip("needs exactly 8 devices")


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(0, 1, (8, 1)), (0, 2, (4, 2)), (2, 4, (2, 4)), (0, 8, (1, 8))],
)
def test_a_mesh_takes_every_device_once(data, fsdp, shape):
    mesh = sharding.make_mesh(data=data, fsdp=fsdp)
    assert mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())
    # Auto axes: under Explicit ones a global product of two batches is refused.
    x = jax.device_put(jnp.ones((8, 3)), sharding.batch_sharding(mesh))
    np.testing.assert_array_equal(jax.jit(lambda x: x @ x.T)(x), np.full((8, 8), 3))


def test_a_mesh_that_is_not_all_devices_is_refused_with_the_numbers():
    with pytest.raises(UserError) as error:
        sharding.make_mesh(data=3, fsdp=2)
    assert str(error.value) == (
        "mesh.data=3 x mesh.fsdp=2 needs 6 devices, here are 8; set mesh.data=0 to "
        "take all that mesh.fsdp leaves"
    )
    with pytest.raises(UserError, match="mesh.fsdp=3"):
        sharding.make_mesh(data=0, fsdp=3)


@pytest.mark.parametrize(
    ("size", "nearest"), [(0, 8), (-8, 8), (3, 8), (11, 8), (13, 16), (100, 96)]
)
def test_a_batch_that_devices_cannot_share_is_refused_with_the_nearest(size, nearest):
    mesh = sharding.make_mesh(data=0, fsdp=2)
    with pytest.raises(UserError) as error:
        sharding.check_batch("evaluate.batch_size", size, mesh)
    assert str(error.value) == (
        f"evaluate.batch_size={size} must be a positive multiple of the 8 devices; "
        f"the nearest is {nearest}"
    )
    sharding.check_batch("evaluate.batch_size", nearest, mesh)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((12, 32), (None, "fsdp")),
        ((32, 12), ("fsdp",)),
        ((30, 12), (None, "fsdp")),  # 4 does not divide 30, though it is the larger
        ((3, 2, 16, 8), (None, None, "fsdp")),
        ((7, 9), ()),
    ],
)
def test_fsdp_splits_the_largest_axis_that_it_divides(shape, spec):
    mesh = sharding.make_mesh(data=0, fsdp=4)
    params = {"a": {"kernel": jnp.zeros(shape), "bias": jnp.zeros(16)}}
    placed = sharding.shardings(params, mesh)
    assert placed["a"]["kernel"].spec == PartitionSpec(*spec)
    assert placed["a"]["bias"].spec == PartitionSpec()


def test_without_fsdp_every_parameter_is_copied():
    params = {"kernel": jnp.zeros((8, 8)), "scale": jnp.zeros(8)}
    for placement in sharding.shardings(params, mesh_of(8)).values():
        assert placement.is_fully_replicated


def test_of_a_train_state_the_moments_lie_as_their_parameters_do():
    params = {
        "embed": {"embedding": jnp.zeros((16, 6))},
        "dense": {"kernel": jnp.zeros((6, 8)), "bias": jnp.zeros(8)},
    }
    state = optim.Optimiser(lambda _: 0.1).init(params)
    placed = sharding.shardings(state, mesh_of(8, fsdp=2))
    expected = {
        "embed/embedding": PartitionSpec("fsdp"),
        "dense/kernel": PartitionSpec(None, "fsdp"),
        "dense/bias": PartitionSpec(),
    }
    specs = {path: leaf.spec for path, leaf in tree.flatten(placed).items()}
    for name, spec in expected.items():
        # The parameter and its two moments.
        assert [specs.pop(p) for p in list(specs) if p.endswith(name)] == [spec] * 3
    assert set(specs.values()) == {PartitionSpec()}  # counters
    shards = jax.device_put(state, placed).params["dense"]["kernel"].addressable_shards
    assert {shard.data.shape for shard in shards} == {(6, 4)}


@pytest.mark.parametrize(("devices", "fsdp"), MESHES)
def test_a_placed_batch_is_the_same_global_array_on_any_mesh(devices, fsdp):
    mesh = mesh_of(devices, fsdp)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 4, 2, 3), np.uint8),
        "id": np.arange(16),
    }
    rows = sharding.local_rows(16, mesh)
    placed = sharding.place_batch(batch, rows, 16, mesh)
    for name, whole in batch.items():
        assert placed[name].dtype == jax.dtypes.canonicalize_dtype(whole.dtype)
        np.testing.assert_array_equal(placed[name], whole)
        assert len(placed[name].sharding.device_set) == devices
        shards = placed[name].addressable_shards
        assert {len(shard.data) for shard in shards} == {16 // devices}
        for shard in shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])


@pytest.mark.parametrize(("devices", "fsdp"), MESHES)
def test_one_process_holds_every_row_once_in_order(devices, fsdp):
    rows = sharding.local_rows(24, mesh_of(devices, fsdp))
    np.testing.assert_array_equal(rows, np.arange(24))


def test_rows_are_shared_by_data_then_fsdp():
    mesh = mesh_of(8, fsdp=2)
    whole = np.arange(8)
    placed = sharding.place_batch(whole, sharding.local_rows(8, mesh), 8, mesh)
    for shard in placed.addressable_shards:
        (data,), (fsdp,) = np.where(mesh.devices == shard.device)
        assert shard.data[0] == 2 * data + fsdp
