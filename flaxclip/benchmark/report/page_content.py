"""What a page of results shows: rows and charts made of result files."""

import base64
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from flaxclip.benchmark.compare.comparison import Comparison, Found, compare
from flaxclip.benchmark.compare.differing import shown_examples
from flaxclip.benchmark.intervals import Difference
from flaxclip.benchmark.report.breakdowns import breakdowns, reliability_chart
from flaxclip.benchmark.report.charts import Axes, Point, chart
from flaxclip.benchmark.results import Result, Score, read_arrays, unreadable_lines
from flaxclip.benchmark.robustness import SHIFTS, reference_line, references, summarise_shifts
from flaxclip.benchmark.scores import confusion_matrix
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.errors import InputError
from flaxclip.zero_shot.class_prompts import first_name

REFERENCE_MODELS = ("ViT-B-32 openai", "ViT-B-16 openai", "ViT-L-14 openai")
STEPS_SHOWN = 3
"""Of each run, the latest: curves alone show all."""
_MATRIX_CLASSES = 40
"""Beyond these a confusion matrix is too fine to be read: its largest entries are listed alone."""


def breakable(name: str) -> Markup:
    """A name that a narrow column may break after `_` and `/`, not inside a word."""
    return Markup(re.sub("(?<=[_/])", "<wbr>", str(escape(name))))


def latest_steps(found: Found) -> Found:
    """Those of the latest `STEPS_SHOWN` steps of each run."""
    steps: dict[str, set[int]] = {}
    for _, result in found:
        steps.setdefault(result.checkpoint.path, set()).add(result.checkpoint.step or 0)
    shown = {path: sorted(of_run)[-STEPS_SHOWN:] for path, of_run in steps.items()}
    return [
        (path, result)
        for path, result in found
        if (result.checkpoint.step or 0) in shown[result.checkpoint.path]
    ]


