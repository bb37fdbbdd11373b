"""What the loader makes of a corpus, and the training step takes.

Not in `source.py`: naming JAX's arrays loads JAX, which worker processes do without.
"""

from typing import NamedTuple

from jaxtyping import Array, Int32, UInt8


class Batch(NamedTuple):
    """Row i of both is a pair; a NumPy batch on the host, a `jax.Array` one on the mesh."""

    images: UInt8[Array, "batch height width 3"]
    tokens: Int32[Array, "batch length"]
