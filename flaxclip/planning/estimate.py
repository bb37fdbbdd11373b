"""Estimates of a step's needs, by arithmetic alone, to decide which steps are worth compiling."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxclip.chips import Chip
from flaxclip.config import TrainConfig
from flaxclip.flops import count_bfloat16_passes
from flaxclip.losses.pairs import choose_implementation
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, example_inputs
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.cost import model_cost
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.planning.topology import Topology
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train_state import abstract_train_state, bytes_per_device


def _towers(
    config: CLIPConfig, compute: ComputeConfig, kept_patches: int | None, batch_size: int
) -> tuple[Callable[[Any, Any], Any], Any, Any]:
    """The towers as a function of parameters and inputs, and the shapes of both."""
    variables = abstract_variables(config)
    model = CLIP(config, compute)
    patch_ids = None if kept_patches is None else jnp.zeros((batch_size, kept_patches), jnp.int32)

    def run(params, batch):
        zimg, ztxt, _ = model.apply(variables | {"params": params}, *batch, patch_ids=patch_ids)
        return zimg, ztxt

    return run, variables["params"], example_inputs(config, batch_size)


@functools.cache
def saved_bytes(config: CLIPConfig, compute: ComputeConfig, kept_patches: int | None = None) -> int:
    """Bytes of activations that the towers' forward pass keeps for the backward pass, for one pair.

    Traced from the model itself, whatever its rematerialisation, without compiling.
    """

    def saved(batch_size: int) -> int:
        run, params, batch = _towers(config, compute, kept_patches, batch_size)

        def forward(params, batch):
            return jax.vjp(lambda params: run(params, batch), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(forward, params, batch))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    # The parameters are kept too, whatever the batch.
    return saved(2) - saved(1)


@functools.cache
def matrix_flops(
    config: CLIPConfig, compute: ComputeConfig, kept_patches: int | None = None
) -> int:
    """FLOPs of the matrix units in the towers' forward and backward pass, for one pair.

    Traced as `saved_bytes` is, and recomputation is included.
    """
    run, params, batch = _towers(config, compute, kept_patches, batch_size=1)

    def both(params, batch):
        z, pullback = jax.vjp(lambda params: run(params, batch), params)
        return pullback(z)

    return count_bfloat16_passes(jax.make_jaxpr(both)(params, batch))


def state_bytes(config: TrainConfig, topology: Topology) -> int:
    """Bytes of parameters and optimizer state on one chip, as they are divided."""
    return _state_bytes(config.model, config.optim, config.mesh, tuple(topology.devices))


@functools.cache
def _state_bytes(
    model: CLIPConfig, optim: OptimConfig, mesh: MeshConfig, devices: tuple[jax.Device, ...]
) -> int:
    # The number of steps decides the schedule alone.
    tx, _ = make_optimizer(optim, steps=optim.warmup_steps + 1)
    state = abstract_train_state(
        model, tx, make_mesh(mesh, list(devices)), optim.ema_decay is not None
    )
    return bytes_per_device(state)


@dataclasses.dataclass(frozen=True)
class EstimatedMemory:
    """Memory of one chip, in bytes."""

    fixed: float
    """State and gradients, independent of the batch."""
    growing: float
    """Activations that the towers keep, and the matrix of logits."""

    @property
    def total(self) -> float:
        return self.fixed + self.growing


def estimated_memory(config: TrainConfig, topology: Topology) -> EstimatedMemory:
    chips = len(topology.devices)
    pairs = config.batch_size / chips
    parameter_bytes = 4 * model_cost(config.model).parameters
    gradients = parameter_bytes / (config.mesh.fsdp * config.mesh.tensor)
    # The matrix and its gradient, unless they never exist as a whole.
    implementation = choose_implementation(config.loss_form, config.batch_size, chips)
    logits = 2 * 4 * config.batch_size**2 / chips if implementation == "gathered" else 0
    saved = saved_bytes(config.model, config.compute, config.kept_patches)
    activations = pairs / config.accumulate * saved
    return EstimatedMemory(state_bytes(config, topology) + gradients, activations + logits)


def estimated_seconds(config: TrainConfig, topology: Topology, chip: Chip) -> float:
    """Seconds of a step, if only matrix products and the exchange of parameters took time."""
    chips, fsdp = len(topology.devices), config.mesh.fsdp
    # Float32 products in six passes, once forward and twice backward.
    loss = 3 * 6 * 2 * config.batch_size**2 * config.model.embed_dim
    towers = matrix_flops(config.model, config.compute, config.kept_patches)
    products = config.batch_size * towers + loss
    parameter_bytes = 4 * model_cost(config.model).parameters / config.mesh.tensor
    # Gathered for the forward and for the backward pass, and gradients reduced over all.
    received = 2 * parameter_bytes * (fsdp - 1) / fsdp + 2 * parameter_bytes
    assert chip.ici_bandwidth is not None, "of chips that can be planned for, all figures are known"
    return products / chips / chip.peak_flops + received / chip.ici_bandwidth
