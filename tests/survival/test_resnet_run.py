"""A ResNet through a whole run: running statistics are saved, resumed and measured with."""

import dataclasses
import shutil

import jax
import numpy as np

from flaxclip.api import load
from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.models.clip import abstract_variables
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.train import train
from tests.helpers.tiny_run import TINY_MODEL, tiny_config

MODEL = dataclasses.replace(TINY_MODEL, vision=ResNetConfig(32, 4, (1, 2, 1, 1)))


def test_a_resumed_resnet_equals_one_that_never_stopped_statistics_included(tmp_path):
    config = tiny_config(
        tmp_path / "straight", model=MODEL, steps=4, checkpoint=CheckpointConfig(every_steps=3)
    )
    with jax.default_prng_impl("rbg"):  # compiles sooner than the default generator
        train(config)
    resumed = tmp_path / "resumed"
    shutil.copytree(config.workdir, resumed)
    shutil.rmtree(resumed / "checkpoints" / "4")
    train(dataclasses.replace(config, workdir=str(resumed)))
    model = load(resumed)
    jax.tree.map(np.testing.assert_array_equal, model.variables, load(config.workdir).variables)

    statistics = model.variables["batch_stats"]
    expected = abstract_variables(MODEL)["batch_stats"]
    assert jax.tree.map(np.shape, statistics) == jax.tree.map(np.shape, expected)
    first = statistics["vision"]["stem"]["conv1"]["bn"]
    assert abs(first["mean"]).min() > 0
    assert abs(first["var"] - 1).min() > 0
    # Measured with running statistics: an image's embedding does not depend on its neighbours.
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    zimg = model.encode_image(images)
    images[1:] = 0
    np.testing.assert_array_equal(model.encode_image(images)[0], zimg[0])
