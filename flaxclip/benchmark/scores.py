"""Scores from predictions: each example counts once.

A statistic is a function of weights, one an example: `statistic(np.ones(n))` is the score itself,
and a bootstrap sample is a row of counts of how often each example was drawn.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Num

Statistic = Callable[[np.ndarray], float]


def mean_of(values: Num[np.ndarray, " n"] | Bool[np.ndarray, " n"]) -> Statistic:
    """The mean of a number that each example has: accuracy of hits, recall of hits."""
    values = values.astype(np.float64)
    return lambda weights: float(weights @ values / weights.sum())


def mean_per_class(hits: Bool[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> Statistic:
    """Mean over classes of the accuracy within each: every class counts the same.

    Classes without an example have no accuracy and are left out of the mean.
    """
    classes = int(labels.max()) + 1

    def statistic(weights: np.ndarray) -> float:
        counts = np.bincount(labels, weights, classes)
        right = np.bincount(labels, weights * hits, classes)
        return float((right[counts > 0] / counts[counts > 0]).mean())

    return statistic


def worst_group(hits: Bool[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Statistic:
    """The lowest accuracy of any group of examples (Sagawa et al. 2020)."""
    _, groups = np.unique(groups, return_inverse=True)

    def statistic(weights: np.ndarray) -> float:
        counts = np.bincount(groups, weights)
        right = np.bincount(groups, weights * hits)
        return float((right[counts > 0] / counts[counts > 0]).min())

    return statistic


def f1_macro(predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> Statistic:
    """Mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    classes = int(max(predictions.max(), labels.max())) + 1

    def statistic(weights: np.ndarray) -> float:
        true = np.bincount(labels, weights * (predictions == labels), classes)
        total = np.bincount(labels, weights, classes) + np.bincount(predictions, weights, classes)
        occurs = np.bincount(labels, weights, classes) > 0
        return float((2 * true[occurs] / total[occurs]).mean())

    return statistic


def mean_average_precision(
    similarities: Float[np.ndarray, "n classes"], present: Bool[np.ndarray, "n classes"]
) -> Statistic:
    """Mean over classes of average precision: precision at each image that has the class.

    A class that no image has counts as 0, as in CLIP_benchmark. One that a bootstrap sample
    happened not to draw has no precision in it, and is left out of the mean of that sample.
    """
    share_known = present.any(axis=0).mean()
    order = np.argsort(-similarities, axis=0, kind="stable")
    sorted_present = np.take_along_axis(present, order, axis=0)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, len(present) + 1))])

    def statistic(weights: np.ndarray) -> float:
        drawn = weights[order]
        right = drawn * sorted_present
        places, hits = np.cumsum(drawn, axis=0), np.cumsum(right, axis=0)
        # w copies of an image behind n others, t of them right, have precisions (t+i) / (n+i) for
        # i of 1..w: together w - (n - t) (H(n + w) - H(n)), with harmonic numbers H.
        wrong = (places - drawn) - (hits - right)
        together = drawn - wrong * (harmonic[places] - harmonic[places - drawn])
        found = hits[-1]
        is_drawn = found > 0
        if not is_drawn.any():
            return np.nan
        precision = (together * sorted_present).sum(axis=0)[is_drawn] / found[is_drawn]
        return float(precision.mean() * share_known)

    return statistic


