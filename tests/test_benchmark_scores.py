import pathlib
import types

import numpy as np
import pytest
from sklearn import metrics

from flaxclip.benchmark.datasets import Captioned, Labelled
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.intervals import with_interval
from flaxclip.benchmark.kept_embeddings import Embedded
from flaxclip.benchmark.methods.retrieval import count_rivals, retrieve_task
from flaxclip.benchmark.methods.zero_shot import classify_task, level_hits
from flaxclip.benchmark.prompts import Wording
from flaxclip.benchmark.readers.own import PairImages
from flaxclip.benchmark.report.exports import CLIP_BENCHMARK_SCORES
from flaxclip.benchmark.scores import (
    confusion_matrix,
    expected_calibration_error,
    f1_macro,
    fpr_at_recall,
    hits_at_k,
    mean_average_precision,
    mean_of,
    mean_per_class,
    per_class_table,
    reliability_diagram,
    roc_auc,
    worst_group,
)
from flaxclip.benchmark.tasks import Task
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.errors import InputError

RNG = np.random.default_rng(0)
LABELS = RNG.integers(4, size=200)
SIMILAR = RNG.normal(size=(200, 4)) + 0.8 * np.eye(4)[LABELS]
GUESSES = SIMILAR.argmax(axis=1)
ONES = np.ones(200, int)


def test_scores_against_counting_by_hand():
    labels = np.array([0, 0, 0, 1])
    ranking = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]])
    assert hits_at_k(ranking, labels, 1).tolist() == [True, False, False, True]
    assert hits_at_k(ranking, labels, 2).tolist() == [True, True, False, True]
    hits, ones = hits_at_k(ranking, labels, 1), np.ones(4, int)
    assert mean_of(hits)(ones) == 2 / 4
    assert mean_per_class(hits, labels)(ones) == (1 / 3 + 1) / 2
    assert worst_group(hits, np.array([5, 5, 9, 9]))(ones) == 1 / 2
    assert worst_group(hits, np.array([5, 9, 9, 5]))(ones) == 0


def test_scores_agree_with_scikit_learn():
    assert mean_per_class(GUESSES == LABELS, LABELS)(ONES) == pytest.approx(
        metrics.balanced_accuracy_score(LABELS, GUESSES)
    )
    expected = metrics.f1_score(LABELS, GUESSES, average="macro")
    assert f1_macro(GUESSES, LABELS)(ONES) == pytest.approx(expected)
    positive = np.round(SIMILAR[:, 1], 1)  # with ties
    expected = metrics.roc_auc_score(LABELS == 1, positive)
    assert roc_auc(positive, (LABELS == 1).astype(int))(ONES) == pytest.approx(expected)
    present = np.eye(4, dtype=bool)[LABELS] | (RNG.random((200, 4)) < 0.2)
    expected = metrics.average_precision_score(present, SIMILAR, average="macro")
    assert mean_average_precision(SIMILAR, present)(ONES) == pytest.approx(expected)
    expected = metrics.confusion_matrix(LABELS, GUESSES)
    np.testing.assert_array_equal(confusion_matrix(GUESSES, LABELS, 4), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: mean_per_class(GUESSES[rows] == LABELS[rows], LABELS[rows]),
        lambda rows: f1_macro(GUESSES[rows], LABELS[rows]),
        lambda rows: roc_auc(SIMILAR[rows, 1], (LABELS[rows] == 1).astype(int)),
        lambda rows: worst_group(GUESSES[rows] == LABELS[rows], LABELS[rows] % 2),
        lambda rows: mean_average_precision(SIMILAR[rows], np.eye(4, dtype=bool)[LABELS[rows]]),
    ],
)
def test_a_weight_of_two_is_the_example_twice(make):
    drawn = RNG.integers(200, size=200)
    weights = np.bincount(drawn, minlength=200)
    assert make(np.arange(200))(weights) == pytest.approx(make(drawn)(ONES))


def test_classes_that_a_sample_does_not_draw_do_not_lower_it():
    """Of 12 classes with one or two images each, a bootstrap sample misses a third."""
    present = np.eye(12, dtype=bool)[np.arange(20) % 12]
    found = present + 0.0  # every image of a class before all others
    score = with_interval(mean_average_precision(found, present), 20, 0.1)
    assert (score.value, score.low, score.high) == (1, 1, 1)
    unknown = np.hstack([present, np.zeros((20, 4), bool)])
    statistic = mean_average_precision(np.hstack([found, np.zeros((20, 4))]), unknown)
    assert statistic(np.ones(20, int)) == 12 / 16  # as in CLIP_benchmark
    score = with_interval(statistic, 20, 0.1)
    assert (score.low, score.high) == (12 / 16, 12 / 16)


