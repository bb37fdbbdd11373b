"""Attention on TPUs as one kernel, forward and backward: logits never leave the chip.

The TPU keeps a batch of activations position by position, so that the sizes that are no multiple of
8 waste nothing. The kernel takes and gives them that way, [positions, examples, channels], and so
nothing is copied between it and the projections.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from flaxclip.models.attention.tpu_kernels import (
    LANES,
    SUBLANES,
    Shape,
    backward_kernel,
    forward_kernel,
)
from flaxclip.sharding import on_each_device


def attention(
    q: Float[Array, "b l w"],
    k: Float[Array, "b l w"],
    v: Float[Array, "b l w"],
    padding_mask: Bool[Array, "b l"] | None = None,
    *,
    heads: int,
    causal: bool,
    scale: float | None = None,
    interpret: Any = False,
) -> Float[Array, "b l w"]:
    """`dot_product_attention` by the kernel, on each device for its examples and heads.

    Args:
        q: queries of all heads; what there is room for, `compute.KERNEL_POSITIONS` tells.
        k: keys.
        v: values.
        padding_mask: True for keys that may be attended to. If None, all.
        heads: number of heads.
        causal: True if a query attends to its own position and those before it alone.
        scale: of queries; if None, channels^-1/2.
        interpret: as of `pallas_call`, for tests without a TPU.
    """
    head_dim = q.shape[2] // heads
    run = _Run(head_dim, head_dim**-0.5 if scale is None else scale, causal, interpret)
    return _attention(run, () if padding_mask is None else (padding_mask,), q, k, v)


@dataclasses.dataclass(frozen=True)
class _Run:
    """What arrays do not tell of attention."""

    head_dim: int
    scale: float
    causal: bool
    interpret: Any

    def on_devices(
        self, call: Callable, arrays: Sequence[Array], mask: Sequence[Bool[Array, "b l"]]
    ) -> tuple[Float[Array, "b l w"], ...]:
        """`call` on arrays [b, l, w], divided as the tower's activations are."""
        count, axes = len(arrays), ("batch", None, "heads")

        def on_device(*parts: Array) -> tuple[Array, ...]:
            heads = parts[0].shape[2] // self.head_dim
            shape = Shape(
                parts[0].shape[1], _channels(self.head_dim, heads), self.scale,
                parts[0].dtype, self.causal, bool(mask), self.interpret,
            )  # fmt: skip
            columns = (x.T[:, :, None].astype(shape.dtype) for x in parts[count:])
            results = call(
                shape,
                [_fill(x, heads, shape.head_dim) for x in parts[:count]],
                [jnp.broadcast_to(x, (*x.shape[:2], LANES)) for x in columns],
            )
            return tuple(_cut(x, heads, self.head_dim) for x in results)

        operands = [(x, axes) for x in arrays] + [(x, axes[:2]) for x in mask]
        return on_each_device(on_device, operands, axes)


def _channels(head_dim: int, heads: int) -> int:
    """Those that a head is given: so many that whole heads make 128, the rest zero."""
    return next(
        channels
        for channels in (8, 16, 32, 64, LANES)
        if channels >= head_dim and heads * channels % LANES == 0
    )


def _fill(x: Float[Array, "b l w"], heads: int, channels: int) -> Float[Array, "l b filled"]:
    """With zeros behind each head's channels, if it is given more than it has."""
    missing = channels - x.shape[2] // heads
    if missing:
        x = rearrange(x, "b l (h k) -> b l h k", h=heads)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, missing)))
        x = rearrange(x, "b l h k -> b l (h k)")
    return rearrange(x, "b l w -> l b w")


def _cut(x: Float[Array, "l b filled"], heads: int, head_dim: int) -> Float[Array, "b l w"]:
    """The reverse of `_fill`."""
    x = rearrange(x, "l b w -> b l w")
    if x.shape[2] == heads * head_dim:
        return x
    x = rearrange(x, "b l (h k) -> b l h k", h=heads)[..., :head_dim]
    return rearrange(x, "b l h k -> b l (h k)")


def _call(kernel, shape: Shape, inputs, outputs: int, scratch, pass_name: str, products: int):
    """`kernel` on all examples and channels of inputs, [length, examples, channels]."""
    length, examples, channels = inputs[0].shape
    grid = pl.cdiv(examples, shape.examples), channels // LANES
    block = length, shape.examples, LANES
    each = pl.BlockSpec(block, lambda i, j: (0, i, j))
    mask = pl.BlockSpec(block, lambda i, j: (0, i, 0))
    whole = jax.ShapeDtypeStruct(inputs[0].shape, shape.dtype)
    arrays = len(inputs) - shape.has_mask + outputs
    words = pltpu.VMEM(
        (shape.rows * SUBLANES, LANES), jnp.float32 if shape.packing == 1 else jnp.uint32
    )
    buffers = 3 * (len(inputs) + outputs) * math.prod(block) * shape.dtype.itemsize
    return pl.pallas_call(
        functools.partial(kernel, shape=shape),
        grid=grid,
        in_specs=[each] * (len(inputs) - shape.has_mask) + [mask] * shape.has_mask,
        out_specs=[each] * outputs,
        out_shape=[whole] * outputs,
        scratch_shapes=[words] * (len(inputs) + outputs) + scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"),
            vmem_limit_bytes=buffers + 2**24,
        ),
        cost_estimate=shape.cost(grid[0] * shape.examples * grid[1], pass_name, products, arrays),
        interpret=shape.interpret,
    )(*inputs)


def _buffers(shape: Shape, rows: int, *dtypes) -> list:
    """One of each type for every example that a turn of the loop takes."""
    return [pltpu.VMEM((shape.unroll * shape.packing, rows, LANES), dtype) for dtype in dtypes]


def _forward(shape: Shape, inputs: list[Array], mask: list[Array]) -> Sequence[Array]:
    scratch = _buffers(shape, shape.blocks * LANES, shape.dtype, jnp.float32)
    return _call(forward_kernel, shape, [*inputs, *mask], 1, scratch, "forward", 2)


def _backward(shape: Shape, inputs: list[Array], mask: list[Array]) -> Sequence[Array]:
    scratch = [
        *_buffers(shape, shape.blocks * LANES, shape.dtype, jnp.float32, shape.dtype),
        *_buffers(shape, shape.rows, jnp.float32, jnp.float32),
    ]
    return _call(backward_kernel, shape, [*inputs, *mask], 3, scratch, "backward", 5)


# Outside of the shard_map, so that what the backward pass needs is seen to be what is kept.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(run: _Run, mask: tuple, q: Array, k: Array, v: Array) -> Array:
    (z,) = run.on_devices(_forward, [q, k, v], mask)
    return z


def _attention_forward(run: _Run, mask: tuple, q: Array, k: Array, v: Array):
    return _attention(run, mask, q, k, v), (mask, q, k, v)


def _attention_backward(run: _Run, kept: tuple, dz: Array):
    mask, q, k, v = kept
    return (None, *run.on_devices(_backward, [q, k, v, dz], mask))


_attention.defvjp(_attention_forward, _attention_backward)
