"""Optimizers, learning-rate schedules, weight decay by parameter name, averaged parameters."""

import dataclasses
import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from flaxclip.errors import InputError
from flaxclip.fine_tuning.parameter_rules import (
    check_patterns,
    frozen_mask,
    map_names,
    rate_multipliers,
)
from flaxclip.matrix_optimizers import muon_matrices, scale_by_adafactor

MAX_LOGIT_SCALE = math.log(100)
"""Radford et al. 2021, section 2.5: logits are never scaled by more than 100."""

# First match wins, and every parameter must match: a new layer cannot be decayed by accident.
# Stacked biases are 2-D, so the usual rule "decay what has two dimensions" would be wrong here.
DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r"(bias|scale|class_embedding|register_embedding|probe)$", False),
    (r"(kernel|lora_a|lora_b|token_embedding|position_embedding|segment_embedding)$", True),
)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer. Defaults: Radford et al. 2021, table 18 and section 2.5, a ViT."""

    optimizer: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    """adamw: Loshchilov & Hutter 2019. lion: Chen et al. 2023. adafactor: Shazeer & Stern 2018, as
    Zhai et al. 2022 changed it (`scale_by_adafactor`). muon: Jordan et al. 2024 for the matrices
    between a tower's input and its output, scaled as in Liu et al. 2025, so that AdamW's rates fit;
    AdamW with Nesterov's momentum for the rest."""
    peak_lr: float = 5e-4
    schedule: Literal["cosine", "linear", "rsqrt", "constant"] = "cosine"
    """Learning rate after the warm-up. cosine, linear: down to 0 at the last step. rsqrt:
    proportional to 1 / sqrt(step), so that a run can be prolonged (Zhai et al. 2022, section
    3.5)."""
    warmup_steps: int = 2000
    """Steps over which the learning rate rises linearly from 0."""
    cooldown_steps: int = 0
    """Last steps, over which rsqrt and constant fall linearly to 0."""
    b1: float = 0.9
    """Decay of the momentum, whatever the optimizer."""
    b2: float = 0.98
    """Decay of the second moment in AdamW, Muon's part of it included. In Lion, decay of the stored
    momentum; b1 is that of the momentum that gives the direction. Adafactor has its own rule."""
    eps: float = 1e-6
    """Epsilon of AdamW and Muon."""
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the momentum; bfloat16 saves 2 bytes a parameter."""
    weight_decay: float = 0.2
    """Multiplied by the learning rate, and not applied to biases, norms and the logit scale."""
    ema_decay: float | None = None
    """Share of the averaged parameters that a step keeps; smaller at first, while there are few
    steps. The average is saved beside the parameters, and `flaxclip.load` reads it. If None,
    disabled."""
    max_grad_norm: float | None = None
    """Gradients with a larger global norm are scaled down to it. If None, disabled."""
    freeze: tuple[str, ...] = ()
    """Regular expressions: parameters whose names match are not trained, and need no memory for
    momentum. ^vision/ locks the image tower (LiT, Zhai et al. 2022)."""
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    """Regular expressions, and factors on the learning rate of parameters whose names match; the
    first match counts."""
    layer_decay: tuple[tuple[str, float], ...] = ()
    """Likewise, but the factor applies once for each layer between a parameter and its tower's
    output: with ^vision/ 0.75 the last block has 0.75 of the learning rate, the one below it
    0.5625."""

    def __post_init__(self) -> None:
        for name in ("peak_lr", "warmup_steps", "cooldown_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise InputError(f"optim.{name} is {getattr(self, name)}\nit must not be negative")
        for name, factor in (*self.lr_multipliers, *self.layer_decay):
            if not 0 <= factor < math.inf:
                raise InputError(
                    f"optim has the factor {factor} on the learning rate of {name!r}\n"
                    "it must not be negative, nor infinite"
                )
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise InputError(
                f"optim.max_grad_norm is {self.max_grad_norm}\n"
                "it must be positive, or None for no clipping"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(
                f"optim.ema_decay is {self.ema_decay}\n"
                "it must be between 0 and 1, such as 0.9998, or None for no average"
            )
        if self.cooldown_steps and self.schedule in ("cosine", "linear"):
            raise InputError(
                f"optim.cooldown_steps is {self.cooldown_steps} with schedule {self.schedule}, "
                "which falls to 0 anyway\nleave the cool-down out, or choose rsqrt or constant"
            )
        if self.schedule == "rsqrt" and self.warmup_steps == 0:
            raise InputError(
                "optim.warmup_steps is 0 with schedule rsqrt\n"
                "the rate at step s is peak_lr sqrt(warmup_steps / s): choose a warm-up"
            )


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate at a step: linear warm-up, then `config.schedule`, 0 at `steps` if it ends so.

    Raises:
        InputError: warm-up and cool-down together are as long as the run.
    """
    warmup, cooldown, peak = config.warmup_steps, config.cooldown_steps, config.peak_lr
    if warmup + cooldown >= steps:
        both = f" and optim.cooldown_steps {cooldown}" if cooldown else ""
        verb = "are" if cooldown else "is"
        raise InputError(
            f"optim.warmup_steps {warmup}{both} {verb} not below the run's {steps} steps\n"
            f"shorten {'one of them' if cooldown else 'the warm-up'} or lengthen the run"
        )

    def rsqrt(step: Int[Array, ""] | int) -> Float[Array, ""]:
        return peak * jnp.sqrt(warmup / (warmup + step))

    # Steps count from the end of the warm-up.
    after = {
        "cosine": optax.cosine_decay_schedule(peak, steps - warmup),
        "linear": optax.linear_schedule(peak, 0.0, steps - warmup),
        "rsqrt": rsqrt,
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    schedule = after
    if warmup:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])
    if cooldown:
        start = steps - cooldown
        down = optax.linear_schedule(float(schedule(start)), 0.0, cooldown)
        schedule = optax.join_schedules([schedule, down], [start])
    return schedule


