"""The device mesh, and the one table that says which array axis lies along which mesh axis."""

import dataclasses
import math
import os
import sys
import threading
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Shaped

from flaxclip.errors import InputError
from flaxclip.exit_codes import PREEMPTED

BATCH_AXES = ("data", "fsdp")
"""Mesh axes that the examples of a batch are divided over."""

LOGICAL_AXIS_RULES: dict[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "vocab": None,
    "heads": "tensor",
    "mlp": "tensor",
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis. `data` of -1 takes all that the others leave."""

    data: int = -1
    """Copies of the model, each on its own part of the batch."""
    fsdp: int = 1
    """Devices that parameters and optimizer state are divided over; divides the batch too."""
    tensor: int = 1
    """Devices that attention heads and MLP channels are divided over."""


def join_hosts(timeout_seconds: float = 300.0) -> None:
    """Connect to the other hosts of the job, where a cluster says that there are some.

    Where they are not found in time, the process ends with the code of a restart: they may come.
    """
    seconds = int(timeout_seconds)
    # JAX would abort the process, with a stack of its own. This is earlier, and says why.
    given_up = threading.Timer(seconds, _give_up_joining, [seconds])
    given_up.daemon = True
    given_up.start()
    try:
        jax.distributed.initialize(
            initialization_timeout=seconds + 30,
            # Later than the watchdog, which knows the lost host's name.
            heartbeat_timeout_seconds=2 * seconds,
            shutdown_timeout_seconds=seconds,
        )
    except ValueError as error:
        # What JAX says where it finds no TPU pod, SLURM, Open MPI or Kubernetes job around it.
        if "coordinator_address should be defined" not in str(error):
            raise
    finally:
        given_up.cancel()


def _give_up_joining(seconds: int) -> None:
    job = distributed.global_state
    print(
        f"flaxclip: the hosts of this job did not find each other in {seconds} s\n"
        f"this is host {job.process_id}; host 0 is to be reached at {job.coordinator_address}\n"
        "are all of them started, and can they reach that address?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(PREEMPTED)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices` (all of them by default) with axes data, fsdp and tensor.

    Several TPU slices lie along `data`: what travels between them is what copies of the model have
    to tell each other, gradients and embeddings.

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
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
    )


def _mesh_advice(config: MeshConfig, devices: int) -> str:
    """The nearest sizes that fit, one of them changed at a time."""
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

    Other than TPUs come host by host: those of a host lie along the last axes.
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


def check_batch_divides(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raise `InputError` unless every device of the mesh's batch axes gets as many examples.

    In each of the `accumulate` parts of a batch, that is.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    unit = shards * accumulate
    if batch_size % unit:
        lower = batch_size // unit * unit
        in_parts = "" if accumulate == 1 else f" in each of {accumulate} parts (accumulate)"
        raise InputError(
            f"batch size {batch_size} is not divisible by the {shards} devices "
            f"it is divided over (mesh data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']})"
            f"{in_parts}\n"
            f"choose {lower or unit} or {lower + unit}, or another mesh"
            f"{' or accumulate' if accumulate > 1 else ''}"
        )


def pair_axes(batch_size: int, mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes that the loss divides pairs over.

    Devices along `tensor` hold the same embeddings, and would all compute the same: where the batch
    is divisible once more, each takes its part.
    """
    return tuple(mesh.axis_names) if batch_size % mesh.size == 0 else BATCH_AXES


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis divided over the batch axes, the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def divide_batch(
    x: Shaped[Array, "b ... c"], channels: str | None = None
) -> Shaped[Array, "b ... c"]:
    """Pin activations to the batch axes of the context's mesh, if there is one that divides them.

    Where parameters are divided over fsdp too, the partitioner would rather leave them where they
    are, and have every device compute a part of the channels of all examples. So both sides of a
    product with such parameters are pinned: the gradient's product has them the other way around.

    Args:
        x: activations.
        channels: the mesh axis that their last axis lies along, where that divides it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH_AXES) <= set(mesh.axis_names):
        return x
    if x.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
        return x
    if channels is not None and x.shape[-1] % mesh.shape[channels]:
        channels = None  # as in `mesh_shardings` for the parameters
    between = (None,) * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, *between, channels))


def look_up(table: Shaped[Array, "rows w"], indices: Int[Array, "b l"]) -> Shaped[Array, "b l w"]:
    """`table[indices]`, on the devices that hold the channels where these are divided over fsdp.

    From there to where `divide_batch` wants activations, and back for their gradient, is an
    all-to-all of a device's own part. Left alone, the partitioner would gather the activations of
    the whole batch on every device, both ways.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not set(BATCH_AXES) <= set(mesh.axis_names):
        return table[indices]
    if indices.shape[0] % mesh.shape["data"] or table.shape[-1] % mesh.shape["fsdp"]:
        return table[indices]
    indices = jax.lax.with_sharding_constraint(indices, PartitionSpec("data"))
    return jax.lax.with_sharding_constraint(table[indices], PartitionSpec("data", None, "fsdp"))


def mesh_shardings(logical_specs: Any, shapes: Any, mesh: Mesh) -> Any:
    """Shardings for a tree of logical `PartitionSpec`s, by `LOGICAL_AXIS_RULES`.

    An axis that its mesh axis does not divide stays whole: 1664 channels over 512 devices cannot
    be divided evenly, and an uneven division would cost more than it saves.

    Raises:
        ValueError: two axes of one array map to the same mesh axis.
        KeyError: a logical axis has no rule.
    """

    def to_sharding(spec: PartitionSpec, shape: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [None if name is None else LOGICAL_AXIS_RULES[name] for name in spec]
        used = [axis for axis in axes if axis is not None]
        if len(used) != len(set(used)):
            raise ValueError(f"logical axes {spec} collide on mesh axes {axes}")
        sizes = shape.shape[: len(axes)]
        return NamedSharding(
            mesh,
            PartitionSpec(
                *(
                    axis if axis is not None and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(axes, sizes, strict=True)
                )
            ),
        )

    return jax.tree.map(
        to_sharding, logical_specs, shapes, is_leaf=lambda node: isinstance(node, PartitionSpec)
    )
