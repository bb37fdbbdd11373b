"""A graph of ONNX while it is built: its nodes, its constants, and what is known of shapes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from flaxclip.errors import InputError

_INT8_LEAST = 2**14
"""Numbers that a constant must have to be stored in 8 bits: smaller ones are not worth a node."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A result in the graph."""

    name: str
    shape: tuple[Any, ...]
    """Its own; the shape in JAX may be one that this broadcasts to."""


Operand = Value | np.ndarray


class OnnxGraph:
    """Nodes and constants of one graph, whose input's first axis is the batch."""

    def __init__(self, int8_weights: bool = False):
        self._int8 = int8_weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._named: dict[int, tuple[np.ndarray, str]] = {}
        self._count = 0
        self.batch = ""

    def emit(self, kind: str, *inputs: Operand | str, **attributes: Any) -> list[str]:
        self._count += 1
        output = f"{kind}_{self._count}"
        names = [x if isinstance(x, str) else self._name(x) for x in inputs]
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return [output]

    def _name(self, operand: Operand) -> str:
        if isinstance(operand, Value):
            return operand.name
        if id(operand) not in self._named:
            name = f"constant_{len(self._named)}"
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(operand)
                                   if operand.ndim else operand, name))  # fmt: skip
            self._named[id(operand)] = operand, name  # kept, so that no other gets its id
        return self._named[id(operand)][1]

    def weight(self, operand: Operand, axis: int) -> Operand:
        """A large constant in 8 bits, if asked for: one scale for each index of `axis`."""
        if (
            not self._int8
            or not isinstance(operand, np.ndarray)
            or operand.dtype != np.float32
            or operand.size < _INT8_LEAST
        ):
            return operand
        others = tuple(i for i in range(operand.ndim) if i != axis % operand.ndim)
        largest = np.abs(operand).max(axis=others)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        whole = np.rint(operand / np.expand_dims(scale, others)).astype(np.int8)
        (name,) = self.emit("DequantizeLinear", whole, scale, axis=axis % operand.ndim)
        return Value(name, operand.shape)

    def shape_of(self, shape: Sequence[Any]) -> Operand:
        """A shape as ONNX takes it; lengths that depend on the batch are computed from it."""
        if is_static(shape):
            return np.array(shape, np.int64)
        parts: list[Operand | str] = []
        for size in shape:
            if isinstance(size, int):
                parts.append(np.array([size], np.int64))
            else:
                times = _times_batch(size)
                scaled = [self.batch] if times == 1 else self.emit(
                    "Mul", self.batch, np.array([times], np.int64)
                )  # fmt: skip
                parts.append(scaled[0])
        (name,) = self.emit("Concat", *parts, axis=0)
        return Value(name, (len(parts),))

    def full(self, operand: Operand, shape: tuple[Any, ...]) -> str:
        """Name of the operand, broadcast to its shape in JAX."""
        if tuple(operand.shape) == tuple(shape):
            return self._name(operand)
        return self.emit("Expand", operand, self.shape_of(shape))[0]


def is_static(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _times_batch(size: Any) -> int:
    """The factor of a length that is the batch's, times a number."""
    at = [int(size._evaluate({"batch": n})) for n in (1, 2, 3)]
    if at[1] != 2 * at[0] or at[2] != 3 * at[0]:
        raise InputError(f"the tower has an axis of {size} entries, which is not converted")
    return at[0]


def onnx_type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
