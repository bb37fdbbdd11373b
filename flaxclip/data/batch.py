"""Batches: the loader's output, and the training step's input.

Apart from `source.py`, since importing JAX's array types loads JAX, which worker processes do
without.
"""

from typing import NamedTuple

from jaxtyping import Array, Int32, UInt8


class Batch(NamedTuple):
    """Row i of both is a pair. NumPy arrays on the host, `jax.Array`s on the mesh."""

    images: UInt8[Array, "batch height width 3"]
    tokens: Int32[Array, "batch length"]
