"""Saved states of a run, through Orbax: the only bridge from training to everything else.

WORKDIR/config.json          the run's whole configuration
WORKDIR/checkpoints/STEP/    `params`, perhaps a ResNet's `batch_stats` and the average `ema` of
                             `params`, and `training`, each readable alone; with a record of the
                             run and a checksum of every array, which reading verifies
"""

import hashlib
import json
from typing import Any

import jax
from etils import epath

from flaxclip.checkpoint.checksum import tree_checksums
from flaxclip.config_json import RunFields, run_to_json
from flaxclip.errors import InputError
from flaxclip.storage import absolute

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
COMMITTED = "commit_success.txt"
"""The file of a checkpoint that Orbax writes last."""


class DamagedCheckpointError(Exception):
    """A checkpoint does not hold what was saved; the message says what is wrong with it."""


class OtherArraysError(Exception):
    """A checkpoint holds arrays other than those asked for; the message says which."""


def saved_steps(workdir: epath.PathLike) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    folder = absolute(workdir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    # A local save becomes a bare number by one rename at its end; in object storage, where nothing
    # can be renamed, it is complete once this file is there.
    return sorted(
        int(entry.name)
        for entry in folder.iterdir()
        if entry.name.isdecimal() and (entry / COMMITTED).exists()
    )


def _may_be_on_the_hub(path: str) -> bool:
    owner, _, name = path.partition("/")
    return bool(owner and name) and "/" not in name and not epath.Path(owner).exists()


def resolve_checkpoint(path: epath.PathLike) -> tuple[epath.Path, int]:
    """Workdir and step that `path` names: WORKDIR (its latest) or WORKDIR/checkpoints/STEP.

    Raises:
        InputError: there is no run, or none that has saved anything yet, or not that step.
    """
    asked = str(path)
    path = absolute(path)
    is_step = path.parent.name == CHECKPOINTS and path.name.isdecimal()
    workdir = path.parent.parent if is_step else path
    if not (workdir / CONFIG_FILE).is_file():
        raise InputError(
            f"no checkpoint at {path}\n"
            f"expected the workdir of a training run (a folder with {CONFIG_FILE}), "
            f"or one of its steps, WORKDIR/{CHECKPOINTS}/STEP"
            + (f"\na model of the Hub is hf://{asked}" if _may_be_on_the_hub(asked) else "")
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


def load_config(workdir: epath.PathLike) -> RunFields:
    """The run's configuration, whose fields, such as `model`, are checked as they are asked for.

    Raises:
        InputError: the file is damaged.
    """
    path = absolute(workdir) / CONFIG_FILE
    return RunFields(path.read_text(), path)


def keeps_average(workdir: epath.PathLike, step: int) -> bool:
    """True if a step also holds an average of the parameters."""
    return (absolute(workdir) / CHECKPOINTS / str(step) / "ema").is_dir()


def load_variables(
    workdir: epath.PathLike, step: int, abstract: dict[str, Any], averaged: bool = True
) -> dict[str, Any]:
    """`params`, and `batch_stats` if `abstract` has them, of a step, laid out like `abstract`.

    If the run keeps an average of its parameters, `params` is that average, unless `averaged` is
    False.

    Raises:
        InputError: the checkpoint is damaged.
    """
    folder = absolute(workdir) / CHECKPOINTS / str(step)
    averaged = averaged and keeps_average(workdir, step)
    if averaged:
        abstract = {"ema" if name == "params" else name: tree for name, tree in abstract.items()}
    try:
        checksums = read_metadata(folder)["checksums"]
        saved = load_tree(folder, abstract)
        if wrong := wrong_arrays(saved, checksums):
            raise DamagedCheckpointError(f"not what was saved: {', '.join(wrong)}")
    except Exception as error:  # whatever Orbax and its storage raise at broken files
        raise InputError(
            f"checkpoint {folder} cannot be read: {one_line(error)}\n"
            "take another step, or let the run save again"
        ) from error
    return {"params": saved.pop("ema"), **saved} if averaged else saved


def save_variables(
    workdir: epath.PathLike, config: dict[str, Any], variables: dict[str, Any]
) -> None:
    """Create `workdir` with a model as its step 0; `config` has the fields for `config.json`.

    It can be read like a run, but it is not one: it has no data and no optimizer, and cannot be
    resumed.
    """
    from orbax.checkpoint import v1 as ocp  # slow to import, and others' weights do without

    workdir = absolute(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    ocp.save_checkpointables(
        workdir / CHECKPOINTS / "0",
        variables,
        overwrite=True,
        custom_metadata=sealed_metadata({"checksums": tree_checksums(variables)}),
    )
    # Last: without it the folder is not taken for a workdir.
    (workdir / CONFIG_FILE).write_text(run_to_json(config))


def load_tree(folder: epath.Path, abstract: dict[str, Any]) -> dict[str, Any]:
    """The named trees of a checkpoint, laid out like the abstract ones; no array is verified.

    Raises:
        OtherArraysError: it has other arrays, or of other shapes or types.
    """
    from orbax.checkpoint import v1 as ocp

    # Orbax would name none of them, and cast to another type without a word.
    _check_arrays(folder, abstract)
    # Each host reads on its own: where all wait for each other, as Orbax has it by default, one
    # that meets a broken file would leave the others waiting.
    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.barrier_sync_key_prefix = f"host{jax.process_index()}"
    with context:
        return ocp.load_checkpointables(folder, abstract)


def _check_arrays(folder: epath.Path, abstract: dict[str, Any]) -> None:
    saved_trees = _metadata(folder).metadata
    saved = _described({name: saved_trees[name] for name in abstract if name in saved_trees})
    wanted = _described(abstract)
    other = [n for n in saved.keys() | wanted.keys() if saved.get(n) != wanted.get(n)]
    if other:
        # Rather one that both have: there the difference itself can be seen.
        name = min(other, key=lambda name: (name not in saved or name not in wanted, name))
        more = f", and {len(other) - 1} more arrays" if len(other) > 1 else ""
        raise OtherArraysError(
            f"{name}: {saved.get(name, 'nothing')} there, {wanted.get(name, 'nothing')} here{more}"
        )


def _described(tree: Any) -> dict[str, str]:
    """Name of each array -> type and shape; Orbax saves tuples as lists and dicts."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def sealed_metadata(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with a hash of itself, for `read_metadata`."""
    return {**content, "sha256": _sha256(content)}


def read_metadata(folder: epath.Path) -> dict[str, Any]:
    """Read the metadata that was saved beside the arrays.

    Raises:
        DamagedCheckpointError: it is missing, or not what was written.
    """
    content = _metadata(folder).custom_metadata or {}
    if content.pop("sha256", None) != _sha256(content):
        raise DamagedCheckpointError("its metadata is broken or missing")
    return content


def _metadata(folder: epath.Path) -> Any:
    from orbax.checkpoint import v1 as ocp

    return ocp.checkpointables_metadata(folder)


def run_record_of(workdir: epath.PathLike, step: int) -> dict[str, Any]:
    """The record of the run that saved a step.

    Raises:
        InputError: it is damaged.
    """
    folder = absolute(workdir) / CHECKPOINTS / str(step)
    try:
        return read_metadata(folder)["run"]
    except (DamagedCheckpointError, KeyError, OSError) as error:
        raise InputError(f"checkpoint {folder} cannot be read: {one_line(error)}") from error


def wrong_arrays(saved: dict[str, Any], checksums: dict[str, int]) -> list[str]:
    """Names of the arrays in `saved` that do not match their checksums."""
    return [name for name, value in tree_checksums(saved).items() if checksums.get(name) != value]


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def one_line(error: Exception) -> str:
    """The first line of an error's message; messages of storage libraries can be pages long."""
    return (str(error).strip().splitlines() or [""])[0][:300] or type(error).__name__
