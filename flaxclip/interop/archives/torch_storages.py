"""Views of torch's storages -> tensors by name, for all formats of torch."""

import functools
import math
import threading
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.archives.torch_values import Storage, TensorView


@runtime_checkable
class Storages(Protocol):
    """The storages of a torch file, which hold its numbers."""

    def stored_bytes(self, key: str) -> int:
        """Size of the storage so named; raises InputError if the file has none."""

    def read(self, storage: Storage) -> np.ndarray:
        """All its numbers, flat."""


def stored_tensors(views: Mapping[str, TensorView], storages: Storages) -> dict[str, StoredTensor]:
    """The tensors, checked against what is stored.

    Raises:
        InputError: a tensor reaches beyond its storage, repeats it, or the storage has another size
            than the pickle says.
    """

    # Tensors of one storage follow one another, and the next one's storage is another.
    @functools.lru_cache(maxsize=1)
    def read(storage: Storage) -> np.ndarray:
        return storages.read(storage)

    # Threads that want the same storage would each read it.
    one_at_a_time = threading.Lock()

    def numbers(view: TensorView) -> np.ndarray:
        with one_at_a_time:
            flat = read(view.storage)
        # Not `as_strided`, which knows no type that NumPy itself has not got.
        return np.ndarray(
            view.shape,
            flat.dtype,
            flat.view(np.uint8),
            view.offset * flat.itemsize,
            [step * flat.itemsize for step in view.strides],
        )

    tensors = {}
    for name, view in views.items():
        _check_view(name, view, view.storage, storages.stored_bytes(view.storage.key))
        tensors[name] = StoredTensor(
            name, view.shape, view.storage.dtype, functools.partial(numbers, view)
        )
    return tensors


def _check_view(name: str, view: TensorView, storage: Storage, stored_bytes: int) -> None:
    if storage.size * storage.dtype.itemsize != stored_bytes:
        raise InputError(
            f"tensor {name} lies in {storage.size:,} numbers of {storage.dtype}, "
            f"but {stored_bytes:,} bytes are stored"
        )
    if view.end > storage.size:
        raise InputError(f"tensor {name} reaches beyond the {storage.size:,} numbers stored for it")
    if math.prod(view.shape) > storage.size:
        raise InputError(
            f"tensor {name} repeats {storage.size:,} stored numbers\nto {list(view.shape)}"
        )
