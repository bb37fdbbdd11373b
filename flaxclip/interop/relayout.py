"""Copies of arrays with their axes in another order, into memory that JAX takes over as it is."""

import math

import numpy as np
from jaxtyping import Float, Shaped

ALIGNMENT = 64
"""Bytes. JAX copies what begins elsewhere (`kMinimumAlignment` of XLA's CPU client)."""

_COLUMNS = 8
"""Numbers written side by side: more of them fall out of the cache before their rows are read on,
fewer leave NumPy too little to do at a time."""


def empty_aligned(shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """An uninitialised array of float32 that `jax.device_put` need not copy on a CPU."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def copy_transposed(target: Shaped[np.ndarray, "..."], source: Shaped[np.ndarray, "..."]) -> None:
    """`target[...] = source`, for a contiguous source and a target whose axes lie in another order.

    NumPy alone goes through a large matrix that is to be transposed column by column, and has lost
    a row from the cache when it needs the next number of it.
    """
    target, source = _joined(target, source)
    if target.ndim < 2 or target.strides[-1] == target.itemsize:
        target[...] = source
        return
    fastest = int(np.argmin(target.strides))
    target, source = (np.moveaxis(array, (fastest, -1), (-2, -1)) for array in (target, source))
    for index in np.ndindex(target.shape[:-2]):
        matrix, theirs = target[index], source[index]
        for start in range(0, len(matrix), _COLUMNS):
            matrix[start : start + _COLUMNS] = theirs[start : start + _COLUMNS]


def _joined(target: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views of both in which axes that follow one another in memory in both are one."""
    shape: list[int] = []
    for axis, length in enumerate(target.shape):
        follows = axis and target.strides[axis - 1] == length * target.strides[axis]
        if follows:
            shape[-1] *= length
        else:
            shape.append(length)
    return target.reshape(shape), source.reshape(shape)
