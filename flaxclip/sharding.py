"""The device mesh, and the one table that maps the axes of arrays to those of the mesh."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from flaxclip.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")

BATCH_AXES = ("data", "fsdp")
"""Mesh axes that the examples of a batch are divided over."""

LOGICAL_AXIS_RULES: dict[str, tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "lookup_batch": ("data",),
    "layers": (),
    "embed": ("fsdp",),
    "vocab": (),
    "heads": ("tensor",),
    "mlp": ("tensor",),
}
"""Logical axis of a parameter or an activation -> mesh axes that divide it; if empty, not divided.
`lookup_batch` is the batch during `embedding_lookup`, when fsdp divides channels."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis. `data` of -1 takes all that the other axes leave."""

    data: int = -1
    """Copies of the model, each on its own part of the batch."""
    fsdp: int = 1
    """Devices that parameters and optimizer state are divided over; divides the batch too."""
    tensor: int = 1
    """Devices that attention heads and MLP channels are divided over."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices` (all of them by default) with axes data, fsdp and tensor.

    Several TPU slices lie along `data`: between them travels only what copies of the model
    exchange, gradients and embeddings.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or a copy of the model
            would lie across slices.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    data = len(devices) // rest if config.data == -1 else config.data
    if data * rest != len(devices) or data < 1:
        raise InputError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} "
            f"does not fit {len(devices)} devices\n{_mesh_advice(config, len(devices))}"
        )
    # Axes are Auto: the partitioner propagates shardings from the few that we pin. With
    # Explicit ones Linen's matrix products of sharded parameters raise.
    return Mesh(
        _arrange(devices, (data, config.fsdp, config.tensor)),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
    )


def _mesh_advice(config: MeshConfig, devices: int) -> str:
    """The nearest sizes that fit, with one of them changed at a time."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]

    def nearest(size: int, others: int) -> int | None:
        fitting = [n for n in divisors if devices % (n * others) == 0]
        return min(fitting, key=lambda n: abs(n - size), default=None)

    advice = []
    if devices % (config.fsdp * config.tensor) == 0:
        advice.append(f"--mesh.data {devices // (config.fsdp * config.tensor)}, or -1 for all")
    else:
        for name, others in (("fsdp", config.tensor), ("tensor", config.fsdp)):
            size = nearest(getattr(config, name), others)
            if size is not None:
                advice.append(f"--mesh.{name} {size}")
        if not advice:
            advice.append(f"--mesh.fsdp {nearest(config.fsdp, 1)} --mesh.tensor 1")
    return f"the three must multiply to {devices}: try {' or '.join(advice)}"


def _arrange(devices: list[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    """Devices of a mesh of that shape, such that neighbours in it are neighbours in the network.

    Devices other than TPUs are ordered by host: those of a host lie along the last axes.
    """
    if devices[0].platform != "tpu":
        return np.asarray(devices, object).reshape(shape)
    _, fsdp, tensor = shape
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, "slice_index", 0), []).append(device)
    size = len(devices) // len(slices)
    if size % (fsdp * tensor):
        raise InputError(
            f"mesh fsdp={fsdp} x tensor={tensor} does not fit into a slice of {size} chips, of "
            f"which there are {len(slices)}\n"
            f"only data lies across slices: choose an fsdp that divides {size // tensor or size}"
        )
    inner = size // (fsdp * tensor), fsdp, tensor
    return np.concatenate([_arrange_slice(slices[index], inner) for index in sorted(slices)])


