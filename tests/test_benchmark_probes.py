from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from flaxclip.api import CLIPModel
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.measure import Settings, measure_tasks
from flaxclip.benchmark.methods.linear_probe import (
    Split,
    choose_cost,
    few_shot,
    fit_logistic,
    linear_probe,
    nearest_neighbours,
    predict,
    probe_task,
    set_aside,
)
from flaxclip.benchmark.prompts import choose_wording
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.results import Findings, MeasuredCheckpoint, Score
from flaxclip.benchmark.scores import expected_calibration_error
from flaxclip.benchmark.tasks import find_tasks
from flaxclip.errors import InputError
from tests.helpers.image_tars import png
from tests.helpers.known_embeddings import KnownTexts
from tests.helpers.small_models import CLIP


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
    assert result.notes == ("intervals of few-shot scores are the lowest and highest of 5 draws",)
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


def test_a_class_without_a_training_image_has_no_few_shots(digits):
    train, validation, test = digits
    seven = train.labels == 7
    without = Split(train.z[~seven], train.labels[~seven])
    with pytest.raises(InputError, match="1 of 10 classes have no training image, the first is nu"):
        few_shot(without, validation, test, 10)


def test_something_is_set_aside_of_every_training_split(digits):
    train, *_ = digits
    for count in (2, 3, 40):
        few = Split(train.z[:count], train.labels[:count])
        rest, aside = set_aside(few)
        assert len(rest.labels) + len(aside.labels) == count
        assert len(aside.labels) == max(round(0.2 * count), 1)
    with pytest.raises(InputError, match="has 1 image, and there is no validation split"):
        set_aside(Split(train.z[:1], train.labels[:1]))


def test_splits_that_number_other_classes_are_refused(tmp_path):
    """Folders are numbered by their names: one more in a split moves all labels after it."""
    for split, names in (("train", ("bee", "cat")), ("test", ("ant", "bee", "cat"))):
        for name in names:
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            (tmp_path / "pets" / split / name / "0.png").write_bytes(png(1))
    (task,) = find_tasks([f"folder:{tmp_path / 'pets'}"])
    source, data = open_test(task, tmp_path, 16)
    known = KnownTexts(3)
    known.model.transform = SimpleNamespace(size=16)
    wording = choose_wording(task, data, "openai")
    with pytest.raises(InputError, match="class 0 is 'bee' there, 'ant' here"):
        probe_task(known, task, source, data, wording, "knn", tmp_path)


def measure_few_shots(folder, monkeypatch):
    """Of two classes, one or two shots of which a stand-in has the scores."""
    scores = {f"top1_{shots}_shot": Score(shots / 4, 0.5, 0.0, 1.0) for shots in (1, 2)}
    monkeypatch.setattr("flaxclip.benchmark.measure.ask", lambda *_: Findings(scores))
    for split in ("train", "test"):
        for name in ("bee", "cat"):
            image = folder / "pets" / split / name / "0.png"
            if not image.exists():  # written anew, it would be another set
                image.parent.mkdir(parents=True)
                image.write_bytes(png(1))
    embedder = Embedder.__new__(Embedder)
    embedder.model, embedder.batch_size = CLIPModel(CLIP, {}), 8
    monkeypatch.setattr(Embedder, "checkpoint", "12")
    monkeypatch.setattr(Embedder, "compile_ahead", lambda *_: None)
    settings = Settings(folder, folder, methods=("few-shot",))
    tasks, checkpoint = find_tasks([f"folder:{folder / 'pets'}"]), MeasuredCheckpoint("a", None)
    return measure_tasks(embedder, checkpoint, tasks, settings, lambda _: None)


def test_of_few_examples_the_score_of_the_most_shots_is_quoted(tmp_path, monkeypatch):
    for is_fresh in (True, False):
        measured = measure_few_shots(tmp_path, monkeypatch)
        assert [result.metric for result in measured.results] == ["top1_2_shot"]
        assert bool(measured.fresh) == is_fresh


def test_results_that_cannot_be_written_fail_their_task_alone(tmp_path, monkeypatch):
    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flaxclip.benchmark.measure.write_result", write)
    measured = measure_few_shots(tmp_path, monkeypatch)
    assert measured.failed == {
        "pets": f"pets: cannot write results into {tmp_path}: No space left on device\n"
        "make room, or name another folder with --out"
    }
