"""Position embeddings of another size, against those that open_clip makes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.run.initial_weights import resample_position_embedding, resize_context, resize_grid

CONFIG = CLIPConfig(
    vision=ViTConfig(image_size=24, patch_size=8, width=16, layers=1, heads=2),
    text=TextConfig(context_length=8, vocab_size=9, width=16, layers=1, heads=2),
    embed_dim=16,
)


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "golden" / "open_clip_reference.npz") as arrays:
        return dict(arrays)


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
        dataclasses.replace(CONFIG.vision, family="siglip"),
        ResNetConfig(image_size=96, width=2, layers=(1, 1, 1, 1)),
    ],
    ids=["clip", "siglip", "resnet"],
)
def test_parameters_fit_the_new_configuration_and_only_positions_differ(vision):
    old = dataclasses.replace(CONFIG, vision=vision)
    new = dataclasses.replace(
        old,
        vision=dataclasses.replace(vision, image_size=2 * vision.image_size),
        text=dataclasses.replace(old.text, context_length=12),
    )
    random = np.random.default_rng(0)
    expected = flatten_dict(abstract_variables(new)["params"], sep="/")
    for name, leaf in flatten_dict(abstract_variables(old)["params"], sep="/").items():
        value = random.standard_normal(leaf.shape).astype(leaf.dtype)
        resampled = resample_position_embedding(name, value, old, new)
        assert resampled.shape == expected[name].shape, name
        assert (resampled is value) == (not name.endswith("position_embedding")), name
