"""Torch's format before 1.6, which `torch.save` still writes on request.

Pickles one after another, none of which are executed: a magic number, a version, facts about the
machine, the value, and the keys of its storages; then, for each key, a count and the numbers. No
checksums.
"""

import io
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import open_binary, size_of
from flaxclip.interop.archives.torch_pickle import MAX_BYTES, read_pickles
from flaxclip.interop.archives.torch_values import Storage

MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


class _Place(NamedTuple):
    start: int
    bytes: int


class LegacyStorages:
    """The storages of a file in the format before torch 1.6."""

    def __init__(self, file: Path | bytes, places: dict[str, _Place]):
        self._file = file
        self._places = places

    def stored_bytes(self, key: str) -> int:
        """Size of the storage so named; raises InputError if there is none."""
        if key not in self._places:
            raise InputError(f"the file has no storage {key}")
        return self._places[key].bytes

    def read(self, storage: Storage) -> np.ndarray:
        """All its numbers, flat."""
        place = self._places[storage.key]
        count = place.bytes // storage.dtype.itemsize
        if isinstance(self._file, bytes):
            return np.frombuffer(self._file, storage.dtype, count, place.start)
        flat = np.fromfile(self._file, storage.dtype, count, offset=place.start)
        if len(flat) != count:
            raise ValueError("the file has been cut off")
        return flat


def open_torch_legacy(file: Path | bytes) -> tuple[Any, LegacyStorages]:
    """The value that was saved, and its storages.

    Raises:
        InputError: it is no such file, or damaged or cut off, or from a big-endian machine.
    """
    with open_binary(file) as opened:
        head = io.BytesIO(opened.read(MAX_BYTES))
    pickles = read_pickles(head)
    try:
        magic = next(pickles).value
    except InputError:
        magic = None
    if magic != MAGIC:
        raise InputError(
            "a pickle that is not of torch.save, and to read it is to run it; nothing was run\n"
            "in a program that trusts this file, save the weights alone: "
            "torch.save(model.state_dict(), path)"
        )
    version, machine = next(pickles).value, next(pickles).value
    if version != _VERSION or not isinstance(machine, dict):
        raise InputError(f"a torch file of another version than {_VERSION}")
    if machine.get("little_endian") is not True:
        raise InputError("numbers are stored in another byte order\nexpected little-endian")
    described, keys = next(pickles), next(pickles).value
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or sorted(keys) != sorted(described.storages):
        raise InputError("the pickle is damaged: the list of storages is not that of the tensors")
    places = _places(file, head.tell(), [described.storages[key] for key in keys])
    return described.value, LegacyStorages(file, places)


def _places(file: Path | bytes, start: int, storages: list[Storage]) -> dict[str, _Place]:
    places = {}
    file_bytes = size_of(file)
    with open_binary(file) as opened:
        for storage in storages:
            opened.seek(start)
            prefix = opened.read(8)
            place = _Place(start + 8, storage.size * storage.dtype.itemsize)
            start = place.start + place.bytes
            if start > file_bytes:
                raise InputError("the file is cut off: it ends within the numbers")
            if struct.unpack("<q", prefix)[0] != storage.size:
                raise InputError(f"the file is damaged: storage {storage.key} has another size")
            places[storage.key] = place
    if start != file_bytes:
        raise InputError(f"{file_bytes - start:,} bytes follow the last storage\nexpected none")
    return places
