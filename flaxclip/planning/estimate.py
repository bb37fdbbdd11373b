"""Estimates of a step's needs, by arithmetic alone, to decide which steps are worth compiling."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxclip.chips import Chip
from flaxclip.config import TrainConfig
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.fine_tuning.lora import LoRA
from flaxclip.flops import count_bfloat16_passes
from flaxclip.losses.pairs import choose_implementation
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, example_inputs
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.cost import model_cost
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.planning.topology import Topology
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.step_shapes import StepShape, step_shapes
from flaxclip.teachers.lesson import COMPUTE as TEACHER_COMPUTE
from flaxclip.teachers.weights import abstract_teacher, teacher_specs
from flaxclip.train_state import abstract_train_state, bytes_per_device


def _towers(
    config: CLIPConfig,
    compute: ComputeConfig,
    kept_patches: int | None,
    patches: int | None,
    batch_size: int,
) -> tuple[Callable[[Any, Any], Any], Any, Any]:
    """The towers as a function of parameters and inputs, and the shapes of both."""
    variables = abstract_variables(config)
    model = CLIP(config, compute)
    # Batch norms compute with their statistics, of which the shapes are not enough.
    statistics = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        {name: tree for name, tree in variables.items() if name != "params"},
    )
    patch_ids = None if kept_patches is None else jnp.zeros((batch_size, kept_patches), jnp.int32)

    def run(params, batch):
        zimg, ztxt, _ = model.apply(statistics | {"params": params}, *batch, patch_ids=patch_ids)
        return zimg, ztxt

    return run, variables["params"], example_inputs(config, batch_size, patches)


@functools.cache
def saved_bytes(
    config: CLIPConfig,
    compute: ComputeConfig,
    kept_patches: int | None = None,
    patches: int | None = None,
) -> int:
    """Bytes of activations that the towers' forward pass keeps for the backward pass, for one pair.

    With `patches`, its image is at its own aspect ratio, and has room for so many. Traced from the
    model itself, whatever its rematerialisation, without compiling.
    """

    def saved(batch_size: int) -> int:
        run, params, batch = _towers(config, compute, kept_patches, patches, batch_size)

        def forward(params, batch):
            return jax.vjp(lambda params: run(params, batch), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(forward, params, batch))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    # The parameters are kept too, whatever the batch.
    return saved(2) - saved(1)


@functools.cache
def matrix_flops(
    config: CLIPConfig,
    compute: ComputeConfig,
    kept_patches: int | None = None,
    patches: int | None = None,
) -> int:
    """FLOPs of the matrix units in the towers' forward and backward pass, for one pair.

    Traced as `saved_bytes` is, and recomputation is included.
    """
    run, params, batch = _towers(config, compute, kept_patches, patches, batch_size=1)

    def both(params, batch):
        z, pullback = jax.vjp(lambda params: run(params, batch), params)
        return pullback(z)

    return count_bfloat16_passes(jax.make_jaxpr(both)(params, batch))


def state_bytes(config: TrainConfig, topology: Topology) -> int:
    """Bytes of parameters and optimizer state on one chip, as they are divided."""
    devices = tuple(topology.devices)
    return _state_bytes(config.model, config.optim, config.mesh, devices, config.adapters)


@functools.cache
def _state_bytes(
    model: CLIPConfig,
    optim: OptimConfig,
    mesh: MeshConfig,
    devices: tuple[jax.Device, ...],
    lora: LoRA | None,
) -> int:
    # The number of steps decides the schedule alone.
    tx, _ = make_optimizer(optim, steps=optim.warmup_steps + 1)
    state = abstract_train_state(
        model, tx, make_mesh(mesh, list(devices)), optim.ema_decay is not None, lora
    )
    return bytes_per_device(state)


def teacher_bytes(config: TrainConfig, topology: Topology) -> int:
    """Bytes of the teachers' parameters on one chip, as they are divided."""
    mesh = make_mesh(config.mesh, topology.devices)
    return sum(
        bytes_per_device(abstract_teacher(spec.model, mesh)) for spec in teacher_specs(config)
    )


