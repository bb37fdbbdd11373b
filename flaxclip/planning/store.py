"""Cache of compiled steps: one file for each step, named by everything that determines it."""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import flaxclip.planning
from flaxclip.config import TrainConfig
from flaxclip.config_json import from_json, to_json
from flaxclip.errors import InputError
from flaxclip.planning.compiled_step import (
    CompiledStep,
    LoweredStep,
    Refusal,
    ShapedStep,
    compile_step,
    lower_step,
)
from flaxclip.planning.estimate import estimated_memory
from flaxclip.planning.topology import Topology
from flaxclip.step_shapes import StepShape, step_shapes
from flaxclip.storage import whole_file

# Of our own files, those that read compiled programs. All others decide what is compiled, and
# the program itself stands for them.
_READERS = (
    "account/account.py", "collectives.py", "compiled_step.py", "hlo.py", "account/kernels.py",
    "account/memory_traffic.py", "account/parts.py",
)  # fmt: skip


def steps_of_all_shapes(config: TrainConfig, topology: Topology) -> tuple[ShapedStep, ...]:
    """The steps of `config` for all shapes of its batches, those first that need the most memory by
    an estimate; after one that does not fit, no others.

    Raises:
        InputError: as `stored_or_compiled`.
    """
    shapes = sorted(
        step_shapes(config), key=lambda shape: -estimated_memory(config, topology, shape).total
    )
    steps: list[ShapedStep] = []
    for shape in shapes:
        steps.append(ShapedStep(shape, stored_or_compiled(config, topology, shape)))
        if isinstance(steps[-1].step, Refusal):
            break
    return tuple(steps)


def stored_or_compiled(
    config: TrainConfig, topology: Topology, shape: StepShape | None = None
) -> CompiledStep | Refusal:
    """The step of `config`, compiled for `topology` unless it is in the cache.

    It is that for batches of `shape`, one of the run's; for those of its only one, if None.

    Raises:
        InputError: as `lower_step`, or the result cannot be stored.
    """
    lowered = lower_step(config, topology, shape)
    path = _path(lowered, topology)
    if path.exists():
        return from_json(CompiledStep | Refusal, path.read_text(), path)
    step = compile_step(lowered)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(to_json(step))
    except OSError as error:
        raise InputError(
            f"cannot store the plan in {path.parent}: {error.strerror}\n"
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    return step


def _path(step: LoweredStep, topology: Topology) -> Path:
    identity = [
        hashlib.sha256(step.lowered.as_text().encode()).hexdigest(),
        topology.name,
        [device.id for device in step.devices],
        [_version(package) for package in ("jax", "jaxlib", "libtpu")],
        [os.environ.get(flags) for flags in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
        _readers_digest(),
    ]
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "flaxclip", "plans", f"{digest}.json")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _readers_digest() -> str:
    digest = hashlib.sha256()
    for name in _READERS:
        digest.update((Path(flaxclip.planning.__file__).parent / name).read_bytes())
    return digest.hexdigest()
