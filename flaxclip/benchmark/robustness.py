"""Accuracy under distribution shift, beside that of published models of the same accuracy."""

import csv
import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SHIFTS = ("imagenetv2", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet")
_ALEXNET_ERRORS = Path(__file__).parent / "suites" / "imagenet_c_alexnet_errors.csv"
_REFERENCES = Path(__file__).parent / "suites" / "references.csv"


class Line(NamedTuple):
    """The usual accuracy on a shifted set at an accuracy on ImageNet, linear between logits."""

    slope: float
    intercept: float
    points: list[tuple[str, float, float]]
    """Models that it was fitted to: name, accuracy on ImageNet and on the shifted set."""

    def __call__(self, accuracy: float) -> float:
        return 1 / (1 + math.exp(-(self.slope * _logit(accuracy) + self.intercept)))


def _logit(accuracy: float) -> float:
    # Scores of 0 and 1 have no logit; no set here tells apart less than this.
    share = min(max(accuracy, 1e-5), 1 - 1e-5)
    return math.log(share / (1 - share))


@functools.cache
def references() -> tuple[dict[str, str], ...]:
    """Published scores: task, score, model, value, source."""
    with _REFERENCES.open(newline="") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def alexnet_errors(level: int) -> dict[str, float]:
    """AlexNet's error rate on each corruption of ImageNet-C at a level."""
    with _ALEXNET_ERRORS.open(newline="") as file:
        return {row["corruption"]: float(row[f"level_{level}"]) for row in csv.DictReader(file)}


def published_scores(task: str, score: str) -> list[dict[str, Any]]:
    """What others measured on `task`: model, value and source."""
    return [
        {"model": row["model"], "value": float(row["value"]), "source": row["source"]}
        for row in references()
        if (row["task"], row["score"]) == (task, score) and "openai" in row["model"]
    ]


@functools.cache
def reference_line(shift: str) -> Line:
    """Fitted by least squares to the models of `references.csv` measured by open_clip.

    Taori et al. 2020, section 3, with one difference: their line is of classifiers trained on
    ImageNet, this one of zero-shot models, so a model upon it is as robust as those.
    """
    scores: dict[str, dict[str, float]] = {}
    for row in references():
        if row["source"] == "open_clip" and row["task"] in ("imagenet", shift):
            scores.setdefault(row["model"], {})[row["task"]] = float(row["value"])
    points = [(model, s["imagenet"], s[shift]) for model, s in scores.items() if len(s) == 2]
    x = np.array([_logit(imagenet) for _, imagenet, _ in points])
    y = np.array([_logit(shifted) for _, _, shifted in points])
    slope, intercept = np.polyfit(x, y, 1)
    return Line(float(slope), float(intercept), points)


class Shifted(NamedTuple):
    """One model on one shifted set."""

    shift: str
    accuracy: float
    drop: float
    """Below its accuracy on ImageNet."""
    effective_robustness: float
    """Above what the line expects at its accuracy on ImageNet."""


def summarise_shifts(accuracies: dict[str, float]) -> list[Shifted]:
    """`accuracies`: task -> top-1; nothing without ImageNet."""
    if "imagenet" not in accuracies:
        return []
    base = accuracies["imagenet"]
    return [
        Shifted(shift, accuracies[shift], base - accuracies[shift],
                accuracies[shift] - reference_line(shift)(base))
        for shift in SHIFTS
        if shift in accuracies
    ]  # fmt: skip
