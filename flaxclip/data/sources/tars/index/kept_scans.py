"""What is in single shards, kept by a host once it has scanned them, and shared by hosts of a run.

A shard has a file: entries and keys, as in a piece of an index, then the counts and a checksum. Of
a host's processes one scans a shard while the others wait for it; the kernel ends their waiting if
it is killed. Hosts look in the folder that they share, and scan what is not there.
"""

import contextlib
import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from flaxclip.data.sources.left_out import MEMBER_REASONS
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.sources.tars.index.index_storage import join_path, write_whole
from flaxclip.data.sources.tars.index.index_table import FORMAT, Piece
from flaxclip.data.sources.tars.tar_scan import COUNTS, ENTRY, ShardScan
from flaxclip.data.storage.file_systems import Version, is_remote, version_of
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.errors import InputError

_NAMES = (*COUNTS, *MEMBER_REASONS)
_END = struct.Struct(f"<{len(_NAMES)}II")  # counts, CRC of all before it

Scan = Callable[[str, Version], ShardScan | InputError]


class KeptScan(NamedTuple):
    """A shard that has been scanned."""

    piece: Piece
    """Its entries, from byte 0, and behind them its keys."""
    keys_size: int
    counts: dict[str, int]
    """By the names in `COUNTS` and `MEMBER_REASONS`."""


class KeptScans(NamedTuple):
    """Where they are kept; copies can be sent to other processes."""

    folder: str
    """On this host's disk."""
    shared: str | None
    """Path, or URL, of a folder that all hosts of the run read and write, if there are several."""

    def get(self, path: str, version: Version, scan: Scan) -> KeptScan:
        """What is in a shard, which is scanned unless that is known.

        Raises:
            InputError: as `scan` has returned it, or the folder cannot be written.
            OSError: the folder that hosts share cannot be read or written.
        """
        own = self._own(path, version)
        if (kept := _find(own)) is not None:
            return kept
        with _locked(f"{own}.lock"):
            if (kept := _find(own)) is not None:
                return kept
            shared = None if self.shared is None else join_path(self.shared, os.path.basename(own))
            if shared is not None and (kept := _find(shared)) is not None:
                return kept
            found = scan(path, version)
            if isinstance(found, InputError):
                raise found
            data = _to_bytes(found)
            try:
                write_whole(own, data)
            except OSError as error:
                raise _cannot_write(own, error) from None
            if shared is not None:
                write_whole(shared, data)
            return _from_end(own, len(data), data[-_END.size :])

    def here(self, path: str, version: Version) -> bool:
        """True if this host has scanned a shard; waits for nothing."""
        return os.path.exists(self._own(path, version))

    def _own(self, path: str, version: Version) -> str:
        identity = repr((FORMAT, path, tuple(version))).encode()
        name = hashlib.sha256(identity).hexdigest()[:32]
        return join_path(self.folder, name[:2], name)


def _to_bytes(scan: ShardScan) -> bytes:
    data = scan.entries.tobytes() + scan.keys
    data += np.array([scan.counts[name] for name in _NAMES], "<u4").tobytes()
    return data + zlib.crc32(data).to_bytes(4, "little")


def _find(path: str) -> KeptScan | None:
    """A scan from its file; None if there is none, or it has not reached the disk whole."""
    try:
        if is_remote(path):
            size = version_of(path).size
            return _from_end(path, size, fetch(Extent(path, size - _END.size, size, None)))
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    except UnreadableExampleError as error:  # it is no example, to be replaced by another
        raise OSError(str(error)) from error
    # After a power failure a file may have its length, but not its data.
    if len(data) < _END.size or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        return None
    return _from_end(path, len(data), data[-_END.size :])


def _from_end(path: str, size: int, end: bytes) -> KeptScan:
    counts = dict(zip(_NAMES, _END.unpack(end)[:-1], strict=True))
    keys_size = size - _END.size - counts["pairs"] * ENTRY.itemsize
    return KeptScan(Piece(path, size), keys_size, counts)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Alone among the processes and threads of this host, or nearly.

    Whoever comes when another has just removed the file does not see who still waits for it.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        with contextlib.suppress(OSError):
            os.unlink(path)
    finally:
        os.close(descriptor)  # and unlock


def _cannot_write(path: str, error: OSError) -> InputError:
    return InputError(
        f"cannot write what is in a shard to {path}: {error.strerror or error}\n"
        "make room there, or set XDG_CACHE_HOME to a folder that can be written"
    )
