"""A tensor in a file of weights, whose numbers are read when they are asked for."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

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


def size_of(file: Path | bytes) -> int:
    """Bytes of a file, on disk or in memory."""
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def open_binary(file: Path | bytes) -> io.BufferedIOBase:
    """A file, on disk or in memory, to read from its start."""
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
