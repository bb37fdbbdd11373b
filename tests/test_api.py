import weakref

import jax
import numpy as np
import PIL.Image
import pytest

import flaxclip
from flaxclip import api
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.methods.zero_shot import task_classifier
from flaxclip.benchmark.own_images import own_task
from flaxclip.benchmark.readers.own import read_scenes
from flaxclip.benchmark.tasks import DataSource, all_tasks
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.errors import InputError
from flaxclip.zero_shot.class_prompts import DEFAULT_TEMPLATES
from flaxclip.zero_shot.classifier import build_zero_shot_classifier, class_similarities
from tests.helpers.image_tars import png


@pytest.fixture(scope="module")
def model(finished_run):
    return flaxclip.load(finished_run)


@pytest.fixture(scope="module")
def images():
    scenes = ScenesSource("seen", 40)
    return [PIL.Image.fromarray(scenes[i].image) for i in range(21)]


def test_any_number_of_images_and_texts_is_encoded_in_order(model, images):
    texts = [f"{color} {shape}" for color in ("red", "blue", "green") for shape in "abcdefg"]
    zimg, ztxt = (
        np.concatenate([encode([item], batch_size=1) for item in items])
        for encode, items in ((model.encode_image, images), (model.encode_text, texts))
    )
    for count in (0, 1, 7, 8, 9, 21):
        found = model.encode_image(images[:count], batch_size=8)
        assert isinstance(found, jax.Array)
        np.testing.assert_allclose(found, zimg[:count], rtol=0, atol=1e-6)
        found = model.encode_text(texts[:count], batch_size=8)
        np.testing.assert_allclose(found, ztxt[:count], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(
        model.encode_image(model.preprocess(images)), model.encode_image(iter(images))
    )


def test_lists_of_all_lengths_share_one_compilation(model, images):
    for encode in (api.encode_image, api.encode_text):
        encode.clear_cache()  # other tests may have had batches of this size
    for count in (1, 4, 5, 6, 13):
        model.encode_image(images[:count], batch_size=5)
        model.encode_text(["a star"] * count, batch_size=5)
    assert (api.encode_image._cache_size(), api.encode_text._cache_size()) == (1, 1)


def test_a_thousand_images_are_never_in_memory_together(model):
    alive = most = 0

    def freed():
        nonlocal alive
        alive -= 1

    def draw():
        nonlocal alive, most
        for number in range(1000):
            image = PIL.Image.new("RGB", (20, 16), (number % 256, 0, 0))
            weakref.finalize(image, freed)
            alive += 1
            most = max(most, alive)
            yield image

    zimg = model.encode_image(draw(), batch_size=50)
    assert zimg.shape == (1000, 16)
    assert most <= 2 * 50 + 1
    # The same shade comes again 256 images later, in another row of its batch.
    np.testing.assert_allclose(zimg[:744], zimg[256:], rtol=0, atol=1e-6)


def test_prompts_in_a_notebook_give_the_benchmarks_logits(model, tmp_path):
    names = ("red circle", ("blue star", "navy star"), "green heart")
    templates = ("a {}", "the {} there", "a drawing of a {}")
    task, source = all_tasks()["scenes-unseen"], DataSource("scenes", "unseen", train=None)
    shown = read_scenes(task, source, "test", tmp_path, 16).images
    embedder = Embedder(model, 64, tmp_path)
    classifier, _ = task_classifier(embedder, names, templates)
    theirs = model.logit_scale * class_similarities(embedder.embed_images(shown).z, classifier)

    images = [shown[index] for index in range(len(shown))]
    classifier = build_zero_shot_classifier(model.encode_text, names, templates)
    logits = model.logit_scale * class_similarities(model.encode_image(images), classifier)
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=2e-6 * model.logit_scale)
    odds = np.exp(theirs)
    probabilities = model.classify(images, names, templates)
    np.testing.assert_allclose(
        probabilities, odds / odds.sum(axis=1, keepdims=True), rtol=0, atol=1e-5
    )


def test_a_single_template_may_stand_alone(model, images):
    names = ["red star", "blue star"]
    np.testing.assert_array_equal(
        model.classify(images, names, "a {}"), model.classify(images, names, ["a {}"])
    )
    np.testing.assert_array_equal(
        model.classify(images, names), model.classify(images, names, DEFAULT_TEMPLATES)
    )
    assert model.classify([], names).shape == (0, 2)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["a", "b"], ["x"], r"template 'x' has no \{\}"),
        (["a", "b", "a"], ["{}"], "two classes are named 'a'"),
        ([["a", "c"], "b", ["a", "c"]], ["{}"], "two classes are named"),
        ([], ["{}"], "no class names"),
        (["a"], [], "no templates"),
        (["a", ""], ["{}"], "class 1 has no name"),
        (["a", ()], ["{}"], "class 1 has no name"),
        (["a", "b"], {"a": ["an a"], "b": []}, "class 'b' has an empty list of prompts"),
        ("cat", ["{}"], "one string, 'cat'"),
    ],
)
def test_classes_that_cannot_be_asked_for_are_refused(model, names, templates, message):
    with pytest.raises(InputError, match=message):
        build_zero_shot_classifier(model.encode_text, names, templates)


def test_a_batch_must_have_a_row_and_texts_be_a_list(model, images):
    with pytest.raises(InputError, match="batch size is 0"):
        model.encode_image(images, batch_size=0)
    with pytest.raises(InputError, match="got one string, 'a cat'"):
        model.encode_text("a cat")


def test_folders_that_come_to_one_name_are_refused_at_once(tmp_path):
    for folder in ("sea_lion", "sea lion"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(png(0))
    with pytest.raises(InputError, match="two classes are named 'sea lion'"):
        own_task(tmp_path, ())
