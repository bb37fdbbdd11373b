"""A file of the cache of ranges: some bytes of another file, and what tells that all are there.

After a power failure a file can have its name and length, but not its data. Syncing each to disk
would hold up who waits for it; instead, its end says in which boot of the machine it was written,
and a file of another boot is compared with its checksum, once, when it is first used.
"""

import contextlib
import hashlib
import os
import struct
import time
import zlib

_END = struct.Struct("<QI8s")  # bytes of data, their CRC-32, boot
END_BYTES = _END.size
"""By which a file is longer than its data."""
_TOUCH_SECONDS = 5.0  # between two notes that a file is used; eviction needs no finer order


def _read_boot() -> bytes:
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return hashlib.sha256(file.read()).digest()[:8]
    except OSError:
        return bytes(8)  # not Linux: files of all boots are taken as they are


_BOOT = _read_boot()


def write_whole(descriptor: int, data: bytes) -> None:
    """Write data and end at the beginning of a file; raises `OSError`."""
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
        file.write(_END.pack(len(data), zlib.crc32(data), _BOOT))


def is_whole(descriptor: int, path: str, size: int) -> bool:
    """True if a file holds `size` bytes that have not been lost; notes that it is used."""
    stat = os.fstat(descriptor)
    if stat.st_size != size + _END.size:
        return False
    length, checksum, boot = _END.unpack(os.pread(descriptor, _END.size, size))
    if length != size:
        return False
    if boot != _BOOT:
        if zlib.crc32(os.pread(descriptor, size, 0)) != checksum:
            return False
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            os.pwrite(file.fileno(), _END.pack(length, checksum, _BOOT), size)
    if time.time() - stat.st_mtime > _TOUCH_SECONDS:
        with contextlib.suppress(OSError):
            os.utime(descriptor)
    return True
