"""Position embeddings of another size, against those that open_clip makes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.resampling import resample_positions, resize_context, resize_grid
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import VisionConfig

CONFIG = CLIPConfig(
    vision=VisionConfig(image_size=24, patch_size=8, width=16, layers=1, heads=2),
    text=TextConfig(context_length=8, vocab_size=9, width=16, layers=1, heads=2),
    embed_dim=16,
)


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "golden" / "open_clip_reference.npz") as arrays:
        return dict(arrays)


def random_params(config):
    random = np.random.default_rng(0)
    shapes = abstract_variables(config)["params"]
    return jax.tree.map(lambda s: random.standard_normal(s.shape).astype(s.dtype), shapes)


@pytest.mark.parametrize(("old", "new"), [(3, 5), (7, 4), (4, 12)])
def test_a_grid_is_resized_as_open_clip_does(reference, old, new):
    key = f"grid/{old}/{new}"
    actual = resize_grid(reference[f"{key}/from"], old, new)
    np.testing.assert_allclose(actual, reference[f"{key}/to"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(7, 13), (13, 7), (16, 64)])
def test_a_context_is_resized_as_open_clip_does(reference, old, new):
    key = f"context/{old}/{new}"
    actual = resize_context(reference[f"{key}/from"], new)
    np.testing.assert_allclose(actual, reference[f"{key}/to"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "vision",
    [
        CONFIG.vision,
        dataclasses.replace(CONFIG.vision, pool="map"),
        ResNetConfig(image_size=96, width=2, layers=(1, 1, 1, 1)),
    ],
    ids=["class", "map", "resnet"],
)
def test_parameters_fit_the_new_configuration_and_only_positions_differ(vision):
    old = dataclasses.replace(CONFIG, vision=vision)
    new = dataclasses.replace(
        old,
        vision=dataclasses.replace(vision, image_size=2 * vision.image_size),
        text=dataclasses.replace(old.text, context_length=12),
    )
    params = random_params(old)
    resampled = resample_positions(params, old, new)
    expected = abstract_variables(new)["params"]
    assert jax.tree.map(np.shape, resampled) == jax.tree.map(np.shape, expected)

    def without_positions(tree):
        return {
            **{tower: tree[tower] | {"position_embedding": None} for tower in ("vision", "text")},
            "logit_scale": tree["logit_scale"],
        }

    jax.tree.map(
        np.testing.assert_array_equal, without_positions(resampled), without_positions(params)
    )


def test_another_architecture_is_refused_with_the_field():
    wider = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, width=32))
    params = random_params(CONFIG)
    with pytest.raises(InputError, match=r"text.width: 16 in the weights, 32 asked for"):
        resample_positions(params, CONFIG, wider)