def test_what_two_classes_do_not_tell_apart_is_undefined_where_one_is_missing():
    positive, labels = np.array([0.9, 0.8, 0.1]), np.array([1, 1, 0])
    for measure, value in ((roc_auc, 1), (fpr_at_recall, 0)):
        statistic = measure(positive, labels)
        assert statistic(np.ones(3, int)) == value
        assert np.isnan(statistic(np.array([2, 1, 0])))
        assert np.isnan(statistic(np.array([0, 0, 3])))
        # 8 of 27 samples draw the first two alone, 1 of 27 the last.
        score = with_interval(statistic, 3, 0.5)
        assert (score.low, score.high) == (value, value)


def test_an_interval_of_accuracy_is_that_of_the_binomial():
    hits = np.arange(400) < 300
    score = with_interval(mean_of(hits), 400, 0.1)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert score.value == 0.75
    assert score.low == pytest.approx(0.75 - half, abs=0.006)
    assert score.high == pytest.approx(0.75 + half, abs=0.006)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    confidence = np.repeat([0.3, 0.9], 100)
    hits = np.concatenate([np.arange(100) < 50, np.arange(100) < 90])
    assert expected_calibration_error(confidence, hits) == pytest.approx(0.1)


def test_a_reliability_diagram_has_the_bins_of_the_paper():
    """Guo et al. 2017: above (m - 1) / M, up to m / M; the error is their gaps by their sizes."""
    rng = np.random.default_rng(3)
    confidence = rng.random(500)
    confidence[:3] = 1 / 15, 14 / 15, 1.0
    hits = rng.random(500) < confidence**2
    rows, expected = reliability_diagram(confidence, hits), 0
    assert len(rows) == 15
    assert sum(row["examples"] for row in rows) == 500
    for number, row in enumerate(rows):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        assert row["examples"] == inside.sum()
        assert row["accuracy"] == pytest.approx(hits[inside].mean())
        assert row["confidence"] == pytest.approx(confidence[inside].mean())
        expected += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, hits) == pytest.approx(expected)
    (empty, *_) = reliability_diagram(np.array([0.5]), np.array([True]))
    assert empty == {
        "above": 0.0, "up_to": 1 / 15, "examples": 0, "confidence": None, "accuracy": None
    }  # fmt: skip


def test_a_class_without_examples_has_no_recall():
    table = per_class_table(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    assert table[0] == {"examples": 1, "recall": 1.0, "precision": 0.5}
    assert table[2] == {"examples": 0, "recall": None, "precision": None}


def test_names_with_parents_are_scored_on_every_level():
    names = ("animal > bird > owl", "animal > mammal > dog", "animal > mammal > cat", "thing > cup")
    labels, guesses = np.array([0, 1, 2, 3]), np.array([1, 2, 2, 3])
    found = level_hits(guesses, labels, names)
    assert [found[f"top1_level_{level}"][0].mean() for level in (1, 2)] == [1, 3 / 4]
    assert found["top1_level_1"][1] == pytest.approx((3 * 3 / 4 + 1 / 4) / 4)
    assert found["top1_level_2"][1] == pytest.approx((1 + 2 + 2 + 1) / 4 / 4)
    assert level_hits(guesses, labels, ("owl", "dog", "cat", "cup")) == {}


@pytest.mark.parametrize("block", [(1024, 16384), (7, 11)])
def test_retrieval_in_blocks_is_exact(block, monkeypatch):
    monkeypatch.setattr("flaxclip.benchmark.methods.retrieval.QUERIES_AT_ONCE", block[0])
    monkeypatch.setattr("flaxclip.benchmark.methods.retrieval.CANDIDATES_AT_ONCE", block[1])
    rng = np.random.default_rng(1)
    queries, candidates = rng.normal(size=(30, 8)), rng.normal(size=(47, 8))
    queries, candidates = queries.astype(np.float32), candidates.astype(np.float32)
    partners = [rng.choice(47, size=1 + i % 3, replace=False) for i in range(30)]
    pairs = np.array([(i, c) for i, row in enumerate(partners) for c in row])
    rivals = count_rivals(queries, candidates, rng.permutation(pairs))
    for i, row in enumerate(partners):
        similar = queries[i] @ candidates.T
        others = np.delete(similar, row)
        assert rivals[i] == (others >= similar[row].max()).sum()


def test_a_model_that_finds_all_alike_recalls_nothing():
    same = np.ones((12, 4), np.float32) / 2
    pairs = np.stack([np.arange(12)] * 2, axis=1)
    assert (count_rivals(same, same, pairs) == 11).all()


GOLDEN = pathlib.Path(__file__).parent / "golden" / "clip_benchmark_scores.npz"


class Known(Embedder):
    """Images are rows of `zimg`, texts the numbers of rows of `ztxt`."""

    def __init__(self, zimg, ztxt):
        self.model = types.SimpleNamespace(logit_scale=100.0)
        self._zimg, self._ztxt = (
            z / np.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, ztxt)
        )

    def embed_images(self, images):
        return Embedded(self._zimg, ())

    def embed_texts(self, texts):
        return Embedded(self._ztxt[[int(text) for text in texts]], ())


