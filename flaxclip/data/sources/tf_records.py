"""TFRecord files, read by position and without TensorFlow.

A record is, in little-endian numbers: its length (8 bytes), the masked CRC-32C of that (4), its
bytes, the masked CRC-32C of those (4); see tensorflow/core/lib/io/record_writer.h. The second
checksum is not looked at: in Python it would take longer than the decoding of an image.
"""

import os
import struct
from pathlib import Path

import numpy as np

from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError

_HEAD = struct.Struct("<QI")
_FOOT_BYTES = 4
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reversed


class TfRecords:
    """The records of a file."""

    def __init__(self, path: Path) -> None:
        """Find where each record is.

        Raises:
            InputError: the file is cut off, or no TFRecord file.
        """
        self.path = path
        offsets, position = [], 0
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while position < size:
                head = os.pread(file.fileno(), _HEAD.size, position)
                length = _length(head)
                if length is None:
                    raise InputError(
                        f"{path} is no TFRecord file from byte {position:,} on\n"
                        "compressed ones are not read; if it was cut off, fetch it again"
                    )
                offsets.append((position + _HEAD.size, length))
                position += _HEAD.size + length + _FOOT_BYTES
        if position > size:
            raise InputError(f"{path} ends inside of record {len(offsets) - 1}\nfetch it again")
        self._offsets = np.array(offsets, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> bytes:
        offset, length = self._offsets[index].tolist()
        try:
            with self.path.open("rb") as file:
                data = os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise UnreadableExampleError(f"{self.path}: {error.strerror}") from error
        if len(data) != length:
            raise UnreadableExampleError(f"{self.path} ends inside of record {index}")
        return data


def _length(head: bytes) -> int | None:
    """Of the record that begins so; None if none does."""
    if len(head) < _HEAD.size:
        return None
    length, expected = _HEAD.unpack(head)
    return length if expected == checksum(head[:8]) else None


def checksum(data: bytes) -> int:
    """The masked CRC-32C."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = [_entry(value) for value in range(256)]
