"""A traced JAX function -> a graph of ONNX, for the operations that towers are made of.

Everything that depends on constants alone is computed here, such as masks and kernels of matrices;
loops over layers are unrolled. Broadcasts, which JAX spells out, are left to ONNX wherever it
broadcasts by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper

from flaxclip.errors import InputError
from flaxclip.interop.graphs.onnx_graph import Operand, Value, is_static, onnx_type
from flaxclip.interop.graphs.operations import Operations

OPSET = 18

# The name in ONNX, where the operation and the order of its operands are the same.
_SAME = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max",
    "min": "Min", "pow": "Pow", "exp": "Exp", "log": "Log", "tanh": "Tanh", "sqrt": "Sqrt",
    "erf": "Erf", "logistic": "Sigmoid", "abs": "Abs", "neg": "Neg", "sign": "Sign",
    "sin": "Sin", "cos": "Cos", "floor": "Floor", "ceil": "Ceil", "lt": "Less", "gt": "Greater",
    "ge": "GreaterOrEqual", "le": "LessOrEqual", "eq": "Equal", "and": "And", "or": "Or",
    "not": "Not",
}  # fmt: skip
_IDENTITY = ("name", "stop_gradient", "optimization_barrier", "copy", "copy_p", "reduce_precision")
_CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat2", "custom_jvp_call",
          "custom_vjp_call")  # fmt: skip


class Converter(Operations):
    """Converts one function."""

    def model(
        self, function: Callable[[Any], Any], argument: jax.ShapeDtypeStruct, name: str
    ) -> onnx.ModelProto:
        """The graph of `function`, whose input has that name and whose output is `embedding`.

        Raises:
            InputError: it has an operation that is not converted.
        """
        traced = jax.make_jaxpr(function)(argument)
        (size,) = self.emit("Shape", name, start=0, end=1)
        self.batch = size
        (result,) = self._run(
            traced.jaxpr,
            [np.asarray(constant) for constant in traced.consts],
            [Value(name, argument.shape)],
        )
        out = traced.jaxpr.outvars[0].aval
        self.nodes.append(
            helper.make_node("Identity", [self.full(result, out.shape)], ["embedding"])
        )
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(name, onnx_type(argument.dtype),
                                           ["batch", *argument.shape[1:]])],
            [helper.make_tensor_value_info("embedding", onnx_type(out.dtype),
                                           ["batch", *out.shape[1:]])],
            self.constants,
        )  # fmt: skip
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10
        )

    def _run(self, jaxpr: Any, consts: Sequence[Operand], args: Sequence[Operand]) -> list:
        known: dict[Any, Operand] = {}
        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Operand:
            return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            results = self._equation(equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[Operand]) -> list[Operand]:
        name, params = equation.primitive.name, equation.params
        if name in _IDENTITY:
            return operands
        if name in _CALLS:
            inner = params.get("jaxpr") or params["call_jaxpr"]
            consts = getattr(inner, "consts", ())
            return self._run(getattr(inner, "jaxpr", inner), list(map(np.asarray, consts)),
                             operands)  # fmt: skip
        if name == "scan":
            return self._scan(equation, operands)
        if name == "unstack":
            return self._unstack(equation, *operands)
        if all(isinstance(x, np.ndarray) for x in operands) and all(
            is_static(out.aval.shape) for out in equation.outvars
        ):
            results = equation.primitive.bind(*operands, **params)
            return list(map(np.asarray, results if equation.primitive.multiple_results
                            else [results]))  # fmt: skip
        if name in _SAME:
            return [self._elementwise(_SAME[name], *operands)]
        convert = getattr(self, f"_{name}", None)
        if convert is None:
            raise InputError(
                f"the tower computes {name!r}, which is not converted to ONNX\n"
                "StableHLO has it: --to stablehlo"
            )
        shapes = [atom.aval.shape for atom in equation.invars]
        return [convert(equation.outvars[0].aval, shapes, params, *operands)]

    def _scan(self, equation: Any, operands: list[Operand]) -> list[Operand]:
        params, body = equation.params, equation.params["jaxpr"]
        # JAX's versions name the kinds of operands differently: what the body takes a slice of is
        # stacked, and what it gives is carried, unless that is stacked too.
        slices_of, results_of = (
            [atom.aval.shape != inner.shape for atom, inner in zip(atoms, avals, strict=True)]
            for atoms, avals in (
                (equation.invars, body.in_avals),
                (equation.outvars, body.out_avals),
            )
        )
        rest = len(operands) - sum(slices_of)
        fixed = rest - len(body.out_avals)
        consts, carry, stacked = operands[:fixed], operands[fixed:rest], operands[rest:]
        arrays = [x for x in stacked if isinstance(x, np.ndarray)]
        if params["reverse"] or any(results_of) or len(arrays) < len(stacked):
            raise InputError(
                "the tower has a loop over more than its layers, which is not converted to ONNX\n"
                "StableHLO has it: --to stablehlo"
            )
        for layer in range(params["length"]):
            slices = [x[layer] for x in arrays]
            carry = self._run(body.jaxpr, list(map(np.asarray, body.consts)),
                              [*consts, *carry, *slices])  # fmt: skip
        return carry

    def _unstack(self, equation: Any, x: Operand) -> list[Operand]:
        stacked, axis = self.full(x, equation.invars[0].aval.shape), equation.params["axis"]
        names = [
            self.emit("Gather", stacked, np.array(index, np.int64), axis=axis)[0]
            for index in range(len(equation.outvars))
        ]
        return [
            Value(name, out.aval.shape) for name, out in zip(names, equation.outvars, strict=True)
        ]