def summary_rows(
    found: Found, checkpoints: Sequence[str], names: Mapping[Path, str]
) -> list[dict[str, Any]]:
    """A row a task and method: the quoted score of each checkpoint, and published ones.

    `names` are those of the checkpoint of each result, by its file.
    """
    published = {
        (row["task"], row["score"], row["model"]): float(row["value"])
        for row in reversed(references())  # CLIP_benchmark's, sorted first, win
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for path, result in found:
        metric = result.metric
        if metric not in result.scores:
            continue
        row = rows.setdefault(
            (result.task, result.method),
            {
                "task": result.task,
                "title": result.title,
                "method": result.method,
                "metric": metric,
                "chance": result.scores[metric].chance,
                "scores": dict.fromkeys(checkpoints),
                "published": {
                    model: published.get((result.task, metric, model))
                    if result.method == "zero-shot"
                    else None
                    for model in REFERENCE_MODELS
                },
            },
        )
        unreadable = {"unreadable": len(result.unreadable)}
        row["scores"][names[path]] = dataclasses.asdict(result.scores[metric]) | unreadable
    return list(rows.values())


def curves(found: Found) -> list[dict[str, Any]]:
    """Of every run with several steps: scores against training step, as a chart and a table."""
    runs: dict[str, dict[str, list[tuple[int, Score]]]] = {}
    for _, result in found:
        step, score = result.checkpoint.step, result.scores.get(result.metric)
        if step is None or score is None:
            continue
        which, most = result.checkpoint.weights, result.checkpoint.max_patches
        patches = None if most is None else f"{most} patches"
        name = ", ".join(filter(None, [result.task, result.method, which, patches]))
        runs.setdefault(result.checkpoint.path, {}).setdefault(name, []).append((step, score))
    charts = []
    for path, found_scores in runs.items():
        steps = {step for scores in found_scores.values() for step, _ in scores}
        if len(steps) < 2:
            continue
        top = max(score.high for scores in found_scores.values() for _, score in scores)
        axes = Axes((0, max(steps)), (0, top), "training step", "score", False)
        series = {
            name: [
                Point(
                    step,
                    score.value,
                    f"{name}, step {step}: {score.value:.1%}",
                    (score.low, score.high),
                )
                for step, score in scores
            ]
            for name, scores in found_scores.items()
        }
        svg = chart(f"Scores of {path} against training step", axes, series, connect=True)
        charts.append({"run": path, "svg": svg, "series": list(series)})
    return charts


def robustness(found: Found, names: Mapping[Path, str]) -> dict[str, Any] | None:
    """Top-1 on shifted sets against ImageNet, with published models and their line."""
    models: dict[str, dict[str, float]] = {}
    for path, result in found:
        if result.method == "zero-shot" and "top1" in result.scores:
            accuracies = models.setdefault(names[path], {})
            accuracies[result.task] = result.scores["top1"].value
    rows = [(name, shift) for name, a in models.items() for shift in summarise_shifts(a)]
    if not rows:
        return None
    charts = []
    for shift in SHIFTS:
        series = {
            name: [Point(a["imagenet"], a[shift], f"{name}: {a[shift]:.1%}")]
            for name, a in models.items()
            if "imagenet" in a and shift in a
        }
        if series:
            line = reference_line(shift)
            places = [(x, line(x)) for x in np.linspace(0.01, 0.99, 60)]
            background = [
                Point(x, y, f"{name}: {x:.1%} on ImageNet, {y:.1%}") for name, x, y in line.points
            ]
            axes = Axes((0, 1), (0, 1), "ImageNet top-1", f"{shift} top-1", True)
            title = f"Accuracy on {shift} against ImageNet, with {len(background)} other models"
            charts.append({"shift": shift, "svg": chart(title, axes, series, places, background)})
    return {"rows": rows, "charts": charts}


def compare_with_first(found: Found, names: Mapping[Path, str]) -> list[Comparison]:
    """Each checkpoint against the first one, on tasks that both have."""
    by_name: dict[str, Found] = {}
    for item in found:
        by_name.setdefault(names[item[0]], []).append(item)
    first, *others = by_name or [""]
    compared = [compare(by_name[first], by_name[other], (first, other)) for other in others]
    return [comparison for comparison in compared if comparison.tasks]


def comparison_detail(comparison: Comparison, place: DataPlace | Path) -> dict[str, Any]:
    """What the page shows of two checkpoints."""
    rows = []
    farthest = max(
        [max(abs(d.low), abs(d.high), abs(d.value)) for d in _differences(comparison)] or [0]
    )
    scale = 50 / (farthest or 1)  # zero is in the middle: 50% of the width for either side
    for task in comparison.tasks:
        examples, reason = shown_examples(task, place)
        rows.append(
            {
                "task": task,
                "places": [
                    f"{50 + scale * at:.2f}%" for at in (task.difference.low, task.difference.high)
                ],
                "counts": [len(indices) for indices in task.differing()],
                "reason": reason,
                "sides": [
                    [
                        {"example": example, "data": _data_url(example.image)}
                        for example in examples
                        if example.winner == side
                    ]
                    for side in (0, 1)
                ],
            }
        )
    return {"names": comparison.names, "verdict": comparison.verdict(), "rows": rows,
            "left_out": comparison.left_out}  # fmt: skip


def _differences(comparison: Comparison) -> list[Difference]:
    return [task.difference for task in comparison.tasks]


def _data_url(jpeg: bytes | None) -> str | None:
    return None if jpeg is None else f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def result_detail(path: Path, result: Result, checkpoint: str) -> dict[str, Any]:
    arrays = read_arrays(path)
    detail = {
        "result": result,
        "unreadable": unreadable_lines(result),
        "checkpoint": checkpoint,
        "mistakes": _with_images(path, result.details.get("mistakes", [])),
        "retrieved": _with_images(path, result.details.get("retrieved", [])),
        "breakdowns": breakdowns(result),
        "reliability": reliability_chart(result),
        "per_class": [], "confusions": [], "matrix": None,
    }  # fmt: skip
    if "ranking" not in arrays:
        return detail
    names = [first_name(name) for name in result.details["class_names"]]
    labels, guesses = arrays["labels"], arrays["ranking"][:, 0]
    detail["per_class"] = [
        {"name": name, **row}
        for name, row in zip(names, result.details.get("per_class", []), strict=False)
        if row["examples"]
    ]
    # Not from a matrix: of ten thousand classes it would have a hundred million entries.
    mistakes = np.stack([labels, guesses], axis=1)[labels != guesses]
    pairs, counts = np.unique(mistakes, axis=0, return_counts=True)
    worst = np.argsort(-counts, kind="stable")[:10]
    detail["confusions"] = [
        {"class": names[i], "prediction": names[j], "count": count}
        for (i, j), count in zip(pairs[worst].tolist(), counts[worst].tolist(), strict=True)
    ]
    if len(names) <= _MATRIX_CLASSES:
        matrix = confusion_matrix(guesses, labels, len(names))
        totals = matrix.sum(axis=1, keepdims=True)
        shares = matrix / np.maximum(totals, 1)
        detail["matrix"] = [
            {"name": name, "cells": list(zip(row.tolist(), counts.tolist(), strict=True))}
            for name, row, counts in zip(names, shares, matrix, strict=True)
        ]
    return detail


def _with_images(path: Path, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = []
    for item in items:
        try:
            jpeg = (path.parent / item["image"]).read_bytes()
        except OSError:
            raise InputError(
                f"{path} speaks of {item['image']}, which is not beside it\n"
                "copy results as a whole, or delete the file and measure again"
            ) from None
        shown.append(item | {"data": _data_url(jpeg)})
    return shown
