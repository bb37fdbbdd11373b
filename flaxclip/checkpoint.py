"""Saved states of a run, through Orbax: the only bridge from training to everything else.

WORKDIR/config.json          the run's whole configuration
WORKDIR/checkpoints/STEP/    `params`, perhaps a ResNet's `batch_stats` and the average `ema` of
                             `params`, and `training`, each readable alone
"""

import json
from typing import Any, TypeVar

from etils import epath
from orbax.checkpoint import v1 as ocp

from flaxclip.config_json import field_from_json, to_json
from flaxclip.errors import InputError

T = TypeVar("T")

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"


class CheckpointWriter:
    """Saves states in the background, each whole or not at all, and keeps the latest few."""

    def __init__(self, workdir: epath.PathLike, keep: int):
        self._manager = ocp.training.Checkpointer(
            _absolute(workdir) / CHECKPOINTS,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
        )

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, None where there is none."""
        latest = self._manager.latest
        return None if latest is None else latest.step

    def save(self, step: int, variables: dict[str, Any], training: Any) -> None:
        """Start saving; returns as soon as the arrays may be overwritten."""
        self._manager.save_checkpointables_async(
            step, variables | {"training": training}, force=True
        )

    def restore(self, step: int, variables: dict[str, Any], training: Any) -> dict[str, Any]:
        """The saved variables and `training`, laid out like the abstract trees that are given."""
        return self._manager.load_checkpointables(step, variables | {"training": training})

    def close(self) -> None:
        """Wait for the save that is under way."""
        self._manager.close()


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    folder = _absolute(workdir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    # A save under way has a temporary name and becomes a bare number by one rename at its end.
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal())


def resolve_checkpoint(path: epath.PathLike) -> tuple[epath.Path, int]:
    """Workdir and step that `path` names: WORKDIR (its latest) or WORKDIR/checkpoints/STEP.

    Raises:
        InputError: there is no run, or none that has saved anything yet, or not that step.
    """
    path = _absolute(path)
    is_step = path.parent.name == CHECKPOINTS and path.name.isdecimal()
    workdir = path.parent.parent if is_step else path
    if not (workdir / CONFIG_FILE).is_file():
        raise InputError(
            f"no checkpoint at {path}\n"
            f"expected the workdir of a training run (a folder with {CONFIG_FILE}), "
            f"or one of its steps, WORKDIR/{CHECKPOINTS}/STEP"
        )
    steps = saved_steps(workdir)
    step = int(path.name) if is_step else max(steps, default=None)
    if step is None:
        raise InputError(f"the run in {workdir} has saved no checkpoint yet\nlet it train on")
    if step not in steps:
        raise InputError(
            f"the run in {workdir} has no checkpoint of step {step}\n"
            f"it has: {', '.join(map(str, steps)) or 'none'}"
        )
    return workdir, step


def load_config(workdir: epath.PathLike, field: str, kind: type[T]) -> T:
    """One part of the run's configuration, such as `model`.

    Raises:
        InputError: the file or the part is damaged.
    """
    path = _absolute(workdir) / CONFIG_FILE
    return field_from_json(kind, path.read_text(), path, field)


def load_variables(workdir: epath.PathLike, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """`params`, and `batch_stats` if `abstract` has them, of a step, laid out like `abstract`.

    Where the run keeps an average of its parameters, that is what `params` are.
    """
    folder = _absolute(workdir) / CHECKPOINTS / str(step)
    if not (folder / "ema").is_dir():
        return ocp.load_checkpointables(folder, abstract)
    averaged = {"ema" if name == "params" else name: tree for name, tree in abstract.items()}
    loaded = ocp.load_checkpointables(folder, averaged)
    return {"params": loaded.pop("ema"), **loaded}


def save_variables(workdir: epath.PathLike, config: Any, variables: dict[str, Any]) -> None:
    """Make `workdir`, with the model of this configuration as its step 0.

    It is read like that of a run, but no run: it has neither data nor optimizer, and cannot be
    resumed.
    """
    workdir = _absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    ocp.save_checkpointables(workdir / CHECKPOINTS / "0", variables, overwrite=True)
    # Last: without it nobody takes the folder for a workdir.
    (workdir / CONFIG_FILE).write_text(json.dumps({"model": json.loads(to_json(config))}, indent=2))


def _absolute(path: epath.PathLike) -> epath.Path:
    # Orbax refuses relative paths; `resolve` leaves gs:// and the like alone.
    return epath.Path(path).expanduser().resolve()
