"""What a classifier takes images for, some at a time."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.zero_shot import classifier as module
from flaxclip.zero_shot.classifier import class_similarities, guess_classes

CLASSES, DISTRACTORS = 6, 3


@pytest.fixture(params=[1000, 4, 1])
def images_at_once(request, monkeypatch):
    monkeypatch.setattr(module, "_IMAGES_AT_ONCE", request.param)


@pytest.mark.parametrize("images", [0, 1, 8, 10])
def test_blocks_of_images_find_what_a_softmax_of_all_cosines_finds(images_at_once, images):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(images + CLASSES + DISTRACTORS, 16)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    zimg, classifier = z[:images], z[images:]
    classifier[3] = classifier[1]  # of equals the first is better
    on_device = jnp.asarray(classifier)
    cosines = zimg.astype(float) @ classifier.T.astype(float)
    among = cosines[:, :CLASSES]

    guesses = guess_classes(zimg, on_device, CLASSES, scale=20.0)

    odds = np.exp(20 * among)
    np.testing.assert_array_equal(guesses.ranking, np.argsort(-among, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(guesses.confidence, odds.max(axis=1) / odds.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(guesses.lead, among[:, -1] - among[:, 0], atol=1e-6)
    np.testing.assert_array_equal(guesses.among_all, cosines.argmax(axis=1))
    np.testing.assert_allclose(class_similarities(zimg, on_device), cosines, atol=1e-6)


def test_fewer_than_five_classes_are_all_ranked():
    guesses = guess_classes(np.eye(2, dtype=np.float32), jnp.eye(2), 2, 1.0)
    np.testing.assert_array_equal(guesses.ranking, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(guesses.lead, [-1, 1])
