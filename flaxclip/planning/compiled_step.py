"""The training step of a run, compiled for a topology, and the compiled program's figures."""

import collections
import dataclasses
import re
import time
from typing import Any, Literal, NamedTuple

import jax

from flaxclip.chips import find_chip
from flaxclip.config import TrainConfig
from flaxclip.data.loader import open_source
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.flops import count_bfloat16_passes
from flaxclip.models.clip import check_tensor_divides
from flaxclip.optim import make_optimizer
from flaxclip.planning.account.account import AccountRow, make_account
from flaxclip.planning.account.kernels import is_kernel, states_cost
from flaxclip.planning.account.memory_traffic import hbm_traffic
from flaxclip.planning.collectives import (
    Kind,
    find_collectives,
    torus_axes,
)
from flaxclip.planning.hlo import Program, parse_program
from flaxclip.planning.topology import Topology
from flaxclip.sharding import make_mesh
from flaxclip.step_shapes import StepShape, check_steps_divide
from flaxclip.teachers.stored import teachers_of_corpus
from flaxclip.train_state import abstract_train_state
from flaxclip.train_step import abstract_inputs, make_train_step


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Exchanges of one kind over the same wires, in one step, of one chip."""

    kind: Kind
    network: Literal["ICI", "DCN"]
    """Within a slice, or between slices."""
    group_size: int
    """Chips that exchange with one another; between slices, the slices."""
    torus_axes: int
    """Dimensions of the network of chips that a group extends along; 0 between slices."""
    exchanges: int
    """Number of exchanges, those in loops counted each time."""
    operand_bytes: int
    """Bytes that a chip sends in."""
    received_bytes: float
    """Lower bound of the bytes that a chip receives, by `Collective.received_bytes`."""


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """One training step on one chip, as compiled."""

    argument_bytes: int
    """State, batch and any teachers; the new state replaces the old one in place."""
    peak_bytes: int
    """The arguments and everything else that is alive at once. This is what must fit: ViT-B/16 with
    256 pairs a v5e chip compiles (14.8 of 15.75 GiB), although XLA's temporaries and the arguments
    add up to 19.0."""
    matrix_flops: float
    """FLOPs of the matrix units, including recomputation, the loss and passes of float32 products;
    a chip's share, if evenly divided."""
    hbm_bytes: int
    """Lower bound of the bytes read and written."""
    estimated_cycles: int | None
    """The TPU compiler's own estimate of everything but collectives, and of custom kernels that of
    `kernel_cycles`; None for other devices."""
    traffic: tuple[Traffic, ...]
    account: tuple[AccountRow, ...]
    """`estimated_cycles` and `hbm_bytes`, by what they are spent on."""
    unpriced_kernels: int
    """Runs of custom kernels that state no cost, and count as no cycles."""
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The compiler's message for a step that needs more memory than a chip has."""

    needed_bytes: float
    available_bytes: float


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """One training step before compilation."""

    lowered: jax.stages.Lowered
    devices: list[jax.Device]
    """Devices in the order of the mesh."""
    matrix_flops: float
    """See `CompiledStep`."""


class ShapedStep(NamedTuple):
    """A training step for batches of one shape, or the compiler's refusal."""

    shape: StepShape
    step: CompiledStep | Refusal

    @property
    def used_bytes(self) -> float:
        """Bytes of a chip's memory used, or needed if there is less."""
        if isinstance(self.step, CompiledStep):
            return self.step.peak_bytes
        return self.step.needed_bytes


def planned_teachers(config: TrainConfig) -> tuple[StoredTeacher, ...]:
    """The teachers whose vectors are in the corpus of `config`, if it is to learn from these.

    Raises:
        InputError: as `open_source` and `teachers_of_corpus`.
    """
    if not config.data.teacher_vectors:
        return ()
    return teachers_of_corpus(config, open_source(config.data, config.model.vision.image_size))


