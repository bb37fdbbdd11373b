"""Values in a description of a torch pickle: views of storages, and others."""

from typing import Any, NamedTuple

import numpy as np


class Storage(NamedTuple):
    """A row of numbers that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int


class TensorView(NamedTuple):
    """A tensor as a view of a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last number of the storage that the tensor reads."""
        if 0 in self.shape:
            return self.offset
        reach = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return self.offset + reach + 1


class Other(NamedTuple):
    """Something other than weights, which was not made: a device, bytes, a sparse tensor."""

    kind: str
    """A description for people."""


class ScriptObject:
    """An instance of a TorchScript class: its attributes, none of its code."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
