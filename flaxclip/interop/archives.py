"""Files of weights -> tensors by name, without torch and without running what a file contains.

A file's tensors are listed when it is opened; the numbers of one are read when they are asked for.
Zip archives carry checksums, so a flipped bit in them is found then; safetensors files do not.
"""

import functools
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from numpy.lib import format as npy

from flaxclip.errors import InputError
from flaxclip.interop.torch_pickle import (
    MAX_BYTES,
    Storage,
    TensorView,
    named_tensors,
    read_pickle,
)

MAX_EXPANSION = 10
"""Numbers of a compressed .npz over the size of the file. Trained weights hardly compress."""

# What `zipfile` and NumPy answer damaged files with, whichever byte it is.
_DAMAGED = (
    OSError, EOFError, ValueError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip

_NAMELESS = np.dtype("V2")
"""What NumPy calls bfloat16 when it saves it."""

_SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip


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
        except _DAMAGED as error:
            raise InputError(f"tensor {self.name} cannot be read: {error}") from None
        return array if dtype is None else array.astype(dtype)


def open_archive(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, an index of several, a torch file, or an .npz.

    What kind it is, the file itself tells, whatever its name.

    Raises:
        InputError: none of these, damaged, or with contents that weights do not have.
    """
    try:
        with path.open("rb") as file:
            start = file.read(16)
            if start.startswith(b"PK\3\4"):
                return _open_zip(path)
            if start.startswith(b"\x80"):
                raise InputError(
                    "a torch file of the format before 1.6, or another pickle: to read it is to "
                    "run it\nwrite it anew with torch: torch.save(torch.load(path), new_path), or "
                    "as safetensors"
                )
            if len(start) > 8 and start[8:9] == b"{":
                return _open_safetensors(path)
            if start.lstrip().startswith(b"{"):
                return _open_sharded(path)
            raise InputError(
                f"no file of weights: starts with {start!r}\n"
                "expected safetensors, a torch file (.pt, .bin), or an .npz of big_vision"
            )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        # The library checks the header: offsets in range, without gaps or overlaps. Its own reader
        # maps the file, all of which would stay in memory beside our parameters.
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise InputError(f"not a whole safetensors file: {error}") from None
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))

    def read(entry: dict[str, Any], dtype: np.dtype) -> np.ndarray:
        start, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
        flat = np.fromfile(path, dtype, (end - start) // dtype.itemsize, offset=start)
        return flat.reshape(entry["shape"])

    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise InputError(
                f"tensor {name} is of type {entry['dtype']}\n"
                "expected floating-point weights; quantised files cannot be read"
            )
        dtype = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]])
        shape = tuple(entry["shape"])
        tensors[name] = StoredTensor(name, shape, dtype, functools.partial(read, entry, dtype))
    return tensors


def _open_sharded(path: Path) -> dict[str, StoredTensor]:
    """All files that a `model.safetensors.index.json` lists."""
    try:
        files = json.loads(path.read_text())["weight_map"]
        named = {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"no index of weights: {type(error).__name__}: {error}\nexpected JSON with a weight_map"
        ) from None
    tensors = {}
    for file in sorted(set(named.values())):
        # A name, not a path: an index must not make us read files elsewhere.
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", file):
            raise InputError(
                f"the index names the file {file!r}\nexpected the name of a .safetensors beside it"
            )
        tensors |= open_archive(path.parent / file)
    if missing := sorted(named.keys() - tensors.keys()):
        raise InputError(f"tensor {missing[0]} is in the index, but not in {named[missing[0]]}")
    return tensors


def _open_zip(path: Path) -> dict[str, StoredTensor]:
    try:
        archive = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise InputError(f"a zip archive that is damaged or cut off: {error}") from None
    entries = {}
    for entry in archive.infolist():
        if entry.filename.startswith("/") or ".." in re.split(r"[/\\]", entry.filename):
            raise InputError(f"the archive has an entry {entry.filename!r}, outside of its folder")
        if entry.filename in entries:
            raise InputError(f"the archive has two entries {entry.filename!r}")
        entries[entry.filename] = entry
    roots = {name.removesuffix("data.pkl") for name in entries if re.match("[^/]+/data.pkl$", name)}
    if len(roots) == 1:
        return _open_torch(path, archive, entries, roots.pop())
    if entries and all(name.endswith(".npy") for name in entries):
        return _open_npz(path, archive, entries)
    raise InputError(
        "a zip archive that is neither a torch file nor an .npz\n"
        "expected FOLDER/data.pkl with FOLDER/data/..., or NAME.npy"
    )


def _open_torch(
    path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], root: str
) -> dict[str, StoredTensor]:
    def entry(name: str) -> zipfile.ZipInfo:
        if root + name not in entries:
            raise InputError(f"the archive has no entry {root + name}")
        found = entries[root + name]
        # torch stores without compression, so what is declared can be no more than what is there.
        if found.compress_type != zipfile.ZIP_STORED or found.file_size != found.compress_size:
            raise InputError(
                f"the archive's entry {root + name} is compressed\ntorch writes none that is"
            )
        if found.header_offset + found.file_size > path.stat().st_size:
            raise InputError(f"the archive's entry {root + name} is larger than the file")
        return found

    def read(name: str, most: int) -> bytes:
        found = entry(name)
        if found.file_size > most:
            raise InputError(f"the archive's entry {root + name} has {found.file_size:,} bytes")
        try:
            return archive.read(found)
        except _DAMAGED as error:
            raise InputError(f"the archive's entry {root + name} is damaged: {error}") from None

    if root + "byteorder" in entries and (order := read("byteorder", 16)) != b"little":
        raise InputError(f"numbers are stored in byte order {order!r}\nexpected b'little'")

    # Tensors of one storage follow one another, and the next one's storage is another.
    @functools.lru_cache(maxsize=1)
    def storage(key: str, dtype: np.dtype) -> np.ndarray:
        return np.frombuffer(archive.read(entry(f"data/{key}")), dtype)

    def numbers(view: TensorView) -> np.ndarray:
        flat = storage(view.storage.key, view.storage.dtype)
        itemsize = flat.itemsize
        return np.lib.stride_tricks.as_strided(
            flat[view.offset :], view.shape, [s * itemsize for s in view.strides], writeable=False
        )

    tensors = {}
    for name, view in named_tensors(read_pickle(read("data.pkl", MAX_BYTES))).items():
        _check_view(name, view, view.storage, entry(f"data/{view.storage.key}").file_size)
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


def _open_npz(
    path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]
) -> dict[str, StoredTensor]:
    declared = sum(entry.file_size for entry in entries.values())
    if declared > MAX_EXPANSION * path.stat().st_size + 2**20:
        raise InputError(
            f"{path.stat().st_size:,} bytes that expand to {declared:,}\n"
            f"weights compress to no less than a {MAX_EXPANSION}th"
        )

    def read(entry: zipfile.ZipInfo) -> np.ndarray:
        with archive.open(entry) as file:
            array = npy.read_array(file, allow_pickle=False)
            file.read()  # to the end, where the checksum is compared
            return array.view(ml_dtypes.bfloat16) if array.dtype == _NAMELESS else array

    tensors = {}
    for file_name, entry in entries.items():
        name = file_name.removesuffix(".npy")
        try:
            with archive.open(entry) as file:
                shape, dtype, start = _npy_header(file)
        except _DAMAGED as error:
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
