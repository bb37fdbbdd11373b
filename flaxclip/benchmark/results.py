"""Results on disk: a JSON file a task with all that it takes to repeat it, and arrays beside it.

OUT/TASK.json               scores, prompts, preprocessing, versions
OUT/TASK.npz                what each example came out as
OUT/TASK-images/*.jpg     mistakes and findings worth looking at
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.methods.zero_shot import Result
from flaxclip.errors import InputError

PACKAGES = ("flaxclip", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow", "tokenizers", "ftfy")
FORMAT = 3
"""Of result files."""


def digest(value: Any) -> str:
    """A short hash of anything that JSON can hold, or dataclasses."""
    text = json.dumps(value, default=_plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else str(value)


def make_record(
    identity: Mapping[str, Any], embedder: Embedder, examples: int, result: Result
) -> dict[str, Any]:
    """Everything that it takes to repeat a score; `identity` says what was measured and how."""
    model = embedder.model
    return {
        **identity,
        "examples": examples,
        "scores": {name: score._asdict() for name, score in result.scores.items()},
        "unreadable_images": len(result.unreadable),
        "unreadable": list(result.unreadable),
        "notes": list(result.notes),
        **result.details,
        "model": dataclasses.asdict(model.config),
        "compute": dataclasses.asdict(model.compute),
        "preprocessing": {"size": model.transform.size} | dataclasses.asdict(model.spec.preprocess),
        "tokenizer": dataclasses.asdict(model.spec.tokenizer),
        "versions": {name: version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "format": FORMAT,
    }


def write_record(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], stem: Path) -> None:
    """`stem`.npz, then `stem`.json, each whole or not at all: the JSON says that all is there."""
    partial = stem.with_name(stem.name + ".npz.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, stem.with_name(stem.name + ".npz"))
    write_text(stem.with_name(stem.name + ".json"), as_json(record))


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def as_json(value: Any) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"


def read_record(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        InputError: it is none, or of another version of this program.
    """
    try:
        record = json.loads(path.read_text())
        if record["format"] == FORMAT:
            return record
        found = f"of format {record['format']}, not {FORMAT}"
    except (ValueError, KeyError, TypeError) as error:
        found = f"damaged: {error!r}"
    raise InputError(f"result file {path} is {found}\ndelete it, and measure again")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays beside the result file `path`; none where they were not kept."""
    try:
        with np.load(path.with_suffix(".npz")) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return {}


def unreadable_lines(record: Mapping[str, Any], shown: int = 10) -> list[str]:
    """The first images that a result counts as black, and how many more there are."""
    unreadable = record["unreadable"]
    lines = [f"counted as black, because unreadable: {line}" for line in unreadable[:shown]]
    if len(unreadable) > shown:
        lines.append(f"and {len(unreadable) - shown:,} more: {record['task']}'s JSON has all")
    return lines


def print_table(records: Sequence[Mapping[str, Any]]) -> None:
    """One row a score, with its 95% interval and what a blind guess would reach beside it; above
    them how many images the set has, and how many of these were unreadable and count as black.
    """
    table = Table("task", "score", "value", "95% interval", "chance", box=SIMPLE_HEAD)
    for record in records:
        examples = f"{record['kind']}, n = {record['examples']:,}"
        unreadable = f"{len(record['unreadable']):,} unreadable"
        table.add_row(record["task"], examples, "", unreadable, style="bold")
        for name, score in record["scores"].items():
            interval = f"{score['low']:.1%} – {score['high']:.1%}"
            table.add_row("", name, f"{score['value']:.1%}", interval, f"{score['chance']:.1%}")
    Console().print(table)
