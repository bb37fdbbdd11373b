"""Floating-point operations of a function, counted from its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(jaxpr: core.ClosedJaxpr) -> int:
    """FLOPs of all matrix products in a traced function.

    Two per multiply-add, a scanned body as often as it runs, element-wise work left out: the
    model FLOPs of the literature (Chowdhery et al. 2022, appendix B). XLA's own cost analysis
    counts the body of a loop once, whatever its trip count.
    """
    return _jaxpr_flops(jaxpr.jaxpr, _one_pass)


def count_bfloat16_passes(jaxpr: core.ClosedJaxpr) -> int:
    """FLOPs of a traced function as a TPU's bfloat16 matrix units do them, over all devices.

    A float32 product at `Precision.HIGHEST` takes six passes, at `HIGH` three, at the default one
    (Henry et al. 2019, "Leveraging the bfloat16 artificial intelligence datatype").
    """
    return _jaxpr_flops(jaxpr.jaxpr, _passes)


def _of(operand: Any) -> Any:
    """Shape and type of an operand. Arrays have both; not every abstract value does."""
    return operand.aval


def _one_pass(_: core.JaxprEqn) -> int:
    return 1


def _passes(product: core.JaxprEqn) -> int:
    if all(_of(operand).dtype.itemsize < 4 for operand in product.invars):
        return 1
    # None, or a precision for each operand.
    precision = product.params["precision"] or ()
    if jax.lax.Precision.HIGHEST in precision:
        return 6
    return 3 if jax.lax.Precision.HIGH in precision else 1


def _jaxpr_flops(jaxpr: core.Jaxpr, passes: Callable[[core.JaxprEqn], int]) -> int:
    return sum(_equation_flops(equation, passes) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn, passes: Callable[[core.JaxprEqn], int]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(_of(equation.invars[0]).shape[axis] for axis in contracted)
        return 2 * depth * math.prod(_of(equation.outvars[0]).shape) * passes(equation)
    if name == "conv_general_dilated":
        kernel = _of(equation.invars[1]).shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        depth = math.prod(kernel) // out_features
        return 2 * depth * math.prod(_of(equation.outvars[0]).shape) * passes(equation)
    if name == "while":
        raise NotImplementedError("the trip count of a while loop is not in its jaxpr")
    repeats = 1
    if name == "scan":
        repeats = params["length"]
    elif name == "shard_map":  # its body is what one device does
        repeats = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    elif name == "pallas_call":  # its body is what one program does
        repeats = math.prod(params["grid_mapping"].grid)
    return repeats * sum(
        _jaxpr_flops(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner, passes)
        for value in params.values()
        for inner in (value if isinstance(value, tuple | list) else (value,))
        if isinstance(inner, core.ClosedJaxpr | core.Jaxpr)
    )
