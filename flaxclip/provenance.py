"""What a run's numbers come from: its data, its configuration, the versions of what computed it."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
from typing import Any

import jax

from flaxclip.config import TrainConfig
from flaxclip.config_json import to_json
from flaxclip.data.source import Source

_PACKAGES = ("flaxclip", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_SAMPLED_NAMES = 1024


def data_fingerprint(source: Source) -> dict[str, Any]:
    """Number of records, and a hash of the names of up to 1,024 of them, evenly spaced.

    It tells corpora apart whose records are other ones, fewer, more, or in another order; not
    those that differ only in what is inside their records.
    """
    records = len(source)
    count = min(records, _SAMPLED_NAMES)
    names = "\n".join(source.name(index * records // count) for index in range(count))
    return {"records": records, "names_sha256": hashlib.sha256(names.encode()).hexdigest()}


def run_record(config: TrainConfig, source: Source) -> dict[str, Any]:
    """JSON that every checkpoint carries: configuration, data, versions, devices."""
    return {
        "config": json.loads(to_json(config)),
        "data": data_fingerprint(source),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "hosts": jax.process_count(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # run from its sources, not installed