def test_scores_of_the_same_embeddings_are_clip_benchmarks():
    """Its own code has made the file: `tests/parity/clip_benchmark_reference.py`."""
    with np.load(GOLDEN) as file:
        arrays = dict(file)
    theirs = {n.removeprefix("score "): float(v) for n, v in arrays.items() if "score " in n}
    images = PairImages(ScenesSource("unseen", 16), "known", len(arrays["labels"]))
    names = tuple(str(number) for number in range(12))
    prompts = {name: tuple(str(3 * int(name) + i) for i in range(3)) for name in names}
    wording = Wording(names, prompts, "", "")
    known = Known(arrays["zimg"], arrays["zprompts"])
    ours = {}
    for kind, labels in (("classification", "labels"), ("multilabel", "present")):
        task = Task("known", "", kind, "top1", ())
        ours |= classify_task(known, task, Labelled(images, arrays[labels]), wording).scores
    captions = tuple(str(number) for number in range(len(arrays["zcaptions"])))
    pairs = np.stack([arrays["caption_of"], np.arange(len(captions))], axis=1)
    known = Known(arrays["zimg"], arrays["zcaptions"])
    ours |= retrieve_task(known, Captioned(images, captions, pairs)).scores
    assert len(ours) == len(theirs) == 10
    for our_name, their_name in CLIP_BENCHMARK_SCORES.items():
        if our_name in ours:
            assert ours[our_name].value == pytest.approx(theirs[their_name], abs=1e-6), our_name


@pytest.mark.parametrize(
    ("metric", "by_hand", "chance"),
    [
        ("mean_top1_top5", lambda hits1, hits5: (hits1.mean() + hits5.mean()) / 2, 0.25),
        (
            "worst_group_top1",
            lambda hits1, hits5: min(hits1[::2].mean(), hits1[1::2].mean()),
            1 / 12,
        ),
        (
            "worst_group_top5",
            lambda hits1, hits5: min(hits5[::2].mean(), hits5[1::2].mean()),
            5 / 12,
        ),
    ],
)
def test_metrics_of_single_tasks_are_what_their_names_say(metric, by_hand, chance):
    rng = np.random.default_rng(2)
    zimg, ztxt = rng.normal(size=(60, 8)), rng.normal(size=(12, 8))
    labels = (zimg @ ztxt.T + 6 * rng.normal(size=(60, 12))).argmax(axis=1)
    known, names = Known(zimg, ztxt), tuple(map(str, range(12)))
    similarities = known._zimg @ known._ztxt.T
    better = (similarities > similarities[np.arange(60), labels][:, None]).sum(axis=1)
    expected = by_hand(better < 1, better < 5)
    assert 0.1 < expected < 0.9
    images = PairImages(ScenesSource("unseen", 16), "known", 60)
    data = Labelled(images, labels, groups=np.arange(60) % 2)
    wording = Wording(names, {name: (name,) for name in names}, "", "")
    task = Task("known", "", "classification", metric, ())
    score = classify_task(known, task, data, wording).scores[metric]
    assert score.value == pytest.approx(expected)
    assert score.chance == pytest.approx(chance)
    assert score.low < expected < score.high


def test_a_metric_of_two_classes_is_refused_for_images_of_one():
    known, names = Known(np.eye(3), np.eye(3)), ("0", "1", "2")
    images = PairImages(ScenesSource("unseen", 16), "known", 3)
    prompts = {name: (name,) for name in names}

    def score(labels, count, kind="classification"):
        task = Task("known", "", kind, "roc_auc", ())
        wording = Wording(names[:count], prompts, "", "")
        return classify_task(known, task, Labelled(images, np.array(labels)), wording).scores

    assert score([0, 1, 0], 2)["roc_auc"].value == 1
    with pytest.raises(InputError, match="two classes: 2 have names, and 1 have images"):
        score([0, 0, 0], 2)
    with pytest.raises(InputError, match="two classes: 3 have names, and 3 have images"):
        score([0, 1, 2], 3)
    with pytest.raises(InputError, match="no image has any of the classes"):
        score(np.zeros((3, 2), bool), 2, "multilabel")
    with pytest.raises(InputError, match=r"one class alone, '0': any model scores 100%"):
        score([0, 0, 0], 1)


def test_a_metric_of_groups_is_refused_for_data_without_them():
    known = Known(np.eye(2), np.eye(2))
    data = Labelled(PairImages(ScenesSource("unseen", 16), "known", 2), np.arange(2))
    task = Task("known", "", "classification", "worst_group_top1", ())
    wording = Wording(("0", "1"), {"0": ("0",), "1": ("1",)}, "", "")
    with pytest.raises(InputError, match="worst_group_top1 needs the group of each image"):
        classify_task(known, task, data, wording)
