"""What was compiled before is not compiled again: a file for each step, by all that decides it."""

import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

import flaxclip
from flaxclip.config import TrainConfig
from flaxclip.config_json import from_json, to_json
from flaxclip.errors import InputError
from flaxclip.planning.compiled_step import CompiledStep, Refusal, compile_step
from flaxclip.planning.topology import Topology

# They decide what a run reads and writes, not what it computes.
_UNRELATED = (
    "workdir", "steps", "seed", "data", "log_every", "wandb", "checkpoint", "health",
)  # fmt: skip


def stored_step(config: TrainConfig, topology: Topology) -> CompiledStep | Refusal | None:
    """What the compiler made of `config` before; None if it has not been asked."""
    try:
        text = _path(config, topology).read_text()
    except OSError:
        return None
    return from_json(CompiledStep | Refusal, text, _path(config, topology))


def stored_or_compiled(config: TrainConfig, topology: Topology) -> CompiledStep | Refusal:
    """`compile_step`, once.

    Raises:
        InputError: as `compile_step`, or the result cannot be stored.
    """
    step = stored_step(config, topology)
    if step is None:
        step = compile_step(config, topology)
        path = _path(config, topology)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # By a rename, so that others see no file or all of it.
            unfinished = path.with_suffix(f".{os.getpid()}")
            unfinished.write_text(to_json(step))
            unfinished.replace(path)
        except OSError as error:
            raise InputError(
                f"cannot store the plan in {path.parent}: {error.strerror}\n"
                "set XDG_CACHE_HOME to a folder that can be written"
            ) from None
    return step


def _path(config: TrainConfig, topology: Topology) -> Path:
    fields = json.loads(to_json(config))
    identity = [
        {name: value for name, value in fields.items() if name not in _UNRELATED},
        topology.name,
        len(topology.devices),
        [_version(package) for package in ("jax", "jaxlib", "libtpu", "flax", "optax")],
        _source_digest(),
    ]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "flaxclip", "plans", f"{digest}.json")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source_digest() -> str:
    """Of our own code: what is compiled and how it is read change with it."""
    digest = hashlib.sha256()
    for path in sorted(Path(flaxclip.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
