"""One update: batch -> loss -> gradients -> optimizer. The only place where buffers are donated."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flaxclip.accumulate import loss_and_gradients
from flaxclip.config import TrainConfig
from flaxclip.data.batch import Batch, abstract_view
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.fine_tuning.lora import merged, with_pairs
from flaxclip.fine_tuning.parameter_rules import frozen_mask, stop_frozen_gradients
from flaxclip.hosts.coordination import broadcast_from_host_0
from flaxclip.losses.pairs import ContrastiveLoss
from flaxclip.losses.sigmoid import sigmoid_contrastive_loss
from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.models.clip import CLIP, abstract_variables, check_kernel, example_inputs
from flaxclip.models.compute import ComputeConfig, remat_by_speed
from flaxclip.models.cost import model_cost
from flaxclip.models.patches import sample_patches
from flaxclip.optim import applied_updates, clamp_logit_scale, update_average
from flaxclip.sharding import batch_sharding, constrain, pair_axes
from flaxclip.step_shapes import StepShape, loss_factor, step_shapes
from flaxclip.teachers.lesson import ask_teachers, make_teacher_loss
from flaxclip.teachers.stored import abstract_vectors
from flaxclip.teachers.weights import (
    abstract_teacher,
    teacher_flops,
    teacher_specs,
    variable_shardings,
)
from flaxclip.train_state import TrainState, abstract_train_state
from flaxclip.xla_errors import is_out_of_memory

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
"""(state, batch) -> new state, metrics. If the run has teachers, their variables are a third
argument."""


def settle_compute(config: TrainConfig, device: jax.Device, devices: int) -> TrainConfig:
    """`config` with `compute` for a step on `devices` such as `device`, with no field left open.

    Raises:
        InputError: the kernel for attention is not for that device, or for a tower.
    """
    compute = config.compute
    longest = step_shapes(config)[-1].patches
    check_kernel(config.model, compute, device.device_kind, longest)
    if not config.model.vision.is_transformer:  # not timed on CPUs, and slow to compile
        compute = compute.filled_from(ComputeConfig(unroll=1, remat="names"))
    compute = compute.for_training(device.platform, devices, config.model.most_blocks)
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
    config: TrainConfig,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    stored: tuple[StoredTeacher, ...] = (),
) -> bool:
    """True if steps of all shapes compile within the memory of the mesh's devices.

    Compiles them, a minute or so each for a large model; the run itself then finds them in JAX's
    cache. After the first that does not fit, no further ones.
    """
    ema = config.optim.ema_decay is not None
    state = abstract_train_state(config.model, tx, mesh, ema, config.adapters)
    step: Any = make_train_step(config, tx, schedule, mesh, state, stored)
    # TPUs refuse to compile what does not fit; of a GPU its allocator knows the limit.
    limit = (mesh.local_devices[0].memory_stats() or {}).get("bytes_limit")
    for shape in step_shapes(config):
        try:
            compiled = step.lower(state, *abstract_inputs(config, mesh, stored, shape)).compile()
        except Exception as error:
            if is_out_of_memory(error):
                return False
            raise
        if limit is not None and compiled.memory_analysis().peak_memory_in_bytes > limit:
            return False
    return True


def make_loss(
    config: TrainConfig, mesh: Mesh
) -> Callable[[Float[Array, "b d"], Float[Array, "b d"], dict[str, Any]], ContrastiveLoss]:
    """The loss that `config` names, of image and text embeddings and the model's parameters."""
    if config.loss == "softmax":
        return lambda zimg, ztxt, params: softmax_contrastive_loss(
            zimg, ztxt, params["logit_scale"], pair_axes(len(zimg), mesh), config.loss_form
        )
    return lambda zimg, ztxt, params: sigmoid_contrastive_loss(
        *(zimg, ztxt, params["logit_scale"], params["logit_bias"]),
        *(pair_axes(len(zimg), mesh), config.loss_form),
    )


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one update, without recomputation and the loss; if steps have several shapes,
    on average, with images that fill them.

    Teachers' forward passes are part of it. A tower that is frozen as a whole has no gradients.
    """
    shapes = step_shapes(config)
    flops = sum(shape.pairs * pair_flops(config, shape.patches) for shape in shapes)
    return flops // len(shapes) + teacher_flops(config)


def pair_flops(config: TrainConfig, patches: int | None = None) -> int:
    """Model FLOPs of one pair in an update; with `patches`, its image has so many, at its own
    aspect ratio.
    """
    params = abstract_variables(config.model)["params"]
    pairs = functools.partial(with_pairs, config.adapters, key=jax.random.key(0))
    frozen = frozen_mask(config.optim.freeze, jax.eval_shape(pairs, params))
    locked = [tower for tower in ("vision", "text") if all(jax.tree.leaves(frozen[tower]))]
    return model_cost(config.model, config.kept_patches, patches).training_flops(locked)


def make_train_step(
    config: TrainConfig,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    state: TrainState,
    stored: tuple[StoredTeacher, ...] = (),
) -> TrainStep:
    """The compiled update for states with the sharding of `state`.

    `tx` and `schedule` are those of `make_optimizer`; batches have vectors of `stored`, if any.

    The step donates its state: after `state, metrics = step(state, batch)` only the new one may be
    used. Call it under `jax.set_mesh(mesh)`.

    If the loss or a gradient is not finite, everything but `step` is unchanged, and
    `metrics["skipped_updates"]`, which counts such steps over the whole run, rises by one.
    `metrics["learning_rate"]` is the rate of this update: the schedule counts applied updates.

    At native aspect ratio the update takes batches of all `step_shapes`, each by a program of its
    own; `metrics["loss"]` is without the factor of `scale_loss_by_pairs`.
    """
    model = CLIP(config.model, config.compute, config.preprocess)
    compute_loss = make_loss(config, mesh)
    frozen, adapters = config.optim.freeze, config.adapters
    # SigLIP's scale is free: published models learned 118.
    clamps = config.loss == "softmax" and not frozen_mask(frozen, state.params)["logit_scale"]

    def embed(params, batch_stats, batch):
        # Of a locked tower there is no backward pass at all.
        params = stop_frozen_gradients(frozen, params)
        variables = {"params": merged(adapters, params), "batch_stats": batch_stats}
        (zimg, ztxt, _), updated = model.apply(
            variables, **batch, train=True, mutable=["batch_stats"]
        )
        return (zimg, ztxt), updated.get("batch_stats", {})

    compute_teacher_loss, specs = make_teacher_loss(config, mesh), teacher_specs(config)

    def train_step(state, batch, teachers=()):
        taught = ask_teachers(config, batch, teachers, stored)

        def loss(embeddings, params):
            params = stop_frozen_gradients(frozen, params)
            result = compute_loss(*embeddings, params)
            total, metrics = result.loss, result._asdict()
            if (factor := loss_factor(config, len(embeddings[0]))) != 1:
                total = factor * total
            if taught is not None:
                total = config.contrastive_weight * total
                more, of_teachers = compute_teacher_loss(embeddings, params, total, *taught)
                total += more
                metrics |= {"loss": total, "contrastive_loss": result.loss, **of_teachers}
            return total, metrics

        inputs = {"images": batch.images, "tokens": batch.tokens}
        if config.kept_patches is not None:
            # Chosen before the batch is cut into parts: both passes over a part see the same.
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
            patches = config.model.vision.grid**2
            patch_ids = sample_patches(key, config.batch_size, patches, config.kept_patches)
            inputs["patch_ids"] = constrain(patch_ids, "batch", None)
        grads, batch_stats, losses = loss_and_gradients(
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
        finite = jnp.isfinite(losses["loss"]) & jnp.isfinite(grad_norm)
        new_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        new_state = new_state._replace(step=state.step + 1, skipped=state.skipped + ~finite)
        metrics = losses | {
            "logit_scale": jnp.exp(new_state.params["logit_scale"]),
            "grad_norm": grad_norm,
            "learning_rate": jnp.float32(schedule(applied_updates(state.opt_state))),
            "skipped_updates": new_state.skipped,
        }
        if config.loss == "sigmoid":
            metrics["logit_bias"] = new_state.params["logit_bias"]
        return new_state, metrics

    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    of_teachers = [variable_shardings(spec.model, mesh) for spec in specs]
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding(mesh), *([tuple(of_teachers)] * bool(specs))),
        out_shardings=(state_shardings, NamedSharding(mesh, PartitionSpec())),
    )


def compile_train_step(
    config: TrainConfig,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    state: TrainState,
    stored: tuple[StoredTeacher, ...] = (),
) -> TrainStep:
    """`make_train_step`, compiled for batches of all shapes of `config`; `state` may be abstract.

    If there are several, a batch is taken by the program for images of its length.
    """
    step: Any = make_train_step(config, tx, schedule, mesh, state, stored)
    programs = {
        shape.patches: step.lower(state, *abstract_inputs(config, mesh, stored, shape)).compile()
        for shape in step_shapes(config)
    }
    if len(programs) == 1:
        (program,) = programs.values()
        return program

    def by_length(state: TrainState, batch: Batch, *teachers: Any) -> tuple[TrainState, Metrics]:
        images: Any = batch.images
        return programs[images.patches.shape[1]](state, batch, *teachers)

    return by_length


def abstract_inputs(
    config: TrainConfig,
    mesh: Mesh,
    stored: tuple[StoredTeacher, ...] = (),
    shape: StepShape | None = None,
) -> tuple[Any, ...]:
    """Shapes and types of what the step takes beside the state: a batch, with the vectors of
    `stored`, and any teachers.

    The batch is of `shape`, one of the run's; of its only one, if None.
    """
    if shape is None:
        (shape,) = step_shapes(config)
    specs = teacher_specs(config)
    images, tokens = example_inputs(config.model, shape.pairs, shape.patches)
    views = tuple(abstract_view(config.spec, spec, shape.pairs) for spec in specs)
    batch = Batch(images, tokens, views or None, abstract_vectors(stored, shape.pairs))
    if not specs:
        return (batch,)
    return batch, tuple(abstract_teacher(spec.model, mesh) for spec in specs)
