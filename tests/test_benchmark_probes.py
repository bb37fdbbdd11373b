import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from flaxclip.benchmark.methods.linear_probe import (
    Split,
    choose_cost,
    few_shot,
    fit_logistic,
    linear_probe,
    nearest_neighbours,
    predict,
)
from flaxclip.benchmark.scores import expected_calibration_error


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    z = (pixels - pixels.mean(axis=0)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    order = np.random.default_rng(0).permutation(len(z))[:900]
    parts = np.split(order, [300, 450])
    return [Split(z[rows], labels[rows]) for rows in parts]


@pytest.mark.parametrize("cost", [0.01, 1.0, 100.0])
def test_l_bfgs_finds_what_scikit_learn_finds(digits, cost):
    train, _, test = digits
    reference = LogisticRegression(C=cost, max_iter=2000, tol=1e-6).fit(train.z, train.labels)
    ours = predict(fit_logistic(train.z, train.labels, cost, 10), test.z)
    ours -= ours.mean(axis=1, keepdims=True)
    theirs = reference.decision_function(test.z)
    theirs -= theirs.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.005 * np.abs(theirs).max())
    assert (ours.argmax(axis=1) == reference.predict(test.z)).mean() >= 0.997


def test_regularisation_is_chosen_on_validation_and_never_on_test(digits):
    train, validation, test = digits
    cost, tried = choose_cost(train, validation, 10)
    assert len(tried) <= 7 + 8
    assert tried[cost] == max(tried.values())
    result = linear_probe(train, validation, test, 10)
    shuffled = test._replace(labels=np.roll(test.labels, 1))
    other = linear_probe(train, validation, shuffled, 10).details
    for chosen in ("regularisation", "validation_accuracy"):
        assert other[chosen] == result.details[chosen]
    both = [np.concatenate(parts) for parts in zip(train, validation, strict=True)]
    reference = LogisticRegression(C=cost, max_iter=20_000, tol=1e-9).fit(*both)
    expected = reference.score(test.z, test.labels)
    assert result.scores["top1"].value == pytest.approx(expected, abs=0.003)
    assert result.details["train_examples"] == 450
    theirs = reference.predict_proba(test.z).max(axis=1)
    np.testing.assert_allclose(result.arrays["confidence"], theirs, rtol=0, atol=0.02)
    hits = result.arrays["ranking"][:, 0] == test.labels
    error = expected_calibration_error(result.arrays["confidence"], hits)
    assert result.details["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert len(result.details["reliability_diagram"]) == 15


def test_more_shots_and_neighbours(digits):
    train, validation, test = digits
    result = few_shot(train, validation, test, 10)
    means = [score.value for score in result.scores.values()]
    assert len(means) == 5
    assert means == sorted(means)
    assert result.scores["top1_1_shot"].low < result.scores["top1_1_shot"].high
    neighbours = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(train.z, train.labels)
    expected = (neighbours.predict(test.z) == test.labels).mean()
    result = nearest_neighbours(train, test, 10)
    assert result.scores["top1"].value == pytest.approx(expected)
    shares = neighbours.predict_proba(test.z).max(axis=1)
    np.testing.assert_allclose(result.arrays["confidence"], shares, rtol=0, atol=1e-4)
    assert 0 < result.details["calibration_error"] < 1
