"""A tensor in a file of weights, whose numbers are read when they are asked for."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flaxclip.errors import InputError

# What `zipfile` and NumPy answer damaged files with, whichever byte it is.
DAMAGED = (
    OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


class Extent(NamedTuple):
    """The part of a file that holds a tensor's numbers: in order, with nothing between them."""

    path: Path
    offset: int
    """Bytes before it."""

    def read_into(self, numbers: np.ndarray, first: int) -> None:
        """Read as many as `numbers`, flat, has room for, from number `first` on."""
        rest = numbers.view(np.uint8).data
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + first * numbers.itemsize)
            # Linux reads at most 2 GiB at a time.
            while rest:
                count = file.readinto(rest)
                if not count:
                    raise EOFError("the file is shorter than when it was opened")
                rest = rest[count:]


class StoredTensor:
    """A tensor in a file: `np.asarray(tensor)` reads it."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        read: Callable[[], np.ndarray] | Extent,
    ):
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._read = read

    @property
    def has_extent(self) -> bool:
        """True if `read_into` can be called."""
        return isinstance(self._read, Extent)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """The numbers; raises InputError if they are damaged or gone."""
        if isinstance(self._read, Extent):
            array = np.empty(self.shape, self.dtype)
            self.read_into(array.reshape(-1), 0)
        else:
            try:
                array = self._read()
            except DAMAGED as error:
                raise self._unreadable(error) from None
        return array if dtype is None else array.astype(dtype)

    def read_into(self, numbers: np.ndarray, first: int) -> None:
        """Read as many as `numbers`, flat and of the same type, has room for, from `first` on.

        Raises:
            InputError: they are damaged or gone.
        """
        assert isinstance(self._read, Extent), "see `has_extent`"
        try:
            self._read.read_into(numbers, first)
        except DAMAGED as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"tensor {self.name} cannot be read: {error}")


def size_of(file: Path | bytes) -> int:
    """Bytes of a file, on disk or in memory."""
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def open_binary(file: Path | bytes) -> io.BufferedIOBase:
    """A file, on disk or in memory, to read from its start."""
    return io.BytesIO(file) if isinstance(file, bytes) else file.open("rb")
