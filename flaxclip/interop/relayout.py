"""A peer's numbers, with their axes in another order, in memory that JAX takes over as it is."""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Shaped

from flaxclip.interop.archives.stored_tensor import StoredTensor

ALIGNMENT = 64
"""Bytes. JAX copies what begins elsewhere (`kMinimumAlignment` of XLA's CPU client)."""

_COLUMNS = 8
"""Numbers written side by side: more of them fall out of the cache before their rows are read on,
fewer leave NumPy too little to do at a time."""

_BLOCK = 2**18
"""Numbers that are read before they are copied: few enough to be in the cache still."""


def empty_aligned(shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """An uninitialised array of float32 that `jax.device_put` need not copy on a CPU."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(np.float32).reshape(shape)


def fill(place: Float[np.ndarray, "..."], tensor: np.ndarray | StoredTensor) -> None:
    """Put a tensor's numbers, as float32, in `place`, whose axes may lie in any order in memory.

    What lies in a file as it is gets no other memory than `place`, but for a block at a time.

    Raises:
        InputError: they are damaged or gone.
    """
    if not (isinstance(tensor, StoredTensor) and tensor.has_extent):
        numbers = np.asarray(tensor).astype(np.float32, copy=False)
        copy_transposed(place, numbers.reshape(place.shape))
        return
    if place.flags.c_contiguous and tensor.dtype == place.dtype:
        tensor.read_into(place.reshape(-1), 0)
        return
    block, first = np.empty(min(_BLOCK, place.size), tensor.dtype), 0
    for part in _parts(place):
        numbers = block[: part.size]
        tensor.read_into(numbers, first)
        copy_transposed(part, numbers.astype(np.float32, copy=False).reshape(part.shape))
        first += part.size


def _parts(place: np.ndarray) -> Iterator[np.ndarray]:
    """`place` in its axes' order, in views of a block at most."""
    if place.size <= _BLOCK:
        yield place
        return
    rows = _BLOCK // place[0].size
    if rows == 0:
        for row in place:
            yield from _parts(row)
        return
    rows -= rows % _COLUMNS if rows > _COLUMNS else 0
    for start in range(0, len(place), rows):
        yield place[start : start + rows]


def copy_transposed(target: Shaped[np.ndarray, "..."], source: Shaped[np.ndarray, "..."]) -> None:
    """`target[...] = source`, for a contiguous source and a target whose axes lie in another order.

    NumPy alone goes through a large matrix that is to be transposed column by column, and has lost
    a row from the cache when it needs the next number of it.
    """
    target, source = _joined(target, source)
    fastest = int(np.argmin(target.strides)) if target.ndim else -1
    if fastest in (-1, target.ndim - 1):
        target[...] = source
        return
    target, source = (np.moveaxis(array, (fastest, -1), (-2, -1)) for array in (target, source))
    for index in np.ndindex(target.shape[:-2]):
        matrix, theirs = target[index], source[index]
        for start in range(0, len(matrix), _COLUMNS):
            matrix[start : start + _COLUMNS] = theirs[start : start + _COLUMNS]


def _joined(target: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Views of both without axes of length 1, and in which axes that follow one another in memory
    in both are one.
    """
    shape: list[int] = []
    strides: list[int] = []
    for length, stride in zip(target.shape, target.strides, strict=True):
        if length == 1:
            continue
        if strides and strides[-1] == length * stride:
            shape[-1], strides[-1] = shape[-1] * length, stride
        else:
            shape.append(length)
            strides.append(stride)
    return target.reshape(shape), source.reshape(shape)
