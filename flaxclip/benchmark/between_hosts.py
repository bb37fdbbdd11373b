"""What one host has, on every host: all of them measure the same, and score it for themselves."""

import json

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxclip.benchmark.kept_embeddings import Embedded


def broadcast_from_host_0(flag: bool) -> bool:
    """The flag of process 0, on every host: hosts need not share a file system."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


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
    z = np.asarray(multihost_utils.process_allgather(padded)).reshape(-1, padded.shape[1])
    return Embedded(z[:rows], _gather_texts(mine.remarks))


def _gather_texts(mine: tuple[str, ...]) -> tuple[str, ...]:
    text = json.dumps(mine).encode()
    longest = int(np.max(multihost_utils.process_allgather(np.array(len(text)))))
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return tuple(line for row in gathered for line in json.loads(row.tobytes()))
