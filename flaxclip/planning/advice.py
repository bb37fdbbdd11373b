"""Advice on what to change if a step does not fit."""

import contextlib
import dataclasses
from collections.abc import Iterator

from jax.sharding import Mesh

from flaxclip.chips import find_chip
from flaxclip.config import TrainConfig
from flaxclip.errors import InputError
from flaxclip.planning.compiled_step import Refusal, parse_refusal
from flaxclip.planning.estimate import estimated_memory
from flaxclip.planning.report import binary
from flaxclip.planning.search import batch_flag, batch_of, has_room, with_batch
from flaxclip.planning.topology import Topology
from flaxclip.sharding import count_shards, make_mesh
from flaxclip.step_shapes import mean_pairs
from flaxclip.xla_errors import is_xla_error


@contextlib.contextmanager
def refusal_explained(config: TrainConfig, mesh: Mesh) -> Iterator[None]:
    """Turn the compiler's error for a step that does not fit into an `InputError` with advice."""
    try:
        yield
    except Exception as error:
        refusal = parse_refusal(str(error)) if is_xla_error(error) else None
        if refusal is None:
            raise
        devices = list(mesh.devices.flat)
        kind = devices[0].device_kind
        here = Topology(f"{len(devices)} x {kind}", devices, find_chip(kind))
        raise InputError(refusal_message(config, here, refusal)) from None


def refusal_message(config: TrainConfig, topology: Topology, refusal: Refusal) -> str:
    """A message that names the flags to change, estimated with the compiler's correction."""
    memory = estimated_memory(config, topology)
    correction = max(1.0, (refusal.needed_bytes - memory.fixed) / memory.growing)

    def fits(changed: TrainConfig) -> bool:
        memory = estimated_memory(changed, topology)
        return memory.fixed + memory.growing * correction <= refusal.available_bytes

    chips = len(topology.devices)
    shards = count_shards("batch", make_mesh(config.mesh, topology.devices))
    advice = []
    for smaller in smaller_batches(config, shards):
        if fits(smaller):
            pairs = mean_pairs(smaller) / chips
            advice.append(f"{batch_flag(smaller)} ({pairs:g} pairs a chip)")
            break
    fsdp = config.mesh.fsdp
    while chips % (2 * fsdp * config.mesh.tensor) == 0:
        fsdp *= 2
        mesh = dataclasses.replace(config.mesh, data=-1, fsdp=fsdp)
        if fits(dataclasses.replace(config, mesh=mesh)):
            advice.append(f"--mesh.fsdp {fsdp}")
            break
    return (
        f"the step does not fit {topology.name}: it needs {binary(refusal.needed_bytes)}B of "
        f"{binary(refusal.available_bytes)}B a chip\n"
        + (f"try {' or '.join(advice)}" if advice else "name a larger topology")
        + ", or let --search mesh batch choose"
    )


def smaller_batches(config: TrainConfig, shards: int) -> Iterator[TrainConfig]:
    """`config` with half the batch, a quarter and so on, while it has room for each of `shards`."""
    batch_size = batch_of(config)
    while batch_size % (2 * shards) == 0 and has_room(config, batch_size // 2):
        batch_size //= 2
        yield with_batch(config, batch_size)
