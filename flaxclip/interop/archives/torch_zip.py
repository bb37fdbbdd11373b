"""Torch's own format since 1.6, a zip archive, with `torch.save` or TorchScript in it.

FOLDER/data.pkl         describes the tensors
FOLDER/data/KEY         the numbers of a storage, as they are
FOLDER/byteorder        little or big

Zip archives carry checksums, so a flipped bit is found when a tensor is read. An archive that torch
saved after `torch.serialization.set_crc32_options(False)` has zeros in their place: it is read as
it is, and damage to its numbers cannot be found.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import DAMAGED, open_binary, size_of
from flaxclip.interop.archives.torch_pickle import MAX_BYTES, read_pickle
from flaxclip.interop.archives.torch_values import Storage

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, then the lengths of the name and the extra field that follow it."""


def open_torch_zip(
    file: Path | bytes,
    archive: zipfile.ZipFile,
    entries: Mapping[str, zipfile.ZipInfo],
    root: str,
) -> tuple[Any, "ZipStorages"]:
    """The value that `root`data.pkl describes, and the storages that it refers to.

    Raises:
        InputError: the archive is not as torch writes it, or its numbers are big-endian.
    """
    storages = ZipStorages(file, archive, entries, root)
    if root + "byteorder" in entries and (order := storages.read_text("byteorder")) != b"little":
        raise InputError(f"numbers are stored in byte order {order!r}\nexpected b'little'")
    return read_pickle(storages.read_bytes("data.pkl", MAX_BYTES)), storages


class ZipStorages:
    """The entries of an archive of torch."""

    def __init__(
        self,
        file: Path | bytes,
        archive: zipfile.ZipFile,
        entries: Mapping[str, zipfile.ZipInfo],
        root: str,
    ):
        self._file = file
        self._archive = archive
        self._entries = entries
        self._root = root
        self._file_bytes = size_of(file)
        # A checksum can be 0 by chance or by damage, all of them cannot.
        self._has_checksums = any(entry.CRC for entry in entries.values())

    def stored_bytes(self, key: str) -> int:
        """Size of the storage so named; raises InputError if there is none."""
        return self._entry(f"data/{key}").file_size

    def read(self, storage: Storage) -> np.ndarray:
        """All its numbers, flat."""
        return np.frombuffer(self._content(self._entry(f"data/{storage.key}")), storage.dtype)

    def read_text(self, name: str) -> bytes:
        """A short entry; raises InputError if it is damaged, or not short."""
        return self.read_bytes(name, 16)

    def read_bytes(self, name: str, most: int) -> bytes:
        """Read an entry; raises InputError if it is missing, damaged, or exceeds `most` bytes."""
        found = self._entry(name)
        if found.file_size > most:
            raise InputError(f"the archive's entry {found.filename} has {found.file_size:,} bytes")
        try:
            return self._content(found)
        except DAMAGED as error:
            raise InputError(f"the archive's entry {found.filename} is damaged: {error}") from None

    def _entry(self, name: str) -> zipfile.ZipInfo:
        name = self._root + name
        if name not in self._entries:
            raise InputError(f"the archive has no entry {name}")
        found = self._entries[name]
        # torch stores without compression, so what is declared can be no more than what is there.
        if found.compress_type != zipfile.ZIP_STORED or found.file_size != found.compress_size:
            raise InputError(f"the archive's entry {name} is compressed\ntorch writes none that is")
        if found.header_offset + found.file_size > self._file_bytes:
            raise InputError(f"the archive's entry {name} is larger than the file")
        return found

    def _content(self, entry: zipfile.ZipInfo) -> bytes:
        if self._has_checksums:
            return self._archive.read(entry)
        # `zipfile` would compare with the zeros, and call the entry damaged.
        with open_binary(self._file) as file:
            file.seek(entry.header_offset)
            signature, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            name = file.read(lengths[0])
            if signature != b"PK\3\4" or name != entry.orig_filename.encode():
                raise ValueError("its header is not where the archive's list says")
            file.seek(lengths[1], 1)
            content = file.read(entry.file_size)
        if len(content) != entry.file_size:
            raise ValueError("it is cut off")
        return content
