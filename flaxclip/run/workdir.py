"""Ownership of a workdir: by one run, and by one process group of that run at a time."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from flaxclip.checkpoint.layout import CONFIG_FILE
from flaxclip.config import TrainConfig, differing_fields
from flaxclip.config_json import run_from_json, run_to_json
from flaxclip.errors import InputError
from flaxclip.storage import is_remote, replace_text, whole_file

LOCK_FILE = "lock"


@contextlib.contextmanager
def hold_workdir(workdir: str) -> Iterator[None]:
    """Hold `workdir` while the context lasts, so that no other run can; a crash also releases it.

    Host 0 holds it for all. Only a file system shows whether the holder is alive: a workdir in
    object storage is not held.

    Raises:
        InputError: another run holds it, or it cannot be written.
    """
    path = epath.Path(workdir) / LOCK_FILE
    if jax.process_index() != 0 or is_remote(workdir):
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "a+")  # noqa: SIM115, held until the end of the run
    except OSError as error:
        raise _cannot_write(workdir, error) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"{workdir} belongs to {lock.read()}, which is training in it\n"
                "wait for it, stop it, or name another --workdir"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def claim_workdir(config: TrainConfig, may_change: Sequence[str] = ()) -> None:
    """Write `config.json` into the workdir, or check that the one there is of the same run.

    In the fields, or groups of them, named in `may_change`, `config` may differ from the one there
    and then replaces it. The same goes for those fields of `compute` that are not left open, whose
    changes are reported on the terminal.

    Raises:
        InputError: the workdir cannot be written, or belongs to a run with another configuration.
    """
    if is_remote(config.workdir) and not config.workdir.startswith("gs://"):
        raise InputError(
            f"no checkpoint can be written to {config.workdir}\n"
            "Orbax writes to disks and to gs://: let --workdir be one of these, or a folder where "
            "the bucket is mounted"
        )
    path = epath.Path(config.workdir) / CONFIG_FILE
    try:
        if path.exists():
            there = run_from_json(TrainConfig, path.read_text(), path)
            differing = differing_fields(config, there)
            refused = [name for name in differing if not _covered(name, may_change)]
            if refused:
                raise InputError(
                    "\n".join(
                        [
                            f"{config.workdir} holds a run with another configuration",
                            *(f"{name}: {differing[name]}" for name in refused),
                            "use another --workdir, or the configuration it was started with; or "
                            f"change this run with --resume-with-changes {' '.join(refused)}",
                            *_order_of_before(refused, there),
                        ]
                    )
                )
            # What is left open is chosen at every start, and reported then.
            ours = config.compute.filled_from(there.compute)
            compute = differing_fields(ours, there.compute, "compute")
            if compute and jax.process_index() == 0:
                changes = ", ".join(f"{name} {change}" for name, change in compute.items())
                print(f"compute  {changes}: as of this resume", flush=True)
            if not differing and not compute:
                return
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The model is of no use without its vocabulary, which may be in a cache.
            if vocabulary := config.tokenizer.file:
                source, copy = epath.Path(vocabulary), path.parent / epath.Path(vocabulary).name
                if source.exists() and not copy.exists():
                    with whole_file(copy) as partial:  # the disk may be full
                        source.copy(partial)
            replace_text(path, run_to_json(config))
    except OSError as error:
        raise _cannot_write(config.workdir, error) from None


def _order_of_before(refused: Sequence[str], there: TrainConfig) -> list[str]:
    """What to do in a run from before `order.window` was "auto" by default, if it is refused."""
    if "data.order.window" not in refused or there.data.order.window is not None:
        return []
    return ["the run's epochs are shuffled as a whole: --data.order.window None goes on with that"]


def check_same_data(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], step: int, may_change: Sequence[str] = ()
) -> None:
    """Raise `InputError` unless the data is that of the run up to `step`.

    `ours` and `theirs` are fingerprints (`provenance.data_fingerprint`): of the present data, and
    of the data in the step's checkpoint. If both have the `run_lengths` of an order in runs, these
    must be the same too; None is for a corpus that is shuffled as a whole.
    """
    if "data" in may_change:
        return
    if ours["records"] != theirs["records"]:
        difference = f"{theirs['records']:,} records then, {ours['records']:,} now"
    elif _differ("names_sha256", ours, theirs):
        difference = f"{ours['records']:,} records as then, of other names or in another order"
    elif "names_sha256" not in ours.keys() & theirs.keys() and (
        _differ("shards_sha256", ours, theirs)
    ):
        difference = f"{ours['records']:,} records as then, in shards of other names or sizes"
    elif _differ("contents_sha256", ours, theirs):
        difference = "records of the same names, but with other images or captions in them"
    elif _differ("stored_teachers", ours, theirs):
        difference = "vectors of other teachers, or of other widths or scales, are stored with it"
    elif _differ("run_lengths", ours, theirs):
        then, now = (
            " and ".join(f"{length or 1:,}" for length in data["run_lengths"])
            for data in (theirs, ours)
        )
        difference = f"drawn in runs of {then} records then, of {now} now"
    else:
        return
    raise InputError(
        f"the data is not what this run has learned from up to step {step}\n{difference}\n"
        "give back the data as it was, or go on with --resume-with-changes data"
    )


def _differ(field: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return field in ours.keys() & theirs.keys() and ours[field] != theirs[field]


def _cannot_write(workdir: str, error: OSError) -> InputError:
    return InputError(
        f"cannot write into workdir {workdir}: {error.strerror or error}\n"
        "name a folder that can be created and written with --workdir"
    )


def _covered(name: str, may_change: Sequence[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in may_change)