def lower_step(
    config: TrainConfig, topology: Topology, shape: StepShape | None = None
) -> LoweredStep:
    """The step that `flaxclip.train` would run, lowered for the devices of `topology`.

    It is that for batches of `shape`, one of the run's; for those of its only one, if None.

    Raises:
        InputError: the mesh does not fit the devices, the batch does not fit the mesh, or the heads
            do not.
    """
    mesh = make_mesh(config.mesh, topology.devices)
    check_steps_divide(config, mesh)
    check_tensor_divides(config.model, config.mesh.tensor)
    tx, schedule = make_optimizer(config.optim, config.steps)
    ema = config.optim.ema_decay is not None
    state = abstract_train_state(config.model, tx, mesh, ema, config.adapters)
    stored = planned_teachers(config)
    # Before the mesh is set: the shapes of a teacher take a random key, which is computed at once.
    inputs = abstract_inputs(config, mesh, stored, shape)
    with jax.set_mesh(mesh):
        jitted: Any = make_train_step(config, tx, schedule, mesh, state, stored)
        traced = jitted.trace(state, *inputs)
        platform = topology.devices[0].platform
        lowered = traced.lower(lowering_platforms=(platform,))
    flops = count_bfloat16_passes(traced.jaxpr) / mesh.size
    return LoweredStep(lowered, list(mesh.devices.flat), flops)


def compile_step(step: LoweredStep) -> CompiledStep | Refusal:
    """Compile a step, and read the figures of the compiled program."""
    start = time.perf_counter()
    try:
        compiled = step.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = parse_refusal(str(error))
        if refusal is None:
            raise
        return refusal
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    assert memory is not None, "both of XLA's compilers tell"
    assert text is not None, "both of XLA's compilers tell"
    program = parse_program(text)
    account = make_account(program, find_chip(step.devices[0].device_kind))
    return CompiledStep(
        argument_bytes=memory.argument_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        matrix_flops=step.matrix_flops,
        hbm_bytes=hbm_traffic(program),
        estimated_cycles=sum(row.cycles for row in account) or None,
        traffic=_traffic(program, step.devices),
        account=account,
        unpriced_kernels=_count_unpriced_kernels(program),
        compile_seconds=time.perf_counter() - start,
    )


def estimated_cycles(program: Program) -> int | None:
    """Sum of the compiler's estimates for all instructions, repeats included; None without any."""
    estimates = [
        line.estimated_cycles * repeats
        for computation, repeats in program.running()
        for line in computation.instructions.values()
        if line.estimated_cycles is not None
    ]
    return sum(estimates) if estimates else None


def _count_unpriced_kernels(program: Program) -> int:
    return sum(
        repeats
        for computation, repeats in program.running()
        for line in computation.instructions.values()
        if is_kernel(line) and not states_cost(line)
    )


def _traffic(program: Program, devices: list[jax.Device]) -> tuple[Traffic, ...]:
    # Devices without coordinates count as lying on one line.
    coords = [getattr(device, "coords", (index,)) for index, device in enumerate(devices)]
    totals: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0, 0.0])
    for exchange in find_collectives(program):
        network, axes = (
            ("DCN", 0) if exchange.between_slices else ("ICI", torus_axes(exchange, coords))
        )
        key = (exchange.kind, network, exchange.group_size, axes)
        total = totals[key]
        total[0] += exchange.repeats
        total[1] += exchange.repeats * exchange.operand_bytes
        total[2] += exchange.repeats * exchange.received_bytes
    rows = [Traffic(*key, *total) for key, total in totals.items()]
    return tuple(sorted(rows, key=lambda row: -row.received_bytes))


def parse_refusal(message: str) -> Refusal | None:
    """The two amounts in the compiler's message; None if it is about something else."""
    # "… total memory required for HLO temporaries (100.28G) exceeds available HBM (15.75G)", or
    # "Used 17.50G of 15.75G hbm".
    amount = r"([\d.]+)([KMGT]?)"
    found = re.search(rf"\({amount}\) exceeds available HBM \({amount}\)", message) or re.search(
        rf"Used {amount} of {amount} hbm", message
    )
    if found is None:
        return None
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed, needed_unit, available, available_unit = found.groups()
    return Refusal(float(needed) * units[needed_unit], float(available) * units[available_unit])
