"""Floating-point operations of a function, counted from its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of all matrix products in `function(*args)`; arguments may be shapes.

    Two per multiply-add, a scanned body as often as it runs, element-wise work left out: the
    model FLOPs of the literature (Chowdhery et al. 2022, appendix B). XLA's own cost analysis
    counts the body of a loop once, whatever its trip count.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(kernel) // out_features * math.prod(equation.outvars[0].aval.shape)
    if name == "while":
        raise NotImplementedError("the trip count of a while loop is not in its jaxpr")
    repeats = params["length"] if name == "scan" else 1
    return repeats * sum(
        _jaxpr_flops(inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner)
        for value in params.values()
        for inner in (value if isinstance(value, tuple | list) else (value,))
        if isinstance(inner, core.ClosedJaxpr | core.Jaxpr)
    )
