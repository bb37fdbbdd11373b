"""The operations that towers are made of, as nodes of ONNX; `jaxpr_to_onnx` calls them."""

import functools
from typing import Any

import numpy as np
from onnx import TensorProto

from flaxclip.errors import InputError
from flaxclip.interop.graphs.onnx_graph import OnnxGraph, Operand, Value, onnx_type


class Operations(OnnxGraph):
    """A method `_name` adds JAX's operation of that name, of which it takes the result's type, the
    shapes of the operands in JAX, the parameters, and the operands.
    """

    def _elementwise(self, kind: str, *operands: Operand) -> Operand:
        (name,) = self.emit(kind, *operands)
        rank = max(len(x.shape) for x in operands)
        padded = [(1,) * (rank - len(x.shape)) + tuple(x.shape) for x in operands]
        shape = tuple(next((n for n in sizes if n != 1), 1) for sizes in zip(*padded, strict=True))
        return Value(name, shape)

    def _square(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        return self._elementwise("Mul", x, x)

    def _rsqrt(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        return self._elementwise("Reciprocal", self._elementwise("Sqrt", x))

    def _erfc(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        return self._elementwise("Sub", np.array(1, np.float32),
                                 self._elementwise("Erf", x))  # fmt: skip

    def _integer_pow(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        result = x
        for _ in range(params["y"] - 1):
            result = self._elementwise("Mul", result, x)
        return result if params["y"] > 0 else self._elementwise(
            "Pow", x, np.array(params["y"], out.dtype)
        )  # fmt: skip

    def _ne(self, out: Any, shapes: Any, params: Any, x: Operand, y: Operand) -> Operand:
        return self._elementwise("Not", self._elementwise("Equal", x, y))

    def _select_n(
        self, out: Any, shapes: Any, params: Any, which: Operand, no: Operand, yes: Operand
    ) -> Operand:
        return self._elementwise("Where", which, yes, no)

    def _convert_element_type(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        (name,) = self.emit("Cast", x, to=onnx_type(out.dtype))
        return Value(name, x.shape)

    def _broadcast_in_dim(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        kept = params["broadcast_dimensions"]
        added = [axis for axis in range(len(out.shape)) if axis not in kept]
        if isinstance(x, np.ndarray):
            return np.expand_dims(x, tuple(added))
        shape = list(x.shape)
        for axis in added:
            shape.insert(axis, 1)
        if not added:
            return x
        (name,) = self.emit("Unsqueeze", x, np.array(added, np.int64))
        return Value(name, tuple(shape))

    def _reshape(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        sizes = [n if isinstance(n, int) else -1 for n in out.shape]
        (name,) = self.emit("Reshape", self.full(x, shapes[0]), np.array(sizes, np.int64))
        return Value(name, out.shape)

    def _transpose(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        order = params["permutation"]
        (name,) = self.emit("Transpose", x, perm=list(order))
        return Value(name, tuple(x.shape[axis] for axis in order))

    def _squeeze(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        axes = params["dimensions"]
        (name,) = self.emit("Squeeze", x, np.array(axes, np.int64))
        return Value(name, tuple(n for axis, n in enumerate(x.shape) if axis not in axes))

    def _slice(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        strides = params["strides"] or (1,) * len(out.shape)
        cut = [axis for axis, n in enumerate(shapes[0]) if out.shape[axis] != n]
        bounds = [[params[side][axis] for axis in cut] for side in ("start_indices",
                  "limit_indices")]  # fmt: skip
        if not cut:
            return x
        (name,) = self.emit(
            "Slice", self.full(x, shapes[0]), *(np.array(b, np.int64) for b in bounds),
            np.array(cut, np.int64), np.array([strides[axis] for axis in cut], np.int64),
        )  # fmt: skip
        return Value(name, out.shape)

    def _concatenate(self, out: Any, shapes: Any, params: Any, *parts: Operand) -> Operand:
        full = [self.full(x, shape) for x, shape in zip(parts, shapes, strict=True)]
        (name,) = self.emit("Concat", *full, axis=params["dimension"])
        return Value(name, out.shape)

    def _reduce(self, kind: str, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        axes = np.array(params["axes"], np.int64)
        (name,) = self.emit(kind, self.full(x, shapes[0]), axes, keepdims=0)
        return Value(name, out.shape)

    _reduce_sum = functools.partialmethod(_reduce, "ReduceSum")
    _reduce_max = functools.partialmethod(_reduce, "ReduceMax")

    def _argmax(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        (axis,) = params["axes"]
        (place,) = self.emit("ArgMax", self.full(x, shapes[0]), axis=axis, keepdims=0)
        (name,) = self.emit("Cast", place, to=onnx_type(out.dtype))
        return Value(name, out.shape)

    def _cumsum(self, out: Any, shapes: Any, params: Any, x: Operand) -> Operand:
        axis = np.array(params["axis"], np.int64)
        (name,) = self.emit("CumSum", self.full(x, shapes[0]), axis, reverse=int(params["reverse"]))
        return Value(name, out.shape)

    def _dot_general(self, out: Any, shapes: Any, params: Any, x: Operand, y: Operand) -> Operand:
        (over_x, over_y), (batch_x, batch_y) = params["dimension_numbers"]
        rank_x, rank_y, leading = len(shapes[0]), len(shapes[1]), tuple(range(len(batch_x)))
        is_matrices = (
            tuple(batch_x) == tuple(batch_y) == leading
            and rank_x == rank_y == len(leading) + 2
            and tuple(over_x) == (rank_x - 1,)
        )
        left = self.full(x, shapes[0])
        stored = self.weight(y, axis=-1)
        right: Operand | str = stored if stored is not y else self.full(y, shapes[1])
        if is_matrices:
            if tuple(over_y) == (rank_y - 1,):
                order = [*leading, rank_y - 1, rank_y - 2]
                (right,) = self.emit("Transpose", right, perm=order)
            (name,) = self.emit("MatMul", left, right)
        else:
            (name,) = self.emit("Einsum", left, right, equation=_equation_of(
                rank_x, rank_y, over_x, over_y, batch_x, batch_y))  # fmt: skip
        return Value(name, out.shape)

    def _gather(self, out: Any, shapes: Any, params: Any, x: Operand, indices: Operand) -> Operand:
        numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
        axis, whole = (*numbers.start_index_map, 0)[0], shapes[0]
        batched = tuple(numbers.operand_batching_dims)
        others = [n for i, n in enumerate(sizes) if i != axis and i not in batched]
        rest = [n for i, n in enumerate(whole) if i != axis and i not in batched]
        if (
            len(numbers.start_index_map) != 1
            or sizes[axis] != 1
            or others != rest
            or batched not in ((), (0,))
        ):
            raise InputError("the tower gathers in a way that is not converted to ONNX")
        if batched:
            (place,) = self.emit("Cast", self.full(indices, shapes[1]), to=TensorProto.INT64)
            (name,) = self.emit("GatherND", self.full(x, whole), place, batch_dims=1)
        else:
            place = self.full(indices, shapes[1])
            if numbers.collapsed_slice_dims:
                (place,) = self.emit("Squeeze", place, np.array([-1], np.int64))
            stored = self.weight(x, axis=axis)
            table: Operand | str = stored if stored is not x else self.full(x, whole)
            (name,) = self.emit("Gather", table, place, axis=axis)
        return Value(name, out.shape)

    def _conv_general_dilated(
        self, out: Any, shapes: Any, params: Any, x: Operand, kernel: Operand
    ) -> Operand:
        spec = params["dimension_numbers"]
        if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
            raise InputError("the tower has a transposed convolution, which is not converted")
        (planes,) = self.emit("Transpose", self.full(x, shapes[0]), perm=list(spec.lhs_spec))
        if isinstance(kernel, np.ndarray):
            kernel = np.transpose(kernel, spec.rhs_spec)
            kernel = self.weight(kernel, axis=0)
        else:
            (name,) = self.emit("Transpose", kernel, perm=list(spec.rhs_spec))
            kernel = Value(name, tuple(shapes[1][axis] for axis in spec.rhs_spec))
        before, after = zip(*params["padding"], strict=True)
        (result,) = self.emit(
            "Conv", planes, kernel, pads=[*before, *after], strides=list(params["window_strides"]),
            dilations=list(params["rhs_dilation"]), group=params["feature_group_count"],
        )  # fmt: skip
        back = [spec.out_spec.index(axis) for axis in range(len(spec.out_spec))]
        (name,) = self.emit("Transpose", result, perm=back)
        return Value(name, out.shape)


def _equation_of(
    rank_x: int, rank_y: int, over_x: Any, over_y: Any, batch_x: Any, batch_y: Any
) -> str:
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left = [next(letters) for _ in range(rank_x)]
    right = [""] * rank_y
    for i, j in (*zip(batch_x, batch_y, strict=True), *zip(over_x, over_y, strict=True)):
        right[j] = left[i]
    right = [letter or next(letters) for letter in right]
    shared = {left[i] for i in (*batch_x, *over_x)}
    result = [left[i] for i in batch_x] + [c for c in (*left, *right) if c not in shared]
    return f"{''.join(left)},{''.join(right)}->{''.join(result)}"
