"""What a score is made of, example by example: the material of paired tests."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from flaxclip.benchmark.methods.averages import (
    mean_of_all,
    mean_over_languages,
    of_each_outside,
    of_rows,
)
from flaxclip.benchmark.results import Result
from flaxclip.benchmark.scores import (
    Statistic,
    f1_macro,
    fpr_at_recall,
    hits_at_k,
    mean_average_precision,
    mean_of,
    mean_per_class,
    roc_auc,
    worst_group,
)

Arrays = Mapping[str, np.ndarray]
"""What each example came out as, by name: what lies beside a result."""


class Outcomes(NamedTuple):
    """Of one checkpoint and one score."""

    statistic: Statistic
    """The score at weights of examples."""
    examples: int
    each: Shaped[np.ndarray, " n"] | None
    """What each example contributes: whether it was got right, or a number that is higher where it
    was got right more. None if the score is of rankings of all examples together."""
    are_hits: bool
    """The score is the share of examples that were got right."""


def find_outcomes(score: str, result: Result, arrays: Arrays) -> Outcomes | None:
    """The outcomes that `score` of `result` is made of; None where they were not kept.

    An array `SCORE_hits` has hits, and beside it `SCORE_classes` (-1: none) or `SCORE_groups` what
    the score is the mean or the worst of; `SCORE_right` and `SCORE_asked` have counts of each image
    by language; one that is called like the score has a value for each example; all others are
    those that the methods of the benchmark keep.
    """
    if (hits := arrays.get(f"{score}_hits")) is not None:
        if (classes := arrays.get(f"{score}_classes")) is not None:
            rows = np.flatnonzero(classes >= 0)
            statistic = of_rows(mean_per_class(hits[rows], classes[rows]), rows)
            return Outcomes(statistic, len(hits), hits, False)
        if (groups := arrays.get(f"{score}_groups")) is not None:
            return Outcomes(worst_group(hits, groups), len(hits), hits, False)
        return _hits(hits)
    if (right := arrays.get(f"{score}_right")) is not None:
        asked = arrays[f"{score}_asked"]
        each = right.sum(axis=0) / np.maximum(asked.sum(axis=0), 1)
        statistic = mean_over_languages(right, asked)
        return Outcomes(statistic, len(each), each, False)
    if score in ("auroc", "fpr95") and "source" in arrays:
        measure = roc_auc if score == "auroc" else fpr_at_recall
        source = arrays["source"]
        statistics = of_each_outside(measure, arrays["known_probability"], source)
        return Outcomes(mean_of_all(statistics), len(source), None, False)
    if (values := arrays.get(score)) is not None and values.ndim == 1:
        return Outcomes(mean_of(values), len(values), values, False)
    direction, _, k = score.partition("_recall@")
    if (rivals := arrays.get(f"{direction}_rivals")) is not None and k.isdecimal():
        return _hits(rivals < int(k))
    if score == "mean_average_precision" and "similarities" in arrays:
        present = arrays["present"]
        statistic = mean_average_precision(arrays["similarities"], present)
        return Outcomes(statistic, len(present), None, False)
    if "ranking" in arrays:
        return _of_ranking(score, arrays)
    return None


def _of_ranking(score: str, arrays: Arrays) -> Outcomes | None:
    labels, ranking = arrays["labels"], arrays["ranking"]
    first = ranking[:, 0] == labels
    if score == "top1":
        return _hits(first)
    if score == "top5":
        return _hits(hits_at_k(ranking, labels, 5))
    if score == "mean_top1_top5":
        both = (first.astype(float) + hits_at_k(ranking, labels, 5)) / 2
        return Outcomes(mean_of(both), len(both), both, False)
    statistic: Statistic
    if score == "mean_per_class":
        statistic = mean_per_class(first, labels)
    elif score == "f1_macro":
        statistic = f1_macro(ranking[:, 0], labels)
    elif score == "roc_auc" and "positive" in arrays:
        statistic = roc_auc(arrays["positive"], labels)
    elif score in ("worst_group_top1", "worst_group_top5") and "groups" in arrays:
        first = hits_at_k(ranking, labels, int(score[-1]))
        statistic = worst_group(first, arrays["groups"])
    else:
        return None
    return Outcomes(statistic, len(labels), first, False)


def _hits(hits: np.ndarray) -> Outcomes:
    return Outcomes(mean_of(hits), len(hits), hits, True)
