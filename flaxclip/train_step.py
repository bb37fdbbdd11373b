"""One update: batch -> loss -> gradients -> optimizer. The only place where buffers are donated."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flaxclip.accumulate import loss_and_gradients
from flaxclip.config import TrainConfig
from flaxclip.data.batch import Batch
from flaxclip.fine_tuning import frozen_mask, stop_frozen_gradients
from flaxclip.hosts.coordination import broadcast_from_host_0
from flaxclip.losses.pairs import ContrastiveLoss
from flaxclip.losses.sigmoid import sigmoid_contrastive_loss
from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.models.clip import CLIP, abstract_variables, example_inputs
from flaxclip.models.compute import ComputeConfig, remat_by_speed
from flaxclip.models.cost import model_cost
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.vision_transformer import sample_patches
from flaxclip.optim import applied_updates, clamp_logit_scale, update_average
from flaxclip.sharding import batch_sharding, constrain, pair_axes
from flaxclip.train_state import TrainState, abstract_train_state
from flaxclip.xla_errors import is_out_of_memory

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def settle_compute(config: TrainConfig, platform: str, devices: int) -> TrainConfig:
    """`config` with `compute` for a step on `devices` of `platform`, with no field left open."""
    compute = config.compute
    if isinstance(config.model.vision, ResNetConfig):  # not timed on CPUs, and slow to compile
        compute = compute.filled_from(ComputeConfig(unroll=1, remat="names"))
    compute = compute.for_training(platform, devices, config.model.most_blocks)
    return dataclasses.replace(config, compute=compute)


def choose_remat(
    config: TrainConfig, platform: str, fits: Callable[[TrainConfig], bool]
) -> TrainConfig:
    """`config` with the platform's fastest remat policy that `fits`, if it says `auto`.

    The last policy is not tried: if it does not fit either, compiling the step later raises the
    error. Must be called on every host.
    """
    compute = config.compute
    if compute.remat != "auto":
        return config
    candidates = [
        dataclasses.replace(config, compute=dataclasses.replace(compute, remat=remat))
        for remat in remat_by_speed(platform, config.model.is_scanned(compute))
    ]
    for candidate in candidates[:-1]:
        # All hosts run one program, and what fits may differ: host 0 decides. The others compile
        # too, since the compilers of a job may divide the work among them.
        if broadcast_from_host_0(f"remat {candidate.compute.remat} fits", fits(candidate)):
            return candidate
    return candidates[-1]


def step_fits(
    config: TrainConfig, tx: optax.GradientTransformation, schedule: optax.Schedule, mesh: Mesh
) -> bool:
    """True if the step of `config` compiles within the memory of the mesh's devices.

    Compiles it, a minute or so for a large model; the run itself then finds it in JAX's cache.
    """
    state = abstract_train_state(config.model, tx, mesh, config.optim.ema_decay is not None)
    try:
        compiled: Any = compile_train_step(config, tx, schedule, mesh, state)
    except Exception as error:
        if is_out_of_memory(error):
            return False
        raise
    # TPUs refuse to compile what does not fit; of a GPU its allocator knows the limit.
    limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    return limit is None or compiled.memory_analysis().peak_memory_in_bytes <= limit


def make_loss(
    config: TrainConfig, mesh: Mesh
) -> Callable[[Float[Array, "b d"], Float[Array, "b d"], dict[str, Any]], ContrastiveLoss]:
    """The loss that `config` names, of image and text embeddings and the model's parameters."""
    axes, implementation = pair_axes(config.batch_size, mesh), config.loss_form
    if config.loss == "softmax":
        return lambda zimg, ztxt, params: softmax_contrastive_loss(
            zimg, ztxt, params["logit_scale"], axes, implementation
        )
    return lambda zimg, ztxt, params: sigmoid_contrastive_loss(
        zimg, ztxt, params["logit_scale"], params["logit_bias"], axes, implementation
    )


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one update, without recomputation and the loss.

    A tower that is frozen as a whole has no gradients.
    """
    frozen = frozen_mask(config.optim.freeze, abstract_variables(config.model)["params"])
    locked = [tower for tower in ("vision", "text") if all(jax.tree.leaves(frozen[tower]))]
    return config.batch_size * model_cost(config.model, config.kept_patches).training_flops(locked)


def make_train_step(
    config: TrainConfig,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    state: TrainState,
) -> TrainStep:
    """The compiled update for states with the sharding of `state`.

    `tx` and `schedule` are those of `make_optimizer`.

    The step donates its state: after `state, metrics = step(state, batch)` only the new one may be
    used. Call it under `jax.set_mesh(mesh)`.

    If the loss or a gradient is not finite, everything but `step` is unchanged, and
    `metrics["skipped_updates"]`, which counts such steps over the whole run, rises by one.
    `metrics["learning_rate"]` is the rate of this update: the schedule counts applied updates.
    """
    model = CLIP(config.model, config.compute, config.preprocess)
    compute_loss = make_loss(config, mesh)
    frozen = config.optim.freeze
    # SigLIP's scale is free: published models learned 118.
    clamps = config.loss == "softmax" and not frozen_mask(frozen, state.params)["logit_scale"]

    def embed(params, batch_stats, batch):
        # Of a locked tower there is no backward pass at all.
        params = stop_frozen_gradients(frozen, params)
        variables = {"params": params, "batch_stats": batch_stats}
        (zimg, ztxt, _), updated = model.apply(
            variables, **batch, train=True, mutable=["batch_stats"]
        )
        return (zimg, ztxt), updated.get("batch_stats", {})

    def loss(embeddings, params):
        params = stop_frozen_gradients(frozen, params)
        result = compute_loss(*embeddings, params)
        return result.loss, result

    def train_step(state, batch):
        inputs = batch._asdict()
        if config.kept_patches is not None:
            # Chosen before the batch is cut into parts: both passes over a part see the same.
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
            images, patches = config.batch_size, config.model.vision.grid**2
            patch_ids = sample_patches(key, images, patches, config.kept_patches)
            inputs["patch_ids"] = constrain(patch_ids, "batch", None)
        grads, batch_stats, result = loss_and_gradients(
            embed, loss, state.params, state.batch_stats, inputs, config.accumulate
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if clamps:
            params = clamp_logit_scale(params)
        ema = state.ema
        if config.optim.ema_decay is not None:
            ema = update_average(ema, params, config.optim.ema_decay, state.step)
        updated = TrainState(state.step, params, opt_state, batch_stats, ema, state.skipped)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(result.loss) & jnp.isfinite(grad_norm)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        new_state = new_state._replace(step=state.step + 1, skipped=state.skipped + ~finite)
        metrics = result._asdict() | {
            "logit_scale": jnp.exp(new_state.params["logit_scale"]),
            "grad_norm": grad_norm,
            "learning_rate": jnp.float32(schedule(applied_updates(state.opt_state))),
            "skipped_updates": new_state.skipped,
        }
        if config.loss == "sigmoid":
            metrics["logit_bias"] = new_state.params["logit_bias"]
        return new_state, metrics

    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, NamedSharding(mesh, PartitionSpec())),
    )


def compile_train_step(
    config: TrainConfig,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    state: TrainState,
) -> TrainStep:
    """`make_train_step`, compiled for batches of `config`; `state` may be abstract."""
    shapes: Any = example_inputs(config.model, config.batch_size)
    step: Any = make_train_step(config, tx, schedule, mesh, state)
    return step.lower(state, Batch(*shapes)).compile()
