"""Scores that are means of others of the same images: over languages, and over sets of others."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Num

from flaxclip.benchmark.scores import Statistic


def mean_over_languages(
    right: Num[np.ndarray, "languages images"], asked: Num[np.ndarray, "languages images"]
) -> Statistic:
    """Mean over languages of the share of right answers, of how often each image was asked for.

    NaN where no image of any language is drawn.
    """
    # Sums of fewer than 2^24 ones are exact in float32; float64 would double the time.
    right, asked = right.astype(np.float32), asked.astype(np.float32)

    def statistic(weights: np.ndarray) -> float:
        drawn = weights.astype(np.float32)
        count = (asked @ drawn).astype(np.float64)
        if not count.any():
            return np.nan
        of_languages = (right @ drawn)[count > 0] / count[count > 0]
        return float(of_languages.mean())

    return statistic


def of_each_outside(
    measure: Callable[[np.ndarray, np.ndarray], Statistic],
    confidence: Float[np.ndarray, " n"],
    source: Int[np.ndarray, " n"],
) -> list[Statistic]:
    """`measure` of images of source 0, those of known classes, against every other source."""
    statistics = []
    for number in range(1, int(source.max()) + 1):
        rows = np.flatnonzero((source == 0) | (source == number))
        statistic = measure(confidence[rows], (source[rows] == 0).astype(int))
        statistics.append(of_rows(statistic, rows))
    return statistics


def mean_of_all(statistics: list[Statistic]) -> Statistic:
    """The mean of several scores."""
    return lambda weights: float(np.mean([statistic(weights) for statistic in statistics]))


def of_rows(statistic: Statistic, rows: Int[np.ndarray, " rows"]) -> Statistic:
    """A score of some examples alone, at weights of all."""
    return lambda weights: statistic(weights[rows])
