"""What one host has, on every host; and an error of one is an error of all.

All of them measure the same, and score it for themselves. They meet in collectives. A host that
leaves for an error of its own would be missed in the next one, so before each the hosts tell each
other whether all of them have come to it.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxclip.benchmark.kept_embeddings import Embedded
from flaxclip.errors import InputError
from flaxclip.exit_codes import PreemptedError


class _HostsFailedError(Exception):
    """Hosts have left the stretch that `together` encloses; what to raise for it instead."""

    def __init__(self, instead: InputError | PreemptedError):
        super().__init__(str(instead))
        self.instead = instead


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A stretch that all hosts leave for an error that one of them has.

    The others hear of it where they next need that host: before a collective of this module, or at
    the end of the stretch. Every host must enter it, and none may enter one inside of it.

    Raises:
        InputError: a host has raised one; it is its own where all hosts have raised the same kind.
        PreemptedError: likewise; it counts before the other.
    """
    try:
        try:
            yield
        except (InputError, PreemptedError) as error:
            check_hosts(error)
            raise
        check_hosts()
    except _HostsFailedError as failed:
        raise failed.instead from failed.__cause__


def check_hosts(error: InputError | PreemptedError | None = None) -> None:
    """Let the others know of an error of this host, and hear of theirs; each host must call it.

    It is called before each collective, and where a host is to keep something only if all do.
    """
    if jax.process_count() == 1:
        return
    if not np.any(multihost_utils.process_allgather(np.array(error is not None))):
        return
    mine = None if error is None else (type(error).__name__, str(error))
    found = _gather_json([mine, isinstance(error, PreemptedError)])
    if error is not None and len({each and each[0] for each, _ in found}) == 1:
        raise _HostsFailedError(error)  # which says it better: with its own type
    first_hosts: dict[str, int] = {}
    for host, (each, _) in enumerate(found):
        if each is not None:
            first_hosts.setdefault(each[1], host)
    said = "\n".join(f"host {host}: {message}" for message, host in first_hosts.items())
    kind = PreemptedError if any(is_preempted for _, is_preempted in found) else InputError
    raise _HostsFailedError(kind(said)) from error


def broadcast_from_host_0(flag: bool) -> bool:
    """The flag of process 0, on every host: hosts need not share a file system."""
    if jax.process_count() == 1:
        return flag
    check_hosts()
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def gather_arrays(mine: np.ndarray) -> np.ndarray:
    """Every host's array, in order along a new first axis; all have the same shape."""
    if jax.process_count() == 1:
        return mine[None]
    check_hosts()
    return np.asarray(multihost_utils.process_allgather(mine))


def part_from_host_0(part: Embedded | None, rows: int, width: int) -> Embedded | None:
    """The part that process 0 has, on every host; None on all where it has none."""
    if jax.process_count() == 1:
        return part
    if not broadcast_from_host_0(part is not None):
        return None
    z = np.zeros((rows, width), np.float32) if part is None else part.z
    z = np.asarray(multihost_utils.broadcast_one_to_all(z))
    return Embedded(z, _gather_texts(() if part is None else part.remarks))


def gather_part(mine: Embedded, rows_each: int, rows: int) -> Embedded:
    """Every host's part, in order; hosts have `rows_each` rows, the last ones perhaps fewer."""
    if jax.process_count() == 1:
        return mine
    padded = np.zeros((rows_each, mine.z.shape[1]), np.float32)
    padded[: len(mine.z)] = mine.z
    z = gather_arrays(padded).reshape(-1, padded.shape[1])
    return Embedded(z[:rows], _gather_texts(mine.remarks))


def _gather_texts(mine: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line for lines in _gather_json(mine) for line in lines)


def _gather_json(mine: Any) -> list[Any]:
    """What each host has, in order; anything that JSON can hold."""
    text = json.dumps(mine).encode()
    longest = int(np.max(multihost_utils.process_allgather(np.array(len(text)))))
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row.tobytes()) for row in gathered]
