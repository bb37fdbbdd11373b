"""Zero-shot classification: class names become a linear classifier."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flaxclip.benchmark.datasets import Labelled
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.intervals import (
    share_of_hits,
    share_of_worst_group,
    share_per_class,
    with_interval,
)
from flaxclip.benchmark.prompts import Wording
from flaxclip.benchmark.results import Findings, Score
from flaxclip.benchmark.robustness import alexnet_errors
from flaxclip.benchmark.scores import (
    calibration,
    f1_macro,
    hits_at_k,
    mean_average_precision,
    mean_of,
    per_class_table,
    relative_error,
    roc_auc,
)
from flaxclip.benchmark.tasks import Task
from flaxclip.errors import InputError
from flaxclip.zero_shot.class_prompts import Names, Templates, class_prompts, first_name, path_of
from flaxclip.zero_shot.classifier import (
    Guesses,
    average_prompts,
    class_similarities,
    guess_classes,
)

_SHOWN_OF_TEXT = 200
WORST_GROUP = {"worst_group_top1": 1, "worst_group_top5": 5}
"""Metric -> how many guesses an image has."""


def note_cut_texts(kind: str, cut: Sequence[str], count: int | None = None) -> tuple[str, ...]:
    """What a result says of texts, of `count` in all, that lost their end, if any did."""
    if not cut:
        return ()
    of_all = "" if count is None else f" of {count:,}"
    first = cut[0] if len(cut[0]) <= _SHOWN_OF_TEXT else cut[0][:_SHOWN_OF_TEXT] + "…"
    return (
        f"{len(cut):,}{of_all} {kind} were too long for the model and lost their end: "
        f"{first!r}, ...",
    )


def task_classifier(
    embedder: Embedder, class_names: Names, templates: Templates
) -> tuple[Float[Array, "classes embed"], tuple[str, ...]]:
    """One unit vector per class, and the prompts that were too long and lost their end.

    Classes may share a name: ImageNet's do, and a score counts what that costs.

    Raises:
        InputError: see `class_prompts`.
    """
    cut: list[str] = []

    def encode_text(texts: Sequence[str]) -> Float[np.ndarray, "texts embed"]:
        ztxt, lost_their_end = embedder.embed_texts(texts)
        cut.extend(lost_their_end)
        return ztxt

    classifier = average_prompts(encode_text, class_prompts(class_names, templates))
    return classifier, tuple(cut)


def classify_task(embedder: Embedder, task: Task, data: Labelled, wording: Wording) -> Findings:
    """Zero-shot scores of a model on `task`; all are shares of 0..1.

    Raises:
        InputError: the task's names or templates cannot be used, it has one class alone, or its
            metric is not defined on the set.
    """
    names = (*wording.class_names, *task.distractors)
    if len(names) == 1 and data.labels.ndim == 1:
        raise InputError(
            f"{task.name} has one class alone, {first_name(names[0])!r}: any model scores 100%\n"
            "expected two or more; of folders, name the one whose folders are the classes"
        )
    classifier, cut = task_classifier(embedder, names, wording.templates)
    zimg, unreadable = embedder.embed_images(data.images)
    if data.labels.ndim == 2:
        findings = score_multilabel(class_similarities(zimg, classifier), data.labels)
    else:
        classes = len(wording.class_names)
        guesses = guess_classes(zimg, classifier, classes, embedder.model.logit_scale)
        findings = score_single_label(guesses, classes, data, task)
        of_levels = level_hits(guesses.ranking[:, 0], data.labels, wording.class_names)
        if task.distractors:
            of_levels["top1_among_all"] = guesses.among_all == data.labels, 1 / len(names)
        for name, (hits, chance) in of_levels.items():
            findings.scores[name] = share_of_hits(hits, chance)
            findings.arrays[f"{name}_hits"] = hits
    notes = wording.notes + note_cut_texts("prompts", cut)
    return dataclasses.replace(findings, unreadable=unreadable, notes=notes)


def score_single_label(guesses: Guesses, classes: int, data: Labelled, task: Task) -> Findings:
    """Accuracies, calibration, groups, and what else the task's `metric` asks for.

    Raises:
        InputError: the metric is of groups, and the data have none; or it is of two classes, and
            the data have others, or images of one alone.
    """
    labels, metric = data.labels, task.metric
    ranking = guesses.ranking
    scores = score_ranking(ranking, labels, classes)
    first = ranking[:, 0] == labels

    def add(name: str, statistic: Any, chance: float) -> None:
        scores[name] = with_interval(statistic, len(labels), chance)

    if metric == "roc_auc":
        if classes != 2 or len(np.unique(labels)) != 2:
            raise InputError(
                f"roc_auc needs images of two classes: {classes} have names, and "
                f"{len(np.unique(labels))} have images\nname two classes, and give images of both"
            )
        add("roc_auc", roc_auc(guesses.lead, labels), 0.5)
    if metric == "f1_macro":
        add("f1_macro", f1_macro(ranking[:, 0], labels), 1 / classes)
    if metric == "mean_top1_top5":
        both = (first.astype(float) + hits_at_k(ranking, labels, 5)) / 2
        add("mean_top1_top5", mean_of(both), (1 + min(5, classes)) / classes / 2)
    if (k := WORST_GROUP.get(metric)) is not None:
        if data.groups is None:
            raise InputError(
                f"{metric} needs the group of each image, and the set has none\n"
                "read it from a webdataset whose .npy files have them, and say in which column"
            )
        hits = hits_at_k(ranking, labels, k)
        scores[metric] = share_of_worst_group(hits, data.groups, min(k / classes, 1.0))
    if task.corruption_level is not None and data.groups is not None:
        errors = alexnet_errors(task.corruption_level)
        of_alexnet = np.array([errors[name] for name in data.group_names or ()])
        statistic = relative_error(first, data.groups, of_alexnet)
        add("mean_corruption_error", statistic, float(((1 - 1 / classes) / of_alexnet).mean()))
    details: dict[str, Any] = calibration(guesses.confidence, first) | {
        "per_class": per_class_table(ranking[:, 0], labels, classes),
    }
    if data.groups is not None:
        details["groups"] = group_table(ranking, labels, data.groups, data.group_names)
    arrays = {
        "labels": labels.astype(np.int32),
        "ranking": ranking.astype(np.int32),
        "confidence": guesses.confidence.astype(np.float32),
    }
    if metric == "roc_auc":
        arrays["positive"] = guesses.lead.astype(np.float32)
    return Findings(scores, details, arrays)


def group_table(
    ranking: Int[np.ndarray, "n best"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    names: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Number of examples, top-1 and, of enough classes, top-5 of each group."""
    table = []
    for group in np.unique(groups).tolist():
        rows = groups == group
        name = str(group) if names is None else names[group]
        of_group: dict[str, Any] = {"group": name, "examples": int(rows.sum())}
        for k in (1, 5):
            if k <= ranking.shape[1]:
                of_group[f"top{k}"] = float(hits_at_k(ranking[rows], labels[rows], k).mean())
        table.append(of_group)
    return table


