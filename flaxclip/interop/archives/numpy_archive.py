"""NumPy's .npz -> tensors by name."""

import functools
import math
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import DAMAGED, StoredTensor, size_of

MAX_EXPANSION = 10
"""Largest ratio of an .npz's contents to its compressed size. Trained weights hardly compress."""

_NAMELESS = np.dtype("V2")
"""The type that NumPy's files have in place of bfloat16."""


def open_npz(
    file: Path | bytes, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]
) -> dict[str, StoredTensor]:
    """The arrays of a zip archive with these entries, all of them NAME.npy.

    Raises:
        InputError: an array is damaged, holds Python objects, or expands to more than can be.
    """
    declared = sum(entry.file_size for entry in entries.values())
    if declared > MAX_EXPANSION * size_of(file) + 2**20:
        raise InputError(
            f"{size_of(file):,} bytes that expand to {declared:,}\n"
            f"weights compress to no less than a {MAX_EXPANSION}th"
        )

    # `ZipFile.open` of Python 3.13.0 skips an entry's extra field, which those of `np.savez` have,
    # by a seek from wherever another thread has left the file: "Overlapped entries", or a wrong
    # checksum.
    one_at_a_time = threading.Lock()

    def read(entry: zipfile.ZipInfo) -> np.ndarray:
        with one_at_a_time, archive.open(entry) as opened:
            array = npy.read_array(opened, allow_pickle=False)
            opened.read()  # to the end, where the checksum is compared
            return array.view(ml_dtypes.bfloat16) if array.dtype == _NAMELESS else array

    tensors = {}
    for file_name, entry in entries.items():
        name = file_name.removesuffix(".npy")
        try:
            with archive.open(entry) as opened:
                shape, dtype, start = _npy_header(cast(zipfile.ZipExtFile, opened))
        except DAMAGED as error:
            raise InputError(f"tensor {name} has no usable header: {error}") from None
        if dtype.hasobject:
            raise InputError(f"tensor {name} holds Python objects, which were not loaded")
        if start + math.prod(shape) * dtype.itemsize != entry.file_size:
            raise InputError(
                f"tensor {name} of shape {list(shape)} and type {dtype} does not fill the "
                f"{entry.file_size:,} bytes that it has"
            )
        kind = np.dtype(ml_dtypes.bfloat16) if dtype == _NAMELESS else dtype
        tensors[name] = StoredTensor(name, shape, kind, functools.partial(read, entry))
    return tensors


def _npy_header(file: zipfile.ZipExtFile) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type, and length of the header in bytes."""
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the .npy format")
    shape, _, dtype = read(file)
    return shape, dtype, file.tell()
