"""What a pickle of torch is made of, once it is described: views of storages, and the rest."""

from typing import Any, NamedTuple

import numpy as np


class Storage(NamedTuple):
    """A row of numbers that tensors are views of."""

    key: str
    dtype: np.dtype
    size: int


class TensorView(NamedTuple):
    """Where in a storage a tensor's numbers lie; offset and strides count numbers."""

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
    """Something that is no weights, and was not made: a device, bytes, a sparse tensor."""

    kind: str
    """What it is, for people."""


class ScriptObject:
    """An instance of a TorchScript class: its attributes, none of its code."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
