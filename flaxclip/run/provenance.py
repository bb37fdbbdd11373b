"""The run record: the data, configuration and software versions behind a run's numbers."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from flaxclip.config import TrainConfig
from flaxclip.config_json import run_to_json
from flaxclip.data.counted_shards import counted_corpora
from flaxclip.data.order import corpus_orders
from flaxclip.data.reinforced.visits import stored_teachers
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.source import Source, UnreadableExampleError, reads_remotely
from flaxclip.data.storage.file_systems import REQUESTS_AT_ONCE
from flaxclip.step_shapes import usual_pairs

_PACKAGES = ("flaxclip", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_SAMPLED_NAMES = 1024
_SAMPLED_RECORDS = 32


def data_fingerprint(source: Source) -> dict[str, Any]:
    """Number of records, a hash of the names of up to 1,024 of them, and one of the contents of 32.

    These are evenly spaced. The fingerprint changes if records are added, removed or reordered, and
    if all captions or all images are made anew. It can miss a change of a few records.

    Of tars it also has a hash of the shards' names, sizes and numbers of records; and of tars that
    are only counted it has no more, since a name or record would take the indexing of its shard.
    """
    records = len(source)
    shards = _shards_sha256(source)
    if counted_corpora(source):
        return {"records": records, "shards_sha256": shards}

    def spaced(count: int) -> list[int]:
        count = min(records, count)
        return [index * records // count for index in range(count)]

    # Of a large index in object storage, each takes a request.
    with ThreadPoolExecutor(REQUESTS_AT_ONCE if reads_remotely(source) else 1) as pool:
        names = "\n".join(pool.map(source.name, spaced(_SAMPLED_NAMES)))
    contents = hashlib.sha256()
    for index in spaced(_SAMPLED_RECORDS):
        contents.update(_content_hash(source, index))
    return {
        "records": records,
        "names_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "contents_sha256": contents.hexdigest(),
        "shards_sha256": shards,
    }


def _shards_sha256(source: Source) -> str | None:
    """None if a corpus is not made of tars."""
    corpora = source.sources if isinstance(source, MixtureSource) else (source,)
    hashes = [getattr(corpus, "shards_sha256", None) for corpus in corpora]
    return None if None in hashes else hashlib.sha256(repr(hashes).encode()).hexdigest()


def _content_hash(source: Source, index: int) -> bytes:
    try:
        image, captions, weights = source[index]
    except UnreadableExampleError:
        return hashlib.sha256(b"unreadable").digest()
    image = image if isinstance(image, bytes) else image.tobytes()
    text = json.dumps([captions, weights])
    return hashlib.sha256(image).digest() + hashlib.sha256(text.encode()).digest()


def run_record(config: TrainConfig, source: Source) -> dict[str, Any]:
    """JSON that every checkpoint carries: configuration, data, versions, devices."""
    data = data_fingerprint(source)
    if config.data.with_order_as_meant().order.window == "auto":
        # They decide the order, and may be others in another version.
        orders = corpus_orders(source, config.data.order, config.seed, usual_pairs(config))
        data["run_lengths"] = [order.storage and order.storage.run_length for order in orders]
    if config.data.teacher_vectors:
        data["stored_teachers"] = [list(teacher) for teacher in stored_teachers(source)]
    return {
        "config": json.loads(run_to_json(config)),
        "data": data,
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
