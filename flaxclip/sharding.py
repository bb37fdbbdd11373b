"""The device mesh, and the one table that says which array axis lies along which mesh axis."""

import dataclasses
import os
import sys
import threading
from typing import Any

import jax
from jax._src import distributed
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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

    Raises:
        InputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    rest = config.fsdp * config.tensor
    data = len(devices) // rest if config.data == -1 else config.data
    if data * rest != len(devices) or data < 1:
        raise InputError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} "
            f"does not fit {len(devices)} devices\n"
            f"the three must multiply to {len(devices)}; data=-1 takes what the others leave"
        )
    # Axes are Auto: the partitioner propagates shardings from the few that we pin. With
    # make_mesh's default, Explicit, Linen's matrix products of sharded parameters raise.
    return jax.make_mesh(
        (data, config.fsdp, config.tensor),
        ("data", "fsdp", "tensor"),
        axis_types=(AxisType.Auto,) * 3,
        devices=devices,
    )


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
