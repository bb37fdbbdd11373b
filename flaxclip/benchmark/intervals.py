"""How sure a score is: 95% intervals over examples, and of differences between two checkpoints."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from flaxclip.benchmark.results import Score
from flaxclip.benchmark.scores import Statistic, mean_of, mean_per_class, worst_group

RESAMPLES = 1000
"""Bootstrap samples; the 2.5% points of 1,000 lie within about 0.1 standard errors."""

_TAIL = 0.025


def with_interval(statistic: Statistic, examples: int, chance: float, seed: int = 0) -> Score:
    """The score with its 95% percentile bootstrap interval (Efron 1979) over examples.

    Samples in which a score is not defined, NaN, are left out.
    """
    value = statistic(np.ones(examples, int))
    return Score(value, chance, *_bootstrap(statistic, examples, seed))


def share_of_hits(hits: Bool[np.ndarray, " n"], chance: float) -> Score:
    """How many examples are hits, with its 95% interval."""
    score = with_interval(mean_of(hits), len(hits), chance)
    return with_exact_end(score, lowest_share(len(hits)))


def share_per_class(
    hits: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"], chance: float
) -> Score:
    """The mean over classes of the share of hits in each, with its 95% interval."""
    score = with_interval(mean_per_class(hits, labels), len(hits), chance)
    return with_exact_end(score, _lowest_mean(np.bincount(labels)))


def share_of_worst_group(
    hits: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"], chance: float
) -> Score:
    """The lowest share of hits of any group, with its 95% interval."""
    score = with_interval(worst_group(hits, groups), len(hits), chance)
    _, groups = np.unique(groups, return_inverse=True)
    counts, right = np.bincount(groups), np.bincount(groups, hits)
    # All hits: the smallest group leaves most room. A group of misses alone: the largest least.
    examples = counts.min() if score.value == 1 else counts[right == 0].max(initial=1)
    return with_exact_end(score, lowest_share(int(examples)))


def with_exact_end(score: Score, lowest: float) -> Score:
    """A score of examples that are all hits, or all misses, with the exact end of its interval.

    Their bootstrap samples know of no others, and make an interval of no width. The exact one
    (Clopper and Pearson 1934) ends at a share of hits, or of misses, of `lowest`.
    """
    if score.value == 1:
        return dataclasses.replace(score, low=lowest)
    return dataclasses.replace(score, high=1 - lowest) if score.value == 0 else score


def lowest_share(examples: int) -> float:
    """The share of hits at which so many examples are all hits with a probability of 2.5%."""
    return float(_TAIL ** (1 / examples))


def _lowest_mean(counts: Int[np.ndarray, " classes"]) -> float:
    """The lowest mean over classes of shares at which hits alone have a probability of 2.5%.

    Of sum(p) where sum(n log(p)) is given, the least has p = min(1, c n) for some c: where more
    examples say so, a share is closer to 1.
    """
    counts = counts[counts > 0].astype(float)
    low, high = 0.0, 1 / counts.min()
    for _ in range(100):  # halves; floats have no more digits
        c = (low + high) / 2
        log_probability = (counts * np.log(np.minimum(1, c * counts))).sum()
        low, high = (c, high) if log_probability < np.log(_TAIL) else (low, c)
    return float(np.minimum(1, high * counts).mean())


def _bootstrap(statistic: Statistic, examples: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.bincount(rng.integers(examples, size=examples), minlength=examples))
        for _ in range(RESAMPLES)
    ]
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return float(low), float(high)


class Difference(NamedTuple):
    """One checkpoint's accuracy less another's on the same examples."""

    value: float
    low: float
    high: float
    p_value: float
    """Of McNemar's exact test: how often a coin would split the examples that only one of the two
    gets right at least as unevenly."""


def paired_difference(
    hits: Shaped[np.ndarray, " n"], other_hits: Shaped[np.ndarray, " n"]
) -> Difference:
    """Compare two checkpoints example by example; 95% bootstrap interval of the difference."""
    from scipy.stats import binomtest  # slow to import, and needed by reports alone

    first, second = np.asarray(hits, bool), np.asarray(other_hits, bool)
    change = first.astype(int) - second
    low, high = _bootstrap(mean_of(change), len(change), seed=0)
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    p_value = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return Difference(float(change.mean()), low, high, float(p_value))
