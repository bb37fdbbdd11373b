"""Hosts of a run index shards together: each scans its part, and all share what was found.

They meet in a folder that all can write, the run's workdir. The host `h` of `n` writes pieces of
every n-th shard from `h` on, except for those that some host, or an index, has already, and waits
until the others have done the same. So over all hosts, each shard is scanned once. A host also
writes some lines on how far it is, every few seconds: whoever waits for it knows that it lives.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

from flaxclip.data.sources.tars.index.index_folder import IndexFolder
from flaxclip.data.sources.tars.index.index_lookup import KnownShards
from flaxclip.data.sources.tars.index.index_storage import (
    join_path,
    list_files,
    read_whole,
    write_whole,
)
from flaxclip.data.sources.tars.index.index_table import FORMAT, Table
from flaxclip.data.sources.tars.index.shard_scans import scan_each, write_pieces
from flaxclip.data.sources.tars.index.stated_counts import advise_counts
from flaxclip.data.sources.tars.index.tar_index import TarIndex
from flaxclip.data.sources.tars.tar_scan import ShardScan
from flaxclip.data.storage.file_systems import Version
from flaxclip.errors import InputError
from flaxclip.exit_codes import PreemptedError

_SECONDS_BETWEEN_NOTES = 5.0
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 30.0
_SILENCE = 300.0  # seconds without a note from a host, after which it counts as gone
_OLD_ERROR = 30.0  # seconds that an error of an earlier start is given to be withdrawn

_logger = logging.getLogger(__name__)


class IndexSharing(NamedTuple):
    """Hosts that index together."""

    folder: str
    """Path, or URL, of a folder that all of them can read and write."""
    host: int
    hosts: int


def share_table(
    elsewhere: Sequence[IndexFolder],
    paths: Sequence[str],
    versions: Sequence[Version],
    own: IndexFolder,
    sharing: IndexSharing,
) -> Table:
    """The table of all shards, made by all hosts; every host must call this.

    Args:
        elsewhere: indexes that every host can read; what they know is not scanned.
        paths: of the shards.
        versions: their present states.
        own: an index of this host alone; what it knows is shared with the others.
        sharing: the hosts.

    Raises:
        InputError: shards of this host's part, or of another's, cannot be used; or the folder
            cannot be written.
        PreemptedError: a host is not heard of any more; or storage stays away, from this host or
            from another.
    """
    identity = hashlib.sha256(repr((FORMAT, list(paths), list(versions))).encode()).hexdigest()[:32]
    shared = IndexFolder(join_path(sharing.folder, identity))
    seen: set[str] = set()
    try:
        known = KnownShards(elsewhere, paths, versions)
        if not known.unknown:
            return known.table()
        for table in shared.read_tables(seen):
            known.add(table)
        if known.unknown:
            with _Notes(shared, sharing.host) as notes:
                _scan_part(known, own, shared, sharing, notes)
                _wait_for_others(known, shared, sharing, seen)
    except OSError as error:
        raise InputError(
            f"cannot share the index of the shards in {sharing.folder}: {error.strerror or error}\n"
            "all hosts must be able to read and write there: check --workdir"
        ) from None
    return known.table()


def _scan_part(
    known: KnownShards,
    own: IndexFolder,
    shared: IndexFolder,
    sharing: IndexSharing,
    notes: "_Notes",
) -> None:
    part = [place for place in known.unknown if place % sharing.hosts == sharing.host]
    paths = [known.paths[place] for place in part]
    versions = [known.versions[place] for place in part]
    _logger.info(
        "indexing %s of %s shards, as host %s of %s",
        *(f"{len(part):,}", f"{len(known.paths):,}", sharing.host, sharing.hosts),
    )
    advise_counts(known.paths[0])
    notes.write(0, len(part))
    for table in write_pieces(
        shared,
        paths,
        versions,
        _results(KnownShards([own], paths, versions)),
        report=lambda done: notes.write(done, len(part)),
    ):
        known.add(table)


def _results(known: KnownShards) -> Generator[ShardScan | InputError, None, None]:
    """What is in shards: as this host knows already, or by scanning."""
    unknown = known.unknown
    scans = scan_each(
        [known.paths[place] for place in unknown], [known.versions[place] for place in unknown]
    )
    to_scan = set(unknown)
    places = [place for place in range(len(known.paths)) if place not in to_scan]
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(scans):
        index = TarIndex(IndexFolder(folder).publish(known.table(places), ""))
        numbers = iter(range(len(places)))
        for place in range(len(known.paths)):
            yield next(scans) if place in to_scan else index.scan_of(next(numbers))


def _wait_for_others(
    known: KnownShards, shared: IndexFolder, sharing: IndexSharing, seen: set[str]
) -> None:
    """Take in what the others write, until all shards are known.

    Raises:
        InputError: one of them has failed.
        PreemptedError: one of them has, and may succeed when it is started again, or is not heard
            of any more.
    """
    others = _OtherHosts(shared)
    last_line = time.monotonic()
    while True:
        for table in shared.read_tables(seen):
            known.add(table)
        missing = known.unknown
        if not missing:
            return
        hosts = sorted({place % sharing.hosts for place in missing})
        others.check(hosts, sharing)
        if time.monotonic() - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            _logger.info("waiting for %s", "; ".join(map(others.describe, hosts[:5])))
        time.sleep(_SECONDS_BETWEEN_LOOKS)


class _Notes:
    """What this host says of itself, again and again while it lives."""

    def __init__(self, shared: IndexFolder, host: int) -> None:
        self._path = shared.place("hosts", f"{host}.json")
        self._note: dict[str, object] = {"done": 0, "of": 0, "error": None}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def write(self, done: int, of: int) -> None:
        """To be said with the next note."""
        self._note = {"done": done, "of": of, "error": None}

    def __enter__(self) -> "_Notes":
        self._send()
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        if error is not None:
            self._note["error"] = str(error) or repr(error)
            self._note["may_pass"] = isinstance(error, PreemptedError)
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self._send()

    def _repeat(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_NOTES):
            with contextlib.suppress(OSError):  # the next one may succeed
                self._send()

    def _send(self) -> None:
        # Otherwise the same as before, if nothing has happened.
        note = {"process": os.getpid(), "time": time.time(), **self._note}
        write_whole(self._path, json.dumps(note).encode())


class _OtherHosts:
    """What the other hosts said last, and when it was heard."""

    def __init__(self, shared: IndexFolder) -> None:
        self._shared = shared
        self._begin = time.monotonic()
        self._said: dict[int, dict] = {}
        self._heard: dict[int, float] = {}
        self._first: dict[int, dict | None] = {}

    def check(self, hosts: Sequence[int], sharing: IndexSharing) -> None:
        """Raise if one of the hosts has failed or been silent for long: see `_wait_for_others`."""
        there = list_files(self._shared.place("hosts"))
        for host in hosts:
            note = self._read(host) if f"{host}.json" in there else None
            self._first.setdefault(host, note)
            if note is not None and note != self._said.get(host):
                self._said[host], self._heard[host] = note, time.monotonic()
            silence = time.monotonic() - self._heard.get(host, self._begin)
            # One that was there before may be of an earlier start.
            new = note != self._first[host] or silence > _OLD_ERROR
            if note is not None and note["error"] and new:
                kind = PreemptedError if note.get("may_pass") else InputError
                raise kind(
                    f"host {host} of {sharing.hosts} could not index its shards\n{note['error']}"
                )
            if silence > _SILENCE:
                # Most likely it was preempted: hosts that are ended by a signal leave no word.
                raise PreemptedError(
                    f"host {host} of {sharing.hosts} has not indexed its shards: "
                    f"{self.describe(host)}, nothing heard for {silence:.0f} s\n"
                    "look for its own message, and start all hosts again: what is indexed stays. "
                    f"They meet in {self._shared.path}, which all must see"
                )

    def describe(self, host: int) -> str:
        """How far it is."""
        note = self._said.get(host)
        if note is None:
            return f"host {host}: no word yet"
        return f"host {host}: {note['done']:,} of {note['of']:,} shards"

    def _read(self, host: int) -> dict | None:
        try:
            return json.loads(read_whole(self._shared.place("hosts", f"{host}.json")))
        except (FileNotFoundError, ValueError):
            return None  # being written
