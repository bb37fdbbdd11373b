"""Scores from predictions: each example counts once."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped


class Score(NamedTuple):
    """A share of 0..1, and what a blind guess is expected to reach."""

    value: float
    chance: float


def top_k_accuracy(
    ranking: Int[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], k: int
) -> float:
    """Share of examples whose label is among the first k of `ranking`, best class first.

    With k or fewer classes to choose from, this is 1 by definition.
    """
    return float((ranking[:, :k] == labels[:, None]).any(axis=1).mean())


def mean_per_class_accuracy(
    predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]
) -> float:
    """Mean over classes of the accuracy within each: every class counts the same.

    Classes without an example have no accuracy and are left out of the mean.
    """
    hits = predictions == labels
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def recall_at_k(
    similarities: Float[np.ndarray, "queries candidates"],
    relevant: Shaped[np.ndarray, "queries candidates"],
    k: int,
) -> float:
    """Share of queries with a relevant candidate among the k most similar.

    Ties count against the query: a model that gives every candidate the same similarity must not
    look as if it had found the right one.
    """
    best = np.where(relevant, similarities, -np.inf).max(axis=1, keepdims=True)
    rivals = ((similarities >= best) & ~relevant.astype(bool)).sum(axis=1)
    return float((rivals < k).mean())
