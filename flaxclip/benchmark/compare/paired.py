"""Tests of two checkpoints on the same examples, and what many tests at once ask for."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from flaxclip.benchmark.compare.outcomes import Outcomes
from flaxclip.benchmark.intervals import RESAMPLES, Difference, paired_difference

LEVEL = 0.05
"""Of all tasks together: how often a difference may be named where there is none on any."""


def paired_test(outcomes: Outcomes, other: Outcomes) -> Difference:
    """The score of `outcomes` less that of `other`, and whether chance may have made it.

    Shares of hits: McNemar's exact test. All other scores: `paired_bootstrap`.
    """
    first, second = outcomes.each, other.each
    if outcomes.are_hits and other.are_hits and first is not None and second is not None:
        return paired_difference(first, second)
    return paired_bootstrap(outcomes, other)


def paired_bootstrap(outcomes: Outcomes, other: Outcomes, seed: int = 0) -> Difference:
    """Any two scores, each sample of examples drawn once for both.

    The interval is that of percentiles. The p value is of the difference in units of its standard
    error over samples, two-sided by the normal distribution (Efron and Tibshirani 1993, chapter
    16): counting samples beyond zero could not tell p values below 1 / `RESAMPLES` apart, which
    corrections for many tasks have to.
    """
    everything = np.ones(outcomes.examples, int)
    value = outcomes.statistic(everything) - other.statistic(everything)
    rng = np.random.default_rng(seed)
    draws = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = rng.integers(outcomes.examples, size=outcomes.examples)
        weights = np.bincount(drawn, minlength=outcomes.examples)
        draws[number] = outcomes.statistic(weights) - other.statistic(weights)
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    error = float(np.nanstd(draws))
    if value == 0:
        p_value = 1.0
    elif error < 1e-12 * abs(value):  # every sample says the same: no more than this is known
        p_value = 1 / (RESAMPLES + 1)
    else:
        p_value = math.erfc(abs(value) / error / math.sqrt(2))
    return Difference(value, float(low), float(high), p_value)


def holm(p_values: Sequence[float]) -> Float[np.ndarray, " tests"]:
    """Correct p values for the number of tests (Holm 1979).

    Whoever calls those below `LEVEL` differences is wrong about any of them with at most that
    probability, however the tests hang together.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    corrected = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty(len(p))
    result[order] = np.minimum(corrected, 1.0)
    return result