def score_ranking(
    ranking: Int[np.ndarray, "n best"], labels: Int[np.ndarray, " n"], classes: int
) -> dict[str, Score]:
    """Top-1, top-5 where there are more than five classes, and mean per class."""
    first = ranking[:, 0] == labels
    scores = {"top1": share_of_hits(first, 1 / classes)}
    if classes > 5:
        scores["top5"] = share_of_hits(hits_at_k(ranking, labels, 5), 5 / classes)
    scores["mean_per_class"] = share_per_class(first, labels, 1 / classes)
    return scores


def level_hits(
    guesses: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], class_names: Names
) -> dict[str, tuple[Bool[np.ndarray, " n"], float]]:
    """Of names such as `animal > dog`: which guesses are right as far as level 1, 2, ..., by score.

    Level 1 is the topmost; a guess of another class below the same one counts there. Beside them is
    how often a blind guess is right.
    """
    paths = [path_of(first_name(name)) for name in class_names]
    found = {}
    for level in range(1, max(map(len, paths))):
        _, group = np.unique([" > ".join(path[:level]) for path in paths], return_inverse=True)
        # A blind guess is right as often as classes lie below the same one.
        chance = (np.bincount(group)[group] / len(group))[labels].mean()
        found[f"top1_level_{level}"] = (group[guesses] == group[labels], float(chance))
    return found


def score_multilabel(similarities: Float[np.ndarray, "n classes"], present: np.ndarray) -> Findings:
    """Mean average precision; chance is the share of images that have a class.

    Raises:
        InputError: no image has any class.
    """
    if not present.any():
        raise InputError("no image has any of the classes\ngive images that have some")
    statistic = mean_average_precision(similarities, present)
    score = with_interval(statistic, len(present), float(present.mean()))
    arrays = {"present": present, "similarities": similarities.astype(np.float32)}
    return Findings({"mean_average_precision": score}, {}, arrays)
