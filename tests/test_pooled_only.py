"""For inference, the last block computes the position that is pooled, and no other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.flops import count_flops
from flaxclip.models import text_families, vision_families
from flaxclip.models.clip import CLIP, CLIPConfig, init_variables
from flaxclip.models.patches import ImagePatches
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.trunks.vit_family import RotaryGrid
from flaxclip.models.vision_transformer import ViTConfig

TEXT = TextConfig(context_length=12, vocab_size=90, width=32, layers=2, heads=2)
VISION = ViTConfig(image_size=16, patch_size=4, width=32, layers=2, heads=2)
# Families with blocks of their own, or that pool all positions, compute all of them.
POOL_A_TOKEN = {"clip", "vit", "mobileclip_vit"}
READ_A_TOKEN = {"clip", "siglip", "siglip_i18n", "mobileclip", "clipa", "bert", "nllb"}


def model_of(vision=VISION, text=TEXT):
    config = CLIPConfig(vision, text, embed_dim=32)
    variables = init_variables(jax.random.key(0), config)
    # Of a size at which each position, and each bias, changes what comes out.
    rng = np.random.default_rng(0)
    return CLIP(config), jax.tree.map(
        lambda leaf: leaf + 0.2 * jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32),
        variables,
    )


def compare(model, variables, method, inputs):
    """The two ways agree; FLOPs that the shorter one takes, and the other one."""
    ways = [
        functools.partial(model.apply, variables, inputs, pooled_only=only, method=method)
        for only in (True, False)
    ]
    short, whole = (np.asarray(jax.jit(way)()) for way in ways)
    np.testing.assert_allclose(short, whole, rtol=0, atol=1e-6)
    # Each input has an embedding of its own: equal ones would be those of any position.
    assert min(np.linalg.norm(whole - np.roll(whole, 1, axis=0), axis=1)) > 0.02
    return [count_flops(jax.make_jaxpr(way)()) for way in ways]


@pytest.mark.parametrize("family", vision_families.FAMILIES)
def test_an_image_tower_of_each_family(family):
    vision = dataclasses.replace(VISION, family=family)
    model, variables = model_of(vision)
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8))
    short, whole = compare(model, variables, "encode_image", images)
    assert (short < whole) == (family in POOL_A_TOKEN)


@pytest.mark.parametrize("family", text_families.FAMILIES)
def test_a_text_tower_of_each_family(family):
    text = dataclasses.replace(TEXT, family=family)
    model, variables = model_of(text=text)
    rng = np.random.default_rng(1)
    tokens = np.full((3, 12), text.traits.padding)
    for row, length in zip(tokens, (3, 7, 11), strict=True):
        row[:length] = rng.integers(2, 80, length)
        row[length] = 89
    short, whole = compare(model, variables, "encode_text", jnp.asarray(tokens, jnp.int32))
    assert (short < whole) == (family in READ_A_TOKEN)


@pytest.mark.parametrize("layers", [1, 3])
def test_any_number_of_layers_with_positions_that_turn(layers, monkeypatch):
    turning = dataclasses.replace(
        vision_families.FAMILIES["clip"], rotary=RotaryGrid(column_first=True)
    )
    monkeypatch.setitem(vision_families.FAMILIES, "clip", turning)
    model, variables = model_of(dataclasses.replace(VISION, layers=layers))
    images = jnp.asarray(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8))
    short, whole = compare(model, variables, "encode_image", images)
    assert short < whole


def test_images_at_their_own_aspect_ratio():
    model, variables = model_of()
    patches = np.random.default_rng(1).integers(0, 256, (3, 12, 48), np.uint8)
    images = ImagePatches(jnp.asarray(patches), jnp.array([[3, 4], [1, 7], [2, 2]]))
    short, whole = compare(model, variables, "encode_image", images)
    assert short < whole
