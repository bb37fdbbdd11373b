"""Images at their own aspect ratio: what the tower makes of patches, grids and padding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from flaxclip.errors import InputError
from flaxclip.models.clip import CLIP, CLIPConfig, init_variables
from flaxclip.models.patches import ImagePatches, resample_positions
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.trunks.registry import VIT_FAMILIES
from flaxclip.models.vision_transformer import ViTConfig

GRIDS = [(4, 4), (2, 7), (1, 16), (16, 1), (3, 5), (1, 1)]
TEXT = TextConfig(context_length=8, vocab_size=50, width=16, layers=1, heads=2)


def make_config(family: str) -> CLIPConfig:
    vision = ViTConfig(image_size=16, patch_size=4, width=32, layers=2, heads=2, family=family)
    return CLIPConfig(vision, TEXT, embed_dim=32)


def random_patches(length: int, padding: int = 0) -> ImagePatches:
    """Patches that depend on their place alone, whatever `length` is; padding holds `padding`."""
    rng = np.random.default_rng(1)
    patches = np.full((len(GRIDS), length, 48), padding, np.uint8)
    for row, (rows, columns) in enumerate(GRIDS):
        patches[row, : rows * columns] = rng.integers(0, 256, (rows * columns, 48))
    return ImagePatches(jnp.asarray(patches), jnp.asarray(GRIDS, jnp.int32))


def encode(config: CLIPConfig, variables, images) -> np.ndarray:
    return np.asarray(
        jax.jit(lambda v, x: CLIP(config).apply(v, x, method="encode_image"))(variables, images)
    )


@pytest.fixture(scope="module", params=["siglip", "clip", "vit"])
def model(request):
    config = make_config(request.param)
    return config, init_variables(jax.random.key(3), config)


def test_a_square_of_the_learned_grid_is_seen_as_pixels_are(model):
    config, variables = model
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    patches = rearrange(pixels, "b (h p) (w q) c -> b (h w) (p q c)", p=4, q=4)
    images = ImagePatches(jnp.asarray(patches), jnp.full((2, 2), 4, jnp.int32))
    np.testing.assert_allclose(
        encode(config, variables, images),
        encode(config, variables, jnp.asarray(pixels)),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("padding", [0, 255])
def test_padding_changes_nothing(model, padding):
    config, variables = model
    short, long = random_patches(16), random_patches(24, padding)
    np.testing.assert_allclose(
        encode(config, variables, long), encode(config, variables, short), rtol=0, atol=1e-6
    )


def test_no_gradient_reaches_padding_and_one_reaches_every_patch(model):
    config, variables = model
    images = random_patches(20)

    def first_component(patches):
        vision = CLIP(config).bind(variables).vision
        return vision(patches, grid=images.grid)[:, 0].sum()

    pixels = images.patches.astype(jnp.float32) / 255
    by_patch = np.abs(jax.jit(jax.grad(first_component))(pixels)).sum(axis=-1)
    for gradient, (rows, columns) in zip(by_patch, GRIDS, strict=True):
        assert (gradient[: rows * columns] > 0).all()
        np.testing.assert_array_equal(gradient[rows * columns :], 0)


def test_parameters_have_gradients_that_do_not_depend_on_padding(model):
    config, variables = model

    def gradients(images):
        def loss(params):
            zimg = CLIP(config).apply({"params": params}, images, method="encode_image")
            return jnp.sum(zimg[:, :3] ** 2)

        return jax.jit(jax.grad(loss))(variables["params"])["vision"]

    for ours, padded in zip(
        jax.tree.leaves(gradients(random_patches(16))),
        jax.tree.leaves(gradients(random_patches(24, 255))),
        strict=True,
    ):
        np.testing.assert_allclose(padded, ours, rtol=0, atol=2e-6)


def test_positions_are_means_where_the_new_grid_divides_the_learned_one():
    # A step of two: a triangle two values wide on either side, cut off at the edge.
    learned = np.zeros((4, 4, 1), np.float32)
    learned[..., 0] = np.arange(4)[None]
    resampled = resample_positions(jnp.asarray(learned), jnp.asarray([[1, 2]], jnp.int32), 3)
    triangle = np.array([0.75, 0.75, 0.25]) / 1.75
    first = float(triangle @ [0, 1, 2])
    np.testing.assert_allclose(resampled[0, :, 0], [first, 3 - first, first], rtol=1e-6)


def test_one_program_serves_all_grids(model):
    config, variables = model
    step = jax.jit(lambda v, x: CLIP(config).apply(v, x, method="encode_image"))
    images = random_patches(16)
    step(variables, images)
    step(variables, images._replace(grid=images.grid[::-1]))
    assert step._cache_size() == 1


def test_patches_of_another_size_are_refused(model):
    config, variables = model
    images = random_patches(16)._replace(patches=jnp.zeros((len(GRIDS), 16, 75), jnp.uint8))
    with pytest.raises(InputError, match="patches have 75 values\nexpected 48: 4 x 4 pixels"):
        encode(config, variables, images)


@pytest.mark.parametrize("family", [n for n, traits in VIT_FAMILIES.items() if traits.rotary])
def test_rotary_positions_of_a_square_are_refused(family):
    vision = dataclasses.replace(make_config("siglip").vision, family=family)
    with pytest.raises(InputError, match="rotary position embeddings of a square"):
        vision.check_patches()