def decay_mask(params: Any) -> Any:
    """A tree of booleans: True for parameters with weight decay, by `DECAY_RULES`.

    Raises:
        ValueError: a parameter's name matches no rule.
    """

    def decays(name: str) -> bool:
        for pattern, decay in DECAY_RULES:
            if re.search(pattern, name):
                return decay
        raise ValueError(f"parameter {name} matches none of DECAY_RULES; add one for it")

    return map_names(lambda name, _: decays(name), params)


def check_optim_patterns(config: OptimConfig, params: Any) -> None:
    """Raise `InputError` if a pattern of `config` matches no parameter, or if all are frozen.

    `params` may be shapes.
    """
    for field in ("freeze", "lr_multipliers", "layer_decay"):
        rules = getattr(config, field)
        patterns = rules if field == "freeze" else [pattern for pattern, _ in rules]
        check_patterns(f"optim.{field}", patterns, params)
    if all(jax.tree.leaves(frozen_mask(config.freeze, params))):
        raise InputError(
            f"optim.freeze {' '.join(config.freeze)} freezes all parameters\nleave some to train"
        )


def make_optimizer(
    config: OptimConfig, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of `config`, for a run of `steps` updates, and the schedule that it follows.

    The schedule maps the number of updates applied so far (`applied_updates`) to the learning rate
    of the next one.

    Optimizers differ in the direction of a step; clipping, weight decay and learning rate are the
    same for all. Frozen parameters are excluded: their gradients do not count for clipping, and
    they have no momentum.
    """
    schedule = make_schedule(config, steps)
    clip = (
        optax.identity()
        if config.max_grad_norm is None
        else optax.clip_by_global_norm(config.max_grad_norm)
    )
    update = optax.chain(
        clip,
        _direction(config),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
    if config.freeze:

        def groups(params: Any) -> Any:
            frozen = frozen_mask(config.freeze, params)
            return jax.tree.map(lambda is_frozen: "frozen" if is_frozen else "trained", frozen)

        update = optax.partition({"trained": update, "frozen": optax.set_to_zero()}, groups)
    if config.lr_multipliers or config.layer_decay:
        update = optax.chain(update, _scale_by_name(config))
    return update, schedule


def applied_updates(opt_state: optax.OptState) -> Int[Array, ""]:
    """Number of updates that an optimizer of `make_optimizer` has applied; sets its learning rate.

    Not the number of steps: if an update is skipped, the optimizer's state is unchanged.
    """

    def counts(state: Any) -> bool:
        return isinstance(state, optax.ScaleByScheduleState)

    [state] = filter(counts, jax.tree.leaves(opt_state, is_leaf=counts))
    return state.count


def _scale_by_name(config: OptimConfig) -> optax.GradientTransformation:
    """Multiply updates, weight decay included, by the factors of `config`."""

    def scale(updates: Any, params: Any) -> Any:
        rates = rate_multipliers(config.lr_multipliers, config.layer_decay, params)
        return jax.tree.map(lambda update, rate: update * rate, updates, rates)

    return optax.stateless(scale)


def _direction(config: OptimConfig) -> optax.GradientTransformation:
    b1, b2, dtype = config.b1, config.b2, jnp.dtype(config.momentum_dtype)
    if config.optimizer == "adamw":
        return optax.scale_by_adam(b1, b2, config.eps, mu_dtype=dtype)
    if config.optimizer == "lion":
        return optax.scale_by_lion(b1, b2, mu_dtype=dtype)
    if config.optimizer == "adafactor":
        return scale_by_adafactor(b1, dtype)
    return optax.contrib.muon(
        learning_rate=-1.0,  # the direction itself: the caller's rate has the other minus sign
        beta=b1,
        eps=config.eps,
        mu_dtype=dtype,
        adam_b1=b1,
        adam_b2=b2,
        muon_weight_dimension_numbers=muon_matrices,
        consistent_rms=0.2,  # Liu et al. 2025, section 2.2: that of AdamW's steps
    )


def update_average(
    average: dict[str, Any], params: dict[str, Any], decay: float, step: Int[Array, ""]
) -> dict[str, Any]:
    """The exponential moving average of `params` after `step` updates before this one.

    At step s it keeps at most (1 + s) / (10 + s) of itself, so that the first parameters are soon
    forgotten (TensorFlow, `tf.train.ExponentialMovingAverage`, `num_updates`).
    """
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - keep) * (new - old), average, params)


def clamp_logit_scale(params: dict[str, Any]) -> dict[str, Any]:
    """`params` with the log of the logit scale within [0, ln 100].

    After the update, not in the forward pass: there, a clipped scale has no gradient and could
    never come down again.
    """
    return params | {"logit_scale": jnp.clip(params["logit_scale"], 0.0, MAX_LOGIT_SCALE)}
