"""Kernels of attention on TPUs: what one program does with the positions of its examples.

A program works on 128 channels, which are one or more whole heads, of as many examples as one tile
of memory holds; an example's positions are gathered from the tiles as they are loaded. Heads of the
same 128 channels share products: queries of each, with the channels of the others zero, are laid
below one another. Logits are [keys, queries]: softmax then reduces over rows, which takes no
exchange between lanes.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

LANES, SUBLANES = 128, 8
ROWS = 16
"""Positions are filled up to a multiple of them: two of 16 bits share a sublane."""
VECTOR_COST = {"forward": (7, 10), "backward": (11, 15)}
"""Times that vector units take for 1,024 logits, and for 1,024 channels of an example's positions,
beyond what the matrix units' FLOPs account for: no less than in the schedules that the compiler
makes for v5e (50, 77, 197 and 257 positions), exponentials, masks, conversions and shuffles
included."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a program works on."""

    length: int
    head_dim: int
    scale: float
    """Of logits."""
    dtype: jnp.dtype
    causal: bool
    has_mask: bool
    interpret: Any = False

    @property
    def packing(self) -> int:
        """Examples that share a sublane."""
        return 4 // self.dtype.itemsize

    @property
    def examples(self) -> int:
        """Those of a tile."""
        return SUBLANES * self.packing

    @property
    def heads(self) -> int:
        return LANES // self.head_dim

    @property
    def rows(self) -> int:
        """Positions, filled up."""
        return math.ceil(self.length / ROWS) * ROWS

    @property
    def blocks(self) -> int:
        """Of 128 queries, those of all heads below one another."""
        return math.ceil(self.heads * self.rows / LANES)

    @property
    def unroll(self) -> int:
        """Sublanes that a turn of the loop over them takes, so that products need not wait."""
        return 2 if self.rows <= LANES else 1

    def cost(self, passes: int, pass_name: str, products: int, arrays: int) -> pl.CostEstimate:
        """What so many (example, 128 channels) take, padding and all.

        A transcendental is what vector units do at a time, `planning.account.kernels` says.
        """
        of_logits, of_channels = VECTOR_COST[pass_name]
        logits, channels = self.blocks * LANES * self.rows, self.rows * LANES
        return pl.CostEstimate(
            flops=passes * products * 2 * LANES * logits,
            transcendentals=passes * (of_logits * logits + of_channels * channels),
            bytes_accessed=passes * arrays * self.length * LANES * self.dtype.itemsize,
        )


def _words(shape: Shape, ref, words) -> None:
    """An array's tiles as words of 32 bits: a row for each position and sublane, zeros at last."""
    x = ref[...].reshape(shape.length * shape.examples, LANES)
    words[: shape.length * SUBLANES] = x if shape.packing == 1 else pltpu.bitcast(x, jnp.uint32)
    if rest := shape.rows - shape.length:
        zeros = jnp.zeros((rest * SUBLANES, LANES), words.dtype)
        words[shape.length * SUBLANES :] = zeros


def _store(shape: Shape, words, ref) -> None:
    """The reverse of `_words`."""
    x = words[: shape.length * SUBLANES]
    x = x if shape.packing == 1 else pltpu.bitcast(x, shape.dtype)
    ref[...] = x.reshape(shape.length, shape.examples, LANES)


def _unpack(shape: Shape, words, sublane) -> list[Float[Array, "rows lanes"]]:
    """The examples of one sublane, in float32."""
    x = words[pl.ds(sublane, shape.rows, stride=SUBLANES), :]
    if shape.packing == 1:
        return [x]
    halves = x << 16, x & jnp.uint32(0xFFFF0000)
    return [jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves]


def _pack(shape: Shape, values: Sequence[Float[Array, "rows lanes"]], words, sublane) -> None:
    """The reverse of `_unpack`, rounded to the array's type."""
    if shape.packing == 1:
        (x,) = values
    else:
        low, high = (
            jax.lax.bitcast_convert_type(x.astype(shape.dtype).astype(jnp.float32), jnp.uint32)
            for x in values
        )
        x = (low >> 16) | high
    words[pl.ds(sublane, shape.rows, stride=SUBLANES), :] = x


def _head_of_lane(shape: Shape) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, (shape.rows, LANES), 1) // shape.head_dim


def _stack_heads(shape: Shape, x: Float[Array, "rows lanes"], ref) -> None:
    """Rows of each head, with zeros in the channels of the others, below one another."""
    lane_head = _head_of_lane(shape)
    for head in range(shape.heads):
        part = x if shape.heads == 1 else jnp.where(lane_head == head, x, 0)
        ref[head * shape.rows : (head + 1) * shape.rows] = part.astype(ref.dtype)
    if rest := ref.shape[0] - shape.heads * shape.rows:
        ref[shape.heads * shape.rows :] = jnp.zeros((rest, LANES), ref.dtype)


def _join_heads(shape: Shape, ref) -> Float[Array, "rows lanes"]:
    """Of each head's rows its own channels: the reverse of `_stack_heads`."""
    lane_head = _head_of_lane(shape)
    joined = ref[: shape.rows]
    for head in range(1, shape.heads):
        rows = ref[head * shape.rows : (head + 1) * shape.rows]
        joined = jnp.where(lane_head == head, rows, joined)
    return joined


