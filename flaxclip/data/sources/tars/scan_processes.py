"""Tar shards scanned by several processes, each given one shard after the other.

Why not `multiprocessing`'s: they import the main program again. One that Python reads from standard
input cannot be imported, and a script without `if __name__ == "__main__"` would start over.
"""

import concurrent.futures
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.tars.tar_scan import ShardScan, scan_shard
from flaxclip.data.storage.file_systems import Version
from flaxclip.errors import InputError
from flaxclip.exit_codes import PreemptedError


def scan_in_processes(
    paths: Sequence[str], processes: int, versions: Sequence[Version | None] | None = None
) -> Iterator[ShardScan | InputError]:
    """Yield the result of `scan_shard` for each of the paths, in order.

    `versions` are the states that the shards are in; if None, they are asked for.

    Raises:
        InputError: a process was killed or has crashed.
    """
    with scanning(processes) as (pool, scan):
        yield from pool.map(scan, paths, versions or [None] * len(paths))


@contextlib.contextmanager
def scanning(
    processes: int,
) -> Iterator[
    tuple[
        concurrent.futures.ThreadPoolExecutor,
        Callable[[str, Version | None], ShardScan | InputError],
    ]
]:
    """Threads, and a function for them that is `scan_shard` in one of as many processes.

    It raises `InputError` if the process was killed or has crashed.
    """
    idle: queue.SimpleQueue[Scanner] = queue.SimpleQueue()

    def scan(path: str, version: Version | None) -> ShardScan | InputError:
        scanner = idle.get()
        try:
            return scanner.scan(path, version)
        finally:
            idle.put(scanner)

    with contextlib.ExitStack() as opened:
        scanners = [opened.enter_context(contextlib.closing(Scanner())) for _ in range(processes)]
        for scanner in scanners:
            idle.put(scanner)
        with concurrent.futures.ThreadPoolExecutor(processes) as pool:
            try:
                yield pool, scan
            finally:
                # Before the pool waits for its threads: where the work ends early, no shard is to
                # be scanned to its end. Their pipes are closed after it, when no thread reads.
                for scanner in scanners:
                    scanner.process.kill()


class Scanner:
    """A process that scans shards; this side of it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flaxclip.data.sources.tars.scan_processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def scan(self, path: str, version: Version | None = None) -> ShardScan | InputError:
        """`scan_shard(path, version)`, over there.

        Raises:
            InputError: the process was killed or has crashed.
            PreemptedError: as `scan_shard` has raised it.
        """
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None, "a pipe"
        assert answers is not None, "a pipe"
        try:
            pickle.dump((path, version), requests)
            requests.flush()
            found = pickle.load(answers)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = self.process.wait()
        else:
            if isinstance(found, PreemptedError):
                raise found
            return found
        how = f"ended with exit code {code}; its own message is above"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += "\nthe kernel kills so when memory runs out"
        raise InputError(f"the process that indexed {shown(path)} {how}")

    def close(self) -> None:
        """End the process, whatever it does, and close its pipes."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None, "a pipe"
            with contextlib.suppress(BrokenPipeError):  # a path that nobody will read
                pipe.close()


def main() -> None:
    """Scan the shards whose paths arrive, until the process that sends them closes or ends."""
    # Signals to the whole group are for the process that started this one, which then ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    results, sys.stdout = sys.stdout.buffer, sys.stderr
    shards: queue.SimpleQueue[tuple[str, Version | None]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(shards,), daemon=True).start()
    while True:
        path, version = shards.get()
        try:
            found: ShardScan | InputError | PreemptedError = scan_shard(path, version)
        except PreemptedError as error:
            found = error
        pickle.dump(found, results)
        results.flush()


def _receive(shards: queue.SimpleQueue[tuple[str, Version | None]]) -> None:
    """Receive in a thread of its own, to notice at once, not after a shard, that no more come."""
    # Not `sys.stdin`, which Python could not close, and would abort, if it exits by an error.
    with open(sys.stdin.fileno(), "rb", closefd=False) as requests:
        while True:
            try:
                shards.put(pickle.load(requests))
            except (EOFError, pickle.UnpicklingError):
                os._exit(0)


if __name__ == "__main__":
    main()
