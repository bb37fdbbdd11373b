"""Axes of each parameter that Adafactor and Muon treat as the axes of a matrix.

A layer of a stack is a parameter by itself: results for a layer never depend on the number of
layers, nor on other layers.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers

from flaxclip.fine_tuning.parameter_rules import is_stacked, map_names

# First match wins, and every parameter must match: a new layer cannot become AdamW's by accident.
# The axes are those of one layer: its inputs, then its outputs. What has none is left to AdamW:
# vectors, what reads pixels or tokens or writes embeddings (Jordan et al. 2024), and depthwise
# convolutions, which mix no channels.
MUON_RULES: tuple[tuple[str, MuonDimensionNumbers | None], ...] = (
    (r"(bias|scale|embedding|probe)$", None),
    (
        r"(patch_embedding|projection|projection_hidden|vision/pool/out|stem/conv1/(\w+/)?conv"
        r"|depthwise)/kernel$",
        None,
    ),
    # Queries, keys and values apart, heads together.
    (r"attention/qkv/kernel$", MuonDimensionNumbers(0, (1, 3))),
    (r"(query|key|value)/kernel$", MuonDimensionNumbers(0, (1, 2))),
    (r"attention/out/kernel$", MuonDimensionNumbers((0, 1), 2)),
    (r"((mlp|squeeze)/(fc[12]|gate)|stem/join\d)/kernel$", MuonDimensionNumbers(0, 1)),
    (r"lora_[ab]$", MuonDimensionNumbers(0, 1)),
    (r"conv/kernel$", MuonDimensionNumbers((0, 1, 2), 3)),
)

# Of one layer's state, along the axis of the layers; they are all at the same step.
_STACKED = optax.FactoredState(count=None, v_row=0, v_col=0, v=0)


def scale_by_adafactor(momentum: float, momentum_dtype: DTypeLike) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018) as Zhai et al. 2022 changed it, section 3.4.

    With momentum, and without scaling steps by parameters or limiting their mean square; the decay
    of second moments grows with the steps to 0.999 and no further. Numerically this is big_vision's
    `scale_by_adafactor`: the two largest axes of a layer's parameter are factored, if both have 32
    or more, so that every layer and head, and each of queries, keys and values, has its own
    factors. Two shapes differ: patch embeddings are matrices here, and factored; queries, keys and
    values are one parameter, which changes nothing.
    """
    return optax.chain(
        _layer_by_layer(
            optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate_fn=_capped_decay)
        ),
        optax.ema(momentum, debias=False, accumulator_dtype=momentum_dtype),
    )


def _capped_decay(step: Int[Array, ""], exponent: float) -> Float[Array, ""]:
    return jnp.minimum(0.999, 1.0 - (step + 1.0) ** -exponent)


def _layer_by_layer(rms: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply `rms` layer by layer: of a whole stack, it would take the layers for a matrix axis."""

    def transposed(trees: Any, params: Any, inner: Any) -> Any:
        return jax.tree.transpose(jax.tree.structure(params), jax.tree.structure(inner), trees)

    def init(params: Any) -> optax.FactoredState:
        def init_one(name: str, param: Any) -> optax.FactoredState:
            one = jax.vmap(rms.init, out_axes=_STACKED) if is_stacked(name) else rms.init
            return one(param)

        states = transposed(map_names(init_one, params), params, optax.FactoredState(0, 0, 0, 0))
        return states._replace(count=jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: optax.FactoredState, params: Any
    ) -> tuple[Any, optax.FactoredState]:
        def update_one(
            name: str, param: Any, gradient: Any, row: Any, column: Any, whole: Any
        ) -> tuple[Any, optax.FactoredState]:
            one = rms.update
            if is_stacked(name):
                one = jax.vmap(one, in_axes=(0, _STACKED, 0), out_axes=(0, _STACKED))
            return one(gradient, optax.FactoredState(state.count, row, column, whole), param)

        results = map_names(update_one, params, updates, state.v_row, state.v_col, state.v)
        updates, states = transposed(results, params, (0, optax.FactoredState(0, 0, 0, 0)))
        return updates, states._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def muon_matrices(params: Any) -> Any:
    """A tree of the axes that Muon treats as a matrix, by `MUON_RULES`; None for AdamW.

    Raises:
        ValueError: a parameter's name matches no rule.
    """

    def matrix(name: str, _: Any) -> MuonDimensionNumbers | None:
        for pattern, axes in MUON_RULES:
            if re.search(pattern, name):
                return _behind_layers(axes) if axes and is_stacked(name) else axes
        raise ValueError(f"parameter {name} matches none of MUON_RULES; add one for it")

    return map_names(matrix, params)


def _behind_layers(axes: MuonDimensionNumbers) -> MuonDimensionNumbers:
    """The same axes, shifted behind those of a stack."""

    def shifted(axes: Sequence[int] | int) -> tuple[int, ...]:
        return tuple(axis + 1 for axis in ((axes,) if isinstance(axes, int) else axes))

    return MuonDimensionNumbers(shifted(axes.reduction_axis), shifted(axes.output_axis))
