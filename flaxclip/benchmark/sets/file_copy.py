"""One file copied from elsewhere: by ranges, resumed after a kill, checked before it is named."""

import hashlib
import os
import threading
from pathlib import Path

from flaxclip.benchmark.sets.origin import RemoteFile
from flaxclip.benchmark.sets.progress import Progress
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.errors import InputError

CHUNK_BYTES = 2**24
"""Of one request: what a killed process may have read in vain, of each file."""


def partial_path(path: Path, file: RemoteFile) -> Path:
    """Where a part of the file is until all is there: of another state it is no beginning."""
    return path.with_name(f"{path.name}.{file.checksum.partition(':')[2][:12]}.partial")


def size_of_part(path: Path, file: RemoteFile) -> int:
    """Bytes of the file that need not be read again."""
    try:
        size = partial_path(path, file).stat().st_size
    except FileNotFoundError:
        return 0
    return size if size <= file.size else 0


def copy_file(
    url: str, file: RemoteFile, path: Path, progress: Progress, stop: threading.Event
) -> None:
    """Make `path` a copy of the file at the URL, or a part of one if told to stop.

    What is there of it already, `size_of_part`, is not added to the progress.

    Raises:
        InputError: it cannot be read, or what arrives is not the file.
        StorageAwayError: see `fetch`.
        OSError: it cannot be written.
    """
    partial = partial_path(path, file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    resumed = partial.exists()
    if not _fill(partial, file, url, progress, stop):
        return
    if not has_checksum(partial, file):
        partial.unlink()
        # A machine that went down may have kept a part's length and not its bytes.
        if resumed:
            progress.add(-file.size)
            copy_file(url, file, path, progress, stop)
            return
        raise InputError(
            f"{url} arrived with another checksum than it has there, {file.checksum}\n"
            "try again; if it stays so, something on the way changes it"
        )
    os.replace(partial, path)


def _fill(
    partial: Path, file: RemoteFile, url: str, progress: Progress, stop: threading.Event
) -> bool:
    """Append what is lacking; False if told to stop before."""
    with partial.open("ab") as out:
        if out.tell() > file.size:
            out.truncate(0)
            out.seek(0)
        while out.tell() < file.size:
            if stop.is_set():
                return False
            data = read_range(url, out.tell(), min(out.tell() + CHUNK_BYTES, file.size))
            out.write(data)
            out.flush()
            progress.add(len(data))
        os.fsync(out.fileno())
    return True


def read_range(url: str, start: int, end: int) -> bytes:
    """Some bytes of a file elsewhere; raises as `copy_file` does over what it reads."""
    try:
        # No version is asked for: most are of a commit, and all are compared with their checksums.
        return fetch(Extent(url, start, end, None))
    except UnreadableExampleError as error:
        raise InputError(f"cannot copy {error}\ntry again: it goes on from there") from None


def has_checksum(path: Path, file: RemoteFile) -> bool:
    """True if the file at `path` is that file, as far as its checksum tells."""
    kind, _, expected = file.checksum.partition(":")
    if kind == "state":
        return path.stat().st_size == file.size
    with path.open("rb") as data:
        if kind in ("sha256", "md5"):
            return hashlib.file_digest(data, kind).hexdigest() == expected
        blob = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        blob.update(data.read())
    return blob.hexdigest() == expected
