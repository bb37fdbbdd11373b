"""Copies of sets from elsewhere: `FOLDER/OWNER/NAME/...`, as `hf download` has the Hub's.

A file gets its name when all of it is there and has the checksum that its origin gives. What a
killed process has of a file is gone on with. One process at a time copies a set; others wait for
it, by a lock that the kernel releases if it dies. The list of a set's files is kept, so that no
request is made for what is there, and all files of a repository are of one commit.
"""

import contextlib
import dataclasses
import fcntl
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flaxclip.benchmark.sets.file_copy import copy_file, has_checksum, read_range, size_of_part
from flaxclip.benchmark.sets.origin import Origin, RemoteFile, RemoteSet
from flaxclip.benchmark.sets.progress import Progress, described_size
from flaxclip.errors import InputError

FILES_AT_ONCE = 8
_LIST = ".flaxclip.json"
_LOCK = ".flaxclip.lock"

Choose = Callable[[RemoteSet, Callable[[str], str]], Sequence[str]]
"""Which files of a set are needed; its second argument gives the text of a small one."""


class Copy(NamedTuple):
    """Files of a set, here."""

    folder: Path
    remote: RemoteSet
    names: Sequence[str]

    @property
    def content(self) -> str:
        """What is in the files, wherever they are."""
        return repr([(name, self.remote.files[name].checksum) for name in self.names])


CopyState = Literal["cache", "part", "no"]
"""All files are in the cache, some, or none."""


@dataclasses.dataclass(frozen=True)
class Copies:
    """Copies below a folder."""

    folder: Path
    say: Callable[[str], None] = print

    def find(self, origin: Origin) -> tuple[Path, RemoteSet] | None:
        """The folder of a set, and what it would hold if it were whole; None if not here."""
        root = self._root(origin)
        remote = _read_list(root / _LIST)
        if remote is None:
            return None
        return root, remote

    def get(self, origin: Origin, choose: Choose) -> Copy:
        """The chosen files of a set; copies those that are not here.

        Raises:
            MissingDataError, StorageAwayError: see `look_up`.
            InputError: see `look_up`; or the folder cannot be written, or has no room; or what
                arrives is not what its origin says it is; and what `choose` raises.
        """
        with contextlib.suppress(_NotHereError):
            if found := self.find(origin):
                copy = Copy(*found, choose(found[1], _reader(found[0])))
                if not _lacking(*copy):
                    return copy
        root = self._root(origin)
        with _errors_of_disk(self.folder), self._locked(root):
            found = self.find(origin)
            remote = found[1] if found else self._look_up(origin, root)

            def read(name: str) -> str:
                if _lacking(root, remote, [name]):
                    file, url = remote.files[name], f"{remote.url}/{name}"
                    copy_file(url, file, root / name, Progress(0), threading.Event())
                return _reader(root)(name)

            wanted = choose(remote, read)
            # Not before: who repairs what is not whole makes a new commit.
            _write_list(root / _LIST, remote)
            if lacking := _lacking(root, remote, wanted):
                self._copy(root, remote, lacking)
        return Copy(root, remote, wanted)

    def owners(self) -> list[str]:
        """Those of whose repositories there are copies."""
        return sorted(path.parent.parent.name for path in self.folder.glob(f"*/*/{_LIST}"))

    def state(self, origin: Origin, choose: Choose) -> tuple[int, CopyState]:
        """Bytes of the chosen files, and whether they are here; copies none of them.

        Raises as `get` does.
        """
        found = self.find(origin)
        root = self._root(origin)
        remote = found[1] if found else origin.look_up()

        def read(name: str) -> str:
            if (root / name).is_file():
                return _reader(root)(name)
            return read_range(f"{remote.url}/{name}", 0, remote.files[name].size).decode()

        wanted = choose(remote, read)
        lacking = _lacking(root, remote, wanted)
        size = remote.size_of(wanted)
        if not lacking:
            return size, "cache"
        begun = len(lacking) < len(wanted) or any(root.rglob("*.partial"))
        return size, "part" if begun else "no"

    def _root(self, origin: Origin) -> Path:
        return self.folder / origin.cache_path

    def _look_up(self, origin: Origin, root: Path) -> RemoteSet:
        remote = origin.look_up()
        for name in remote.files:
            if name.startswith("/") or ".." in name.split("/"):
                raise InputError(f"{remote.url} has a file {name!r}, outside of it\ndo not use it")
        # Files without a list are another program's copy, or of another commit: by their size
        # alone, tars of two commits can be the same.
        for name, file in remote.files.items():
            if (root / name).is_file() and not has_checksum(root / name, file):
                (root / name).unlink()
        return remote

    def _copy(self, root: Path, remote: RemoteSet, names: Sequence[str]) -> None:
        sizes = [remote.files[name].size for name in names]
        before = sum(size_of_part(root / name, remote.files[name]) for name in names)
        what = f"{len(names)} files" if len(names) > 1 else names[0]
        more = f", {described_size(before)} of it here already" if before else ""
        self.say(f"{remote.name}: copying {what}, {described_size(sum(sizes))}{more}, to {root}")
        free = shutil.disk_usage(root).free
        if sum(sizes) - before > free:
            raise InputError(
                f"{remote.url} needs {described_size(sum(sizes) - before)} in {self.folder}, "
                f"which has {described_size(free)}\nmake room, or name another --data-cache"
            )
        start, stop = time.monotonic(), threading.Event()
        with (
            Progress(sum(sizes), remote.name, before) as progress,
            ThreadPoolExecutor(FILES_AT_ONCE) as pool,
        ):
            copies = [
                pool.submit(
                    copy_file,
                    f"{remote.url}/{name}",
                    remote.files[name],
                    root / name,
                    progress,
                    stop,
                )
                for name in names
            ]
            try:
                for copy in as_completed(copies):
                    copy.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        seconds = time.monotonic() - start
        self.say(f"{remote.name}: copied in {seconds:.0f} s, checksums as there")

    @contextlib.contextmanager
    def _locked(self, root: Path) -> Iterator[None]:
        root.mkdir(parents=True, exist_ok=True)
        with (root / _LOCK).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say(f"{root}: another process copies into it; waiting for that")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


class _NotHereError(Exception):
    """A file that tells what is needed is not here itself."""


def _reader(root: Path) -> Callable[[str], str]:
    def read(name: str) -> str:
        try:
            return (root / name).read_text()
        except FileNotFoundError:
            raise _NotHereError from None
        except UnicodeDecodeError as error:
            raise InputError(f"{root / name} is not UTF-8: {error}\nfix the set") from None

    return read


def _read_list(path: Path) -> RemoteSet | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        files = {name: RemoteFile(*file) for name, file in content.pop("files").items()}
        return RemoteSet(files=files, **content)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or not one that is understood: it is asked for anew


def _write_list(path: Path, remote: RemoteSet) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(dataclasses.asdict(remote), indent=1))
    unfinished.replace(path)


def _lacking(root: Path, remote: RemoteSet, names: Sequence[str]) -> list[str]:
    """Those that are not there with their size."""

    def is_here(name: str) -> bool:
        try:
            return (root / name).stat().st_size == remote.files[name].size
        except OSError:
            return False

    return [name for name in names if not is_here(name)]


@contextlib.contextmanager
def _errors_of_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot copy data sets into {folder}: {error.strerror or error}\n"
            "name a folder with room, on a local disk, with --data-cache"
        ) from None