def _arrange_slice(devices: list[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        # No product of whole dimensions of the torus: an axis lies along a part of one.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def count_shards(logical_axis: str, mesh: Mesh | AbstractMesh) -> int:
    """Number of parts that `mesh` divides an array's logical axis into, by `LOGICAL_AXIS_RULES`."""
    return _size(LOGICAL_AXIS_RULES[logical_axis], mesh)


def check_batch_divides(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise `InputError` unless every device of the mesh's batch axes gets equally many examples.

    This holds for each of the `accumulate` parts of a batch.
    """
    shards = count_shards("batch", mesh)
    unit = shards * accumulate
    if batch_size % unit:
        lower = batch_size // unit * unit
        in_parts = "" if accumulate == 1 else f" in each of {accumulate} parts (accumulate)"
        axes = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in BATCH_AXES)
        raise InputError(
            f"batch size {batch_size} is not divisible by the {shards} devices "
            f"it is divided over (mesh {axes}){in_parts}\n"
            f"choose {lower or unit} or {lower + unit}, or another mesh"
            f"{' or accumulate' if accumulate > 1 else ''}"
        )


def pair_axes(batch_size: int, mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes that the loss divides pairs over.

    Devices along `tensor` hold the same embeddings, and would all compute the same: if the batch
    can be divided further, each takes a part.
    """
    return tuple(mesh.axis_names) if batch_size % mesh.size == 0 else BATCH_AXES


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding with the first axis divided over the batch axes, the others not divided."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def constrain(x: Shaped[Array, "*shape"], *logical_axes: str | None) -> Shaped[Array, "*shape"]:
    """Pin an activation to the context's mesh: `constrain(x, "batch", None, "mlp")`.

    If parameters are divided over fsdp too, the partitioner would rather leave them in place, and
    let every device compute a part of the channels of all examples. So both sides of a product with
    such parameters are pinned: in the gradient's product their roles are reversed.

    Args:
        x: an activation of a batch. It is returned unchanged if there is no mesh, or if the mesh
            does not divide the batch, such as the one example of an initialization.
        logical_axes: for each axis of `x`, a name of `LOGICAL_AXIS_RULES`, or None if it is not
            divided; None may be left out at the end. An axis also stays whole if its mesh axes do
            not divide it evenly.

    Raises:
        ValueError: two axes map to the same mesh axis, or there are more than `x` has.
        KeyError: a logical axis has no rule.
    """
    if len(logical_axes) > x.ndim:
        raise ValueError(f"logical axes {logical_axes} for an array of shape {x.shape}")
    _rules(logical_axes)  # raises without a mesh too
    mesh = jax.sharding.get_abstract_mesh()
    if not _is_ours(mesh):
        return x
    for name, size in zip(logical_axes, x.shape, strict=False):
        if name in ("batch", "lookup_batch") and size % count_shards(name, mesh):
            return x
    return jax.lax.with_sharding_constraint(x, _partition(logical_axes, x.shape, mesh))


def on_each_device(
    function: Callable[..., tuple[Shaped[Array, "..."], ...]],
    operands: Sequence[tuple[Shaped[Array, "..."], Sequence[str | None]]],
    result_axes: Sequence[str | None],
) -> tuple[Shaped[Array, "..."], ...]:
    """`function` of each device's own part of activations, for what XLA cannot divide by itself.

    Args:
        function: takes the operands, and returns arrays of the first one's shape.
        operands: arrays, each with its logical axes as in `constrain`.
        result_axes: those of each result.
    """
    arrays = [array for array, _ in operands]
    mesh = jax.sharding.get_abstract_mesh()
    if not _is_ours(mesh) or mesh.size == 1:
        return function(*arrays)
    on_parts = jax.shard_map(
        function,
        in_specs=tuple(_partition(axes, array.shape, mesh) for array, axes in operands),
        out_specs=_partition(result_axes, arrays[0].shape, mesh),
        check_vma=False,
    )
    return on_parts(*arrays)


def embedding_lookup(
    table: Shaped[Array, "rows w"], indices: Int[Array, "b l"]
) -> Shaped[Array, "b l w"]:
    """`table[indices]`, on the devices that hold the channels if these are divided over fsdp.

    Converting the result to the sharding of `constrain(x, "batch", ...)`, and its gradient back, is
    an all-to-all of a device's own part. By default, the partitioner would gather the activations
    of the whole batch on every device, both ways.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _is_ours(mesh) or table.shape[-1] % count_shards("embed", mesh):
        return table[indices]
    indices = constrain(indices, "lookup_batch", None)
    return constrain(table[indices], "lookup_batch", None, "embed")


def mesh_shardings(logical_specs: Any, shapes: Any, mesh: Mesh) -> Any:
    """Shardings for a tree of logical `PartitionSpec`s, by `LOGICAL_AXIS_RULES`.

    An axis that its mesh axis does not divide evenly stays whole, e.g. 1664 channels over 512
    devices: an uneven division would cost more than it saves.

    Raises:
        ValueError: two axes of one array map to the same mesh axis.
        KeyError: a logical axis has no rule.
    """

    def to_sharding(spec: PartitionSpec, shape: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, _partition(tuple(spec), shape.shape, mesh))

    return jax.tree.map(
        to_sharding, logical_specs, shapes, is_leaf=lambda node: isinstance(node, PartitionSpec)
    )


def is_for_one_cpu() -> bool:
    """True if the program that is being traced is for a single CPU device."""
    return target_platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


def target_platform() -> str:
    """JAX's name of the platform (`cpu`, `gpu`, `tpu`) that the traced program is for.

    It is that of the current mesh's devices, otherwise that of JAX's default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def target_device_kind() -> str:
    """JAX's name of the devices that the traced program is for, as `target_platform`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


def _is_ours(mesh: AbstractMesh) -> bool:
    """True unless no mesh is set, or one with axes of other names."""
    return set(MESH_AXES) <= set(mesh.axis_names)


def _rules(logical_axes: Sequence[str | None]) -> list[tuple[str, ...]]:
    """Mesh axes that each logical axis is divided over; raises `ValueError` if two collide."""
    rules = [() if name is None else LOGICAL_AXIS_RULES[name] for name in logical_axes]
    used = [axis for axes in rules for axis in axes]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {tuple(logical_axes)} collide on mesh axes {rules}")
    return rules


def _partition(
    logical_axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Mesh axes by the rules, except for those that do not divide their axis of `shape`."""
    parts = zip(_rules(logical_axes), shape, strict=False)
    return PartitionSpec(*(axes if size % _size(axes, mesh) == 0 else None for axes, size in parts))


def _size(axes: tuple[str, ...], mesh: Mesh | AbstractMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)
