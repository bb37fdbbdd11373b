"""A tensor in a file of weights, whose numbers are read when they are asked for."""

import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from flaxclip.errors import InputError

# What `zipfile` and NumPy answer damaged files with, whichever byte it is.
DAMAGED = (
    OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


class StoredTensor:
    """A tensor in a file: `np.asarray(tensor)` reads it."""

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[], np.ndarray]
    ):
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._read = read

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The numbers; raises InputError if they are damaged or gone."""
        try:
            array = self._read()
        except DAMAGED as error:
            raise InputError(f"tensor {self.name} cannot be read: {error}") from None
        return array if dtype is None else array.astype(dtype)
