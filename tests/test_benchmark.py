import json

import jax
import numpy as np
import PIL.Image
import pytest

import flaxclip
from flaxclip.benchmark.datasets import Scenes, image_batches
from flaxclip.benchmark.scores import mean_per_class_accuracy, recall_at_k, top_k_accuracy
from flaxclip.benchmark.zero_shot import build_zero_shot_classifier, embed_images
from flaxclip.data.scenes import ScenesSource
from flaxclip.data.transforms import ImageTransform
from flaxclip.errors import InputError
from tests.test_loader import jpeg, write_shard
from tests.test_train import finished_run, run_cli  # noqa: F401  (a session's fixture)


@pytest.fixture(scope="module")
def model(finished_run):  # noqa: F811
    return flaxclip.load(finished_run)


def test_scores_against_counting_by_hand():
    labels = np.array([0, 0, 0, 1])
    ranking = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]])
    assert top_k_accuracy(ranking, labels, 1) == 2 / 4
    assert top_k_accuracy(ranking, labels, 2) == 3 / 4
    assert mean_per_class_accuracy(ranking[:, 0], labels) == (1 / 3 + 1) / 2
    similarities = np.array([[3.0, 2, 1], [3, 2, 1], [3, 2, 1]])
    assert recall_at_k(similarities, np.eye(3, dtype=bool), 1) == 1 / 3
    assert recall_at_k(similarities, np.eye(3, dtype=bool), 2) == 2 / 3
    several = np.array([[False, True, True]] * 3)
    assert recall_at_k(similarities, several, 2) == 1


def test_a_model_that_finds_all_alike_recalls_nothing():
    assert recall_at_k(np.ones((5, 5)), np.eye(5, dtype=bool), 1) == 0


@pytest.mark.parametrize("batch_size", [7, 960, 1000])
def test_every_image_counts_once_whatever_the_batch(batch_size):
    images = Scenes("unseen", 16)
    batches = list(image_batches(images, ImageTransform(16), batch_size))
    assert {batch.images.shape for batch in batches} == {(batch_size, 16, 16, 3)}
    seen = np.concatenate([batch.images[batch.is_real] for batch in batches])
    expected = np.stack([images[index] for index in range(len(images))])
    assert np.array_equal(seen, expected)


def test_embeddings_do_not_depend_on_batch_or_devices(model):
    images = Scenes("unseen", 16)
    all_devices = embed_images(model, images, 100)
    one_by_one = np.concatenate([model.encode_image([images[i]]) for i in range(8)])
    assert all_devices.zimg.shape == (960, 16)
    np.testing.assert_allclose(all_devices.zimg[:8], one_by_one, atol=1e-6)


def test_an_unreadable_picture_stays_in_the_denominator(model):
    class Broken(Scenes):
        def __getitem__(self, index):
            return b"broken" if index == 3 else super().__getitem__(index)

    embedded = embed_images(model, Broken("unseen", 16), 64)
    assert len(embedded.zimg) == 960
    assert len(embedded.unreadable) == 1
    assert embedded.unreadable[0].startswith("scenes/unseen/3: ")


def test_a_class_is_the_renormalised_mean_of_its_prompts(model):
    templates, names = ("a {}", "the {} there"), ("red star", "blue ring")
    classifier = build_zero_shot_classifier(model.encode_text, names, templates)
    for row, name in zip(np.asarray(classifier), names, strict=True):
        mean = np.mean([model.encode_text([t.format(name)])[0] for t in templates], axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [(("a", "a"), ("{}",), "two classes are named 'a'"), (("a", "b"), ("x",), "has no {}")],
)
def test_prompts_that_cannot_tell_classes_apart_are_refused(model, names, templates, message):
    with pytest.raises(InputError, match=message):
        build_zero_shot_classifier(model.encode_text, names, templates)


def test_the_notebook_face(model):
    pictures = [PIL.Image.fromarray(ScenesSource("seen", 40)[i].image) for i in range(3)]
    zimg = model.encode_image(pictures)
    np.testing.assert_allclose(np.linalg.norm(zimg, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(zimg, model.encode_image(model.preprocess(pictures)))
    probabilities = model.classify(pictures, ["red circle", "blue star"])
    assert probabilities.shape == (3, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert model.tokenize(["a cat"]).shape == (1, 20)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(model.params))
    assert "ViT-B-32" in flaxclip.available_models()


def test_the_command_line_measures_the_tasks_of_the_training_data(finished_run, tmp_path):  # noqa: F811
    result = run_cli("flaxclip.benchmark", str(finished_run), "--out", "results", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for task in ("scenes-seen", "scenes-unseen", "scenes-shift"):
        assert task in result.stdout
        record = json.loads((tmp_path / "results" / f"{task}.json").read_text())
        assert record["checkpoint"]["step"] == 8
        assert 0 <= record["scores"]["top1"]["value"] <= record["scores"]["top5"]["value"] <= 1
        assert record["scores"]["top1"]["chance"] == 1 / len(record["class_names"])
        for picture in ("predictions", "similarities"):
            assert PIL.Image.open(tmp_path / "results" / f"{task}-{picture}.png").width > 300


def test_retrieval_of_pairs_of_ones_own(finished_run, tmp_path):  # noqa: F811
    pairs = {f"{i:02}": (jpeg(i * 10), f"a picture of shade {i}") for i in range(20)}
    write_shard(tmp_path / "mine.tar", pairs)
    result = run_cli(
        "flaxclip.benchmark", str(finished_run / "checkpoints" / "4"),
        "--tasks", "retrieval:mine.tar", "--out", "results", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "results" / "retrieval.json").read_text())
    assert record["examples"] == 20
    assert record["checkpoint"]["step"] == 4
    assert record["scores"]["image_to_text_recall@5"]["chance"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "no checkpoint at"),
        (("RUN", "--tasks", "scenes-unsen"), "unknown task 'scenes-unsen'"),
        (("RUN/checkpoints/5",), "has no checkpoint of step 5"),
        (("RUN", "--out", "file/results"), "cannot write results"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(finished_run, tmp_path, arguments, message):  # noqa: F811
    (tmp_path / "file").touch()
    arguments = [argument.replace("RUN", str(finished_run)) for argument in arguments]
    result = run_cli("flaxclip.benchmark", *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
