"""Results as people and programs read them: a table, a JSON file a task, pictures."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flaxclip.api import CLIPModel
from flaxclip.benchmark.scores import Score
from flaxclip.benchmark.tasks import ClassificationTask, Task

PACKAGES = ("flaxclip", "jax", "jaxlib", "flax", "numpy", "pillow", "tokenizers", "ftfy")


def result_record(
    checkpoint: Mapping[str, Any],
    model: CLIPModel,
    task: Task,
    examples: int,
    scores: Mapping[str, Score],
    unreadable: Sequence[str],
) -> dict[str, Any]:
    """Everything that it takes to repeat a score."""
    record: dict[str, Any] = {
        "task": task.name,
        "description": task.description,
        "checkpoint": dict(checkpoint),
        "model": dataclasses.asdict(model.config),
        "preprocessing": dataclasses.asdict(model.transform),
        "examples": examples,
        "unreadable": list(unreadable),
        "scores": {name: score._asdict() for name, score in scores.items()},
        "versions": {name: version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
    }
    if isinstance(task, ClassificationTask):
        prompts = {
            "class_names": task.class_names,
            "distractors": task.distractors,
            "templates": task.templates,
        }
        digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        record |= {**prompts, "prompts_sha256": digest}
    else:
        record["shards"] = task.shards
    return record


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Indented JSON."""
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def print_table(records: Sequence[Mapping[str, Any]]) -> None:
    """One row a score, with what a blind guess would reach beside it."""
    table = Table("task", "score", "value", "chance", box=SIMPLE_HEAD)
    for record in records:
        table.add_row(f"{record['task']}, {record['examples']:,} examples", style="bold")
        for name, score in record["scores"].items():
            table.add_row("", name, f"{score['value']:.1%}", f"{score['chance']:.1%}")
    Console().print(table)


def draw_similarities(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    captions: Sequence[str],
    similarities: Float[np.ndarray, "images captions"],
    path: Path,
) -> None:
    """A picture of cosine similarities: pictures along the top, captions down the side."""
    count = len(images)
    figure = Figure(figsize=(3.2 + 0.62 * count, 1.2 + 0.62 * count), layout="constrained")
    axes = figure.subplots(2, 1, height_ratios=(1, count))
    # "auto" fills the width of the matrix below: each picture stands over its own column.
    axes[0].imshow(np.concatenate(images, axis=1), aspect="auto")
    axes[0].set_axis_off()
    values = similarities.T
    axes[1].imshow(values, cmap="viridis", aspect="auto")
    middle = (values.min() + values.max()) / 2
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = values[row, column]
            ink = "black" if value > middle else "white"
            axes[1].text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, size=7)
    axes[1].set_yticks(range(len(captions)), [_short(caption) for caption in captions])
    axes[1].set_xticks([])
    figure.savefig(path, dpi=110)


def draw_predictions(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    truths: Sequence[str],
    guesses: Sequence[Sequence[str]],
    path: Path,
    columns: int = 6,
) -> None:
    """A grid of pictures with their three best guesses; the right one is green and ticked."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.7 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.subplots_adjust(0.01, 0.34 / rows, 0.99, 1 - 0.12 / rows, wspace=0.05, hspace=0.55)
    for place in axes.flat:
        place.set_axis_off()
    for place, image, truth, guess in zip(axes.flat, images, truths, guesses, strict=False):
        place.imshow(image)
        place.set_title(_short(truth, 26), size=9, weight="bold")
        for line, name in enumerate(guess):
            right = name == truth
            mark = "✓ " if right else ""
            colour = "tab:green" if right else "dimgrey"
            place.text(
                0.5, -0.06 - 0.12 * line, f"{mark}{_short(name, 26)}",
                transform=place.transAxes, ha="center", va="top", size=8, color=colour,
            )  # fmt: skip
    figure.savefig(path, dpi=110)


def _short(text: str, length: int = 34) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