@functools.cache
def teacher_matrix_flops(config: CLIPConfig) -> int:
    """FLOPs of the matrix units in a teacher's forward pass, for one pair."""
    run, params, batch = _towers(config, TEACHER_COMPUTE, None, None, batch_size=1)
    return count_bfloat16_passes(jax.make_jaxpr(run)(params, batch))


@dataclasses.dataclass(frozen=True)
class EstimatedMemory:
    """Memory of one chip, in bytes."""

    fixed: float
    """State, gradients and teachers, independent of the batch."""
    growing: float
    """Activations that the towers keep, and the matrix of logits."""

    @property
    def total(self) -> float:
        return self.fixed + self.growing


def estimated_memory(
    config: TrainConfig, topology: Topology, shape: StepShape | None = None
) -> EstimatedMemory:
    """Of steps of `shape`; if None, of the run's shape that takes the most."""
    if shape is None:
        every = (estimated_memory(config, topology, shape) for shape in step_shapes(config))
        return max(every, key=lambda memory: memory.total)
    chips, batch_size = len(topology.devices), shape.pairs
    pairs = batch_size / chips
    parameter_bytes = 4 * model_cost(config.model).parameters
    gradients = parameter_bytes / (config.mesh.fsdp * config.mesh.tensor)
    # The matrix and its gradient, unless they never exist as a whole.
    implementation = choose_implementation(config.loss_form, batch_size, chips)
    logits = 2 * 4 * batch_size**2 / chips if implementation == "gathered" else 0
    if config.teacher or config.data.teacher_vectors:
        # Of student and teacher, and the gradient; those of several teachers one after the other.
        implementation = choose_implementation(config.loss_form, batch_size, chips, matrices=2)
        logits += 3 * 4 * batch_size**2 / chips if implementation == "gathered" else 0
    saved = saved_bytes(config.model, config.compute, config.kept_patches, shape.patches)
    activations = pairs / config.accumulate * saved
    fixed = state_bytes(config, topology) + gradients + teacher_bytes(config, topology)
    return EstimatedMemory(fixed, activations + logits)


def estimated_seconds(
    config: TrainConfig, topology: Topology, chip: Chip, stored: Sequence[StoredTeacher] = ()
) -> float:
    """Seconds of a step, if only matrix products and the exchange of parameters took time; if steps
    have several shapes, on average.

    `stored` are the teachers whose vectors the corpus holds.
    """
    shapes = step_shapes(config)
    return sum(_seconds(config, topology, chip, shape, stored) for shape in shapes) / len(shapes)


def _seconds(
    config: TrainConfig,
    topology: Topology,
    chip: Chip,
    shape: StepShape,
    stored: Sequence[StoredTeacher],
) -> float:
    chips, fsdp, batch_size = len(topology.devices), config.mesh.fsdp, shape.pairs
    # Float32 products in six passes, once forward and twice backward.
    loss = 3 * 6 * 2 * batch_size**2 * config.model.embed_dim
    towers = matrix_flops(config.model, config.compute, config.kept_patches, shape.patches)
    # Of teachers forward alone, as their vectors in the loss are: two matrices, one gradient.
    live = [spec.model for spec in teacher_specs(config)]
    widths = [*(model.embed_dim for model in live), *(teacher.width for teacher in stored)]
    teachers = sum(batch_size * teacher_matrix_flops(model) for model in live)
    losses = sum(6 * 2 * batch_size**2 * width + loss for width in widths)
    products = batch_size * towers + loss + teachers + losses
    parameter_bytes = 4 * model_cost(config.model).parameters / config.mesh.tensor
    # Gathered for the forward and for the backward pass, and gradients reduced over all.
    received = 2 * parameter_bytes * (fsdp - 1) / fsdp + 2 * parameter_bytes
    assert chip.ici_bandwidth is not None, "of chips that can be planned for, all figures are known"
    return products / chips / chip.peak_flops + received / chip.ici_bandwidth
