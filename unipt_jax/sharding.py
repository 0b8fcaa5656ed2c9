"""Devices as one mesh, parameters and batches placed on it.

The program is written for the global batch; XLA places the collectives. Mesh axes:
`data` splits the batch, `fsdp` splits the batch and the large parameters.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from unipt_jax import tree
from unipt_jax.errors import UserError

BATCH = PartitionSpec(("data", "fsdp"))
# Kernels and embeddings are split over `fsdp`; vectors and scalars are copied.
RULES = (("(kernel|embedding)$", "split"), ("", "copy"))


def make_mesh(*, data: int, fsdp: int) -> Mesh:
    """A mesh over all devices of all processes. data=0 takes what fsdp leaves.

    Raises UserError where data x fsdp is not the number of devices.
    """
    devices = jax.device_count()
    if fsdp < 1 or devices % fsdp:
        raise UserError(
            f"mesh.fsdp={fsdp} must be a divisor of the number of devices, here {devices}"
        )
    data = data or devices // fsdp
    if data * fsdp != devices:
        raise UserError(
            f"mesh.data={data} x mesh.fsdp={fsdp} needs {data * fsdp} devices, here "
            f"are {devices}; set mesh.data=0 to take all that mesh.fsdp leaves"
        )
    return jax.make_mesh(
        (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
    )


def local_mesh() -> Mesh:
    """A mesh over the devices of this process alone, for work that needs no other."""
    devices = jax.local_devices()
    return jax.make_mesh(
        (len(devices), 1),
        ("data", "fsdp"),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices,
    )


def per_device(batch_size: int) -> int:
    """Pictures a device embeds at a time; of 0, what is fast: on a CPU's caches few."""
    return batch_size or (16 if jax.default_backend() == "cpu" else 64)


def check_batch(name: str, size: int, mesh: Mesh) -> None:
    """Raises UserError unless the devices can share a batch of `size` evenly."""
    if size < 1 or size % mesh.size:
        raise UserError(
            f"{name}={size} must be a positive multiple of the {mesh.size} devices; "
            f"the nearest is {max(1, round(size / mesh.size)) * mesh.size}"
        )


def shardings(values: Any, mesh: Mesh) -> Any:
    """The placement of each leaf of a train state or of parameters, by `RULES`."""

    def place(leaf: Any, rule: str) -> NamedSharding:
        return NamedSharding(
            mesh, _split(leaf.shape, mesh) if rule == "split" else PartitionSpec()
        )

    return jax.tree.map(place, values, tree.assign(values, RULES))


def _split(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Splits the largest axis that `fsdp` divides; copies where there is none."""
    parts = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or not axes:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * largest, "fsdp")


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis shared evenly by all devices."""
    return NamedSharding(mesh, BATCH)


def place_array(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """An array that every process holds whole -> a global array, placed so."""
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: value[index]
    )


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Which rows of the global batch this process's devices hold, in ascending order."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in parts.values()]
    return np.unique(np.concatenate(rows))


def place_batch(batch: Any, rows: np.ndarray, batch_size: int, mesh: Mesh) -> Any:
    """This process's rows of a batch (numpy) -> global arrays on the devices.

    rows: what `local_rows` says the rows are.
    """
    sharding = batch_sharding(mesh)

    def place(local: np.ndarray) -> jax.Array:
        shape = (batch_size, *local.shape[1:])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            wanted = np.arange(batch_size)[index[0]]
            first = np.searchsorted(rows, wanted[0])
            return local[first : first + len(wanted)]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, batch)