def roc_auc(positive: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"]) -> Statistic:
    """Chance that an image of class 1 has a higher `positive` than one of class 0; ties half.

    NaN where a class has no images.
    """
    _, level = np.unique(positive, return_inverse=True)

    def statistic(weights: np.ndarray) -> float:
        of_one = np.bincount(level, weights * labels)
        of_zero = np.bincount(level, weights * (1 - labels))
        below = np.cumsum(of_zero) - of_zero / 2
        pairs = of_one.sum() * of_zero.sum()
        return float(of_one @ below / pairs) if pairs else np.nan

    return statistic


def fpr_at_recall(
    positive: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], recall: float = 0.95
) -> Statistic:
    """Share of class 0 above the threshold at which the recall of class 1 is closest to `recall`.

    Of thresholds equally close the lowest, as in the code by which detectors of unknown classes are
    compared (Hendrycks and Gimpel 2017). NaN where a class has no images.
    """
    _, level = np.unique(-positive, return_inverse=True)

    def statistic(weights: np.ndarray) -> float:
        found = np.cumsum(np.bincount(level, weights * labels))
        false = np.cumsum(np.bincount(level, weights * (1 - labels)))
        last = int(np.searchsorted(found, found[-1]))  # the highest threshold that finds all
        if not (found[-1] and false[-1]):
            return np.nan
        distance = np.abs(found[last::-1] / found[-1] - recall)
        return float(false[last - int(distance.argmin())] / false[-1])

    return statistic


def relative_error(
    hits: Bool[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    errors: Float[np.ndarray, " groups"],
) -> Statistic:
    """Mean over groups of the error rate divided by another model's, `errors`.

    Mean corruption error: Hendrycks and Dietterich 2019, section 3.2.
    """

    def statistic(weights: np.ndarray) -> float:
        counts = np.bincount(groups, weights, len(errors))
        wrong = np.bincount(groups, weights * ~hits, len(errors))
        occurs = counts > 0
        return float((wrong[occurs] / counts[occurs] / errors[occurs]).mean())

    return statistic


def reliability_diagram(
    confidence: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"], bins: int = 15
) -> list[dict[str, float | None]]:
    """Of bins of confidence of equal width: examples, mean confidence and accuracy.

    Guo et al. 2017, section 2: bin m of M holds confidences above (m - 1) / M and up to m / M.
    Means of an empty bin are None.
    """
    edges = np.linspace(0, 1, bins + 1)
    return [
        {
            "above": float(edges[number]),
            "up_to": float(edges[number + 1]),
            "examples": int(n),
            "confidence": float(total / n) if n else None,
            "accuracy": float(right / n) if n else None,
        }
        for number, (n, total, right) in enumerate(_bin_sums(confidence, hits, bins).T)
    ]


def expected_calibration_error(
    confidence: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"], bins: int = 15
) -> float:
    """Mean distance between confidence and accuracy over bins of confidence, by their sizes.

    Guo et al. 2017, equation 3, with its 15 bins of equal width.
    """
    _, total, right = _bin_sums(confidence, hits, bins)
    return float(np.abs(total - right).sum() / len(hits))


def _bin_sums(
    confidence: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"], bins: int
) -> Float[np.ndarray, "3 bins"]:
    """Of each bin the number of examples, the sum of their confidences, and of hits."""
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    values = np.ones(len(hits)), confidence.astype(np.float64), hits
    return np.stack([np.bincount(place, value, bins) for value in values])


def calibration(
    confidence: Float[np.ndarray, " n"], hits: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    """What a result says of it: the error, and the diagram that the error sums up."""
    return {
        "calibration_error": expected_calibration_error(confidence, hits),
        "reliability_diagram": reliability_diagram(confidence, hits),
    }


def hits_at_k(
    ranking: Int[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], k: int
) -> Bool[np.ndarray, " n"]:
    """Whether an example's label is among the first k of `ranking`, best class first."""
    return (ranking[:, :k] == labels[:, None]).any(axis=1)


def per_class_table(
    predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int
) -> list[dict[str, float | None]]:
    """Recall, precision and number of examples of each class; None where undefined."""
    counts = np.bincount(labels, minlength=classes)
    predicted = np.bincount(predictions, minlength=classes)
    right = np.bincount(labels[predictions == labels], minlength=classes)
    return [
        {
            "examples": int(n),
            "recall": float(hit / n) if n else None,
            "precision": float(hit / guess) if guess else None,
        }
        for n, guess, hit in zip(counts, predicted, right, strict=True)
    ]


def confusion_matrix(
    predictions: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Number of examples by class (row) and predicted class (column)."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(
        classes, classes
    )