def _product(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    # As XLA multiplies float32 elsewhere in the tower: by the context's precision.
    return jax.lax.dot_general(
        x, y, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32
    )


def _weights(
    shape: Shape, block: Int[Array, ""] | int, keys: Array, queries: Array, mask: Sequence[Array]
) -> tuple[Float[Array, "rows queries"], Bool[Array, "rows queries"] | None]:
    """Softmax over keys of a block of queries, [keys, queries], and where a query sees a key."""
    logits = _product(keys, queries, (1, 1))
    key = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
    seen = None
    if shape.causal:
        query = LANES * block + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        for _ in range(1, shape.heads):
            query = jnp.where(query >= shape.rows, query - shape.rows, query)
        seen = key <= query
    for column in mask:
        unpadded = jnp.broadcast_to(column[:, :1], logits.shape) > 0
        seen = unpadded if seen is None else seen & unpadded
    if seen is not None:
        logits = jnp.where(seen, logits, jnp.finfo(jnp.float32).min)
    if shape.rows > shape.length:
        logits = jnp.where(key < shape.length, logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(axis=0, keepdims=True))
    return weights * (1 / weights.sum(axis=0, keepdims=True)), seen


def _rows(block) -> Any:  # a slice of a kind that JAX's versions name differently
    return pl.ds(
        block * LANES if isinstance(block, int) else pl.multiple_of(block * LANES, LANES), LANES
    )


def _block(ref, block) -> Array:
    return ref[_rows(block)]


def forward_kernel(*refs, shape: Shape) -> None:
    def attend(queries, stacked, q, k, v, *mask):
        _stack_heads(shape, q * shape.scale, queries)
        k, v = k.astype(shape.dtype), v.astype(shape.dtype)

        def attend_block(block):
            weights, _ = _weights(shape, block, k, _block(queries, block), mask)
            z = _product(weights.astype(shape.dtype), v, (0, 0))
            stacked[_rows(block)] = z

        return attend_block, lambda: (_join_heads(shape, stacked),)

    _each_example(shape, refs, 3 + shape.has_mask, 1, attend)


def backward_kernel(*refs, shape: Shape) -> None:
    def attend(queries, stacked, dzs, dk_sum, dv_sum, q, k, v, dz, *mask):
        _stack_heads(shape, q * shape.scale, queries)
        _stack_heads(shape, dz, dzs)
        k, v = k.astype(shape.dtype), v.astype(shape.dtype)
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

        def attend_block(block):
            q, dz = _block(queries, block), _block(dzs, block)
            weights, seen = _weights(shape, block, k, q, mask)
            dweights = _product(v, dz, (1, 1))
            mean = (weights * dweights).sum(axis=0, keepdims=True)
            dlogits = weights * (dweights - mean)
            if shape.has_mask:  # weights are not zero where a query sees padding alone
                dlogits = jnp.where(seen, dlogits, 0)
            dlogits = dlogits.astype(shape.dtype)
            dv_sum[...] += _product(weights.astype(shape.dtype), dz, (1, 0))
            dk_sum[...] += _product(dlogits, q, (1, 0))
            stacked[_rows(block)] = _product(dlogits, k, (0, 0))

        def finish():
            return _join_heads(shape, stacked) * shape.scale, dk_sum[...], dv_sum[...]

        return attend_block, finish

    _each_example(shape, refs, 4 + shape.has_mask, 3, attend)


def _each_example(shape: Shape, refs, inputs: int, outputs: int, attend: Callable) -> None:
    """Attention of all examples of a program.

    `attend` takes scratch and the inputs of one example, in float32, and returns what to do for
    each block of queries, and what then gives the outputs. Those of several examples go side by
    side, or one product would wait for another.
    """
    arrays = inputs + outputs
    refs, words, scratch = refs[:arrays], refs[arrays : 2 * arrays], refs[2 * arrays :]
    for ref, tiles in zip(refs[:inputs], words[:inputs], strict=True):
        _words(shape, ref, tiles)

    @pl.loop(0, SUBLANES // shape.unroll)
    def _(turn):
        sublanes = [turn * shape.unroll + step for step in range(shape.unroll)]
        examples = [
            example
            for sublane in sublanes
            for example in zip(*(_unpack(shape, x, sublane) for x in words[:inputs]), strict=True)
        ]
        parts = [
            attend(*(ref.at[index] for ref in scratch), *example)
            for index, example in enumerate(examples)
        ]

        def attend_block(block):
            for attend_one, _ in parts:
                attend_one(block)

        if shape.blocks == 1:
            attend_block(0)
        else:
            pl.loop(0, shape.blocks)(attend_block)
        results = [finish() for _, finish in parts]
        for step, sublane in enumerate(sublanes):
            of_sublane = results[step * shape.packing : (step + 1) * shape.packing]
            for tiles, values in zip(words[inputs:], zip(*of_sublane, strict=True), strict=True):
                _pack(shape, values, tiles, sublane)

    for ref, tiles in zip(refs[inputs:], words[inputs:], strict=True):
        _store(shape, tiles, ref)
