"""Restore the newest intact state of a run."""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental.multihost_utils import process_allgather, sync_global_devices

from flaxclip.checkpoint.layout import (
    CHECKPOINTS,
    COMMITTED,
    OtherArraysError,
    load_tree,
    one_line,
    read_metadata,
    saved_steps,
    wrong_arrays,
)
from flaxclip.errors import InputError
from flaxclip.hosts.coordination import broadcast_from_host_0
from flaxclip.storage import absolute

DAMAGED = "damaged"
_LATE_SECONDS = 120.0
"""For which a host waits to see a checkpoint that host 0 sees: what NFS says of a folder may be a
minute old (acdirmax in nfs(5))."""


class Restored(NamedTuple):
    """The contents of a restored checkpoint."""

    step: int
    trees: dict[str, Any]
    record: dict[str, Any]


def steps_on_host_0(workdir: epath.PathLike, asked_for: str) -> list[int]:
    """`saved_steps` as host 0 sees them, on all hosts; callable once a job for each `asked_for`.

    What a host sees of shared storage may be late, and hosts that restored different steps would
    train on with the weights of both.
    """
    return broadcast_from_host_0(f"steps saved, for {asked_for}", saved_steps(workdir))


def restore_latest(
    workdir: epath.PathLike, abstract_state: dict[str, Any], warn: Callable[[str], None] = print
) -> Restored | None:
    """The newest intact state, laid out like `abstract_state`; None if there are no checkpoints.

    Newer ones that are damaged are reported and moved to WORKDIR/damaged/STEP, or STEP-2 and so on
    where there is one. Must be called on every host, once a job, and before a `CheckpointManager`
    is created.

    Raises:
        InputError: there are checkpoints, but each of them is damaged, or holds other arrays.
    """
    workdir = absolute(workdir)
    damaged: dict[int, str] = {}
    other: list[int] = []  # of these, those that may be whole, but hold other arrays
    for step in reversed(steps_on_host_0(workdir, "restoring")):
        folder = workdir / CHECKPOINTS / str(step)
        problem, metadata, saved = None, {}, {}
        _await(folder)
        try:
            metadata = read_metadata(folder)
            saved = load_tree(folder, abstract_state)
        except OtherArraysError as error:
            problem = str(error)
            other.append(step)
        except Exception as error:  # whatever Orbax and its storage raise at broken files
            problem = one_line(error)
        # One host's broken file is every host's broken checkpoint.
        if _on_all_hosts(problem is None):
            if not (wrong := wrong_arrays(saved, metadata["checksums"])):
                _move_away(workdir, list(damaged))
                if damaged:
                    warn(f"going on from step {step}")
                return Restored(step, saved, metadata["run"])
            problem = f"not what was saved: {', '.join(wrong)}"
        damaged[step] = problem or "another host cannot read it"
        fault = "is of another state" if step in other else "is damaged"
        warn(f"checkpoint of step {step} {fault}: {damaged[step]}\n  trying the one before")
    if not damaged:
        return None
    advice = ["to start the run over, move that folder away"]
    if other == list(damaged):
        advice = [
            "they were saved with other optim settings, or by another version of flaxclip, whose "
            "optimizer keeps other arrays",
            "go on with those; or take over the weights alone, with "
            f"--init-from {workdir} and another --workdir",
        ]
    problems = [f"step {step}: {problem}" for step, problem in damaged.items()]
    found = f"no checkpoint in {workdir / CHECKPOINTS} can be restored"
    raise InputError("\n".join([found, *problems, *advice]))


def _await(folder: epath.Path) -> None:
    """Wait until this host sees a checkpoint that host 0 sees; if it does not, reading says so."""
    deadline = time.monotonic() + _LATE_SECONDS
    while not (folder / COMMITTED).exists() and time.monotonic() < deadline:
        time.sleep(1)


def _move_away(workdir: epath.Path, steps: list[int]) -> None:
    """Make room for checkpoints of the same steps, without deleting the damaged ones."""
    if jax.process_index() == 0:
        for step in steps:
            (workdir / DAMAGED).mkdir(exist_ok=True)
            # The same step may have been moved away before.
            names = itertools.chain([str(step)], (f"{step}-{n}" for n in itertools.count(2)))
            places = (workdir / DAMAGED / name for name in names)
            target = next(place for place in places if not place.exists())
            (workdir / CHECKPOINTS / str(step)).rename(target)
    if steps:
        sync_global_devices("damaged checkpoints moved away")


def _on_all_hosts(value: bool) -> bool:
    return bool(np.all(process_allgather(np.array([value]))))
