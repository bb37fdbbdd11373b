"""Images at their own aspect ratio: their sizes, and their pixels as patches."""

import io
import math

import numpy as np
import PIL.Image
import pytest

from flaxclip.data.images.eval_transform import NativeTransform, preprocess
from flaxclip.data.images.native_size import cut_into_patches, native_grid
from flaxclip.data.images.train_transform import (
    AugmentConfig,
    choose_crop,
    render_crop,
    transform_for_training,
)
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.models.inputs import ImageTransform

NATIVE = ImageTransform("native", "bilinear", transparency="white")


@pytest.mark.parametrize(
    ("size", "max_patches", "grid"),
    [
        ((256, 256), 256, (16, 16)),
        ((480, 640), 256, (14, 18)),
        ((480, 640), 576, (21, 27)),
        ((1, 5000), 256, (1, 256)),
        ((5000, 1), 256, (256, 1)),
        ((1, 1), 256, (7, 7)),  # no more than a hundred times as large
        ((3, 40), 1, (1, 1)),
    ],
)
def test_grids_are_those_of_transformers(size, max_patches, grid):
    assert native_grid(*size, 16, max_patches) == grid


def test_the_grid_is_the_largest_that_fits():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 3000, (500, 2)).tolist():
        rows, columns = native_grid(height, width, 16, 256)
        assert rows * columns <= 256
        # A little more of either side, and there would be too many.
        scale = 1.0001 * min(rows * 16 / height, columns * 16 / width) + 1e-4
        larger = math.prod(math.ceil(side * scale / 16) for side in (height, width))
        assert larger > 256


def test_grids_are_those_of_a_bisection_that_counts_at_every_step():
    def counted(height, width, patch, most):
        fits, too_large = 1e-6, 100.0
        while too_large - fits >= 1e-5:
            scale = (fits + too_large) / 2
            grid = [max(1, math.ceil(side * scale / patch)) for side in (height, width)]
            fits, too_large = (scale, too_large) if math.prod(grid) <= most else (fits, scale)
        return tuple(max(1, math.ceil(side * fits / patch)) for side in (height, width))

    rng = np.random.default_rng(3)
    sizes = [*rng.integers(1, 4000, (300, 2)), *rng.integers(1, 30, (100, 2)), (19, 2), (1, 65535)]
    # Sides of nearly whole patches, where rows and columns grow at the same factor.
    sizes += [(16 * side, 16 * side + more) for side in range(1, 40) for more in (0, 1)]
    for height, width in sizes:
        patch, most = int(rng.choice([1, 14, 16, 32])), int(rng.choice([1, 2, 196, 256, 1000]))
        size = int(height), int(width), patch, most
        assert native_grid(*size) == counted(*size), size


@pytest.mark.parametrize("size", [(37, 90), (90, 37), (64, 64)])
def test_pixels_are_resized_and_cut_row_by_row(size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    transform = NativeTransform(8, 20, NATIVE)
    image = preprocess(pixels, transform)
    height, width = transform.resized(*size)
    assert image.shape == (height, width, 3)
    bilinear = PIL.Image.Resampling.BILINEAR
    expected = PIL.Image.fromarray(pixels).resize((width, height), bilinear)
    np.testing.assert_array_equal(image, np.asarray(expected))

    batch = cut_into_patches([image], 8, 20, rows=2)
    rows, columns = height // 8, width // 8
    np.testing.assert_array_equal(batch.grid, [[rows, columns], [1, 1]])
    for row in range(rows):
        for column in range(columns):
            cut = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            np.testing.assert_array_equal(batch.patches[0, row * columns + column], cut.ravel())
    assert not batch.patches[0, rows * columns :].any()


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(300, 900), (900, 300), (311, 417), (40, 600)])
@pytest.mark.parametrize("max_patches", [64, 256])
def test_training_sees_what_evaluation_does_within_two_levels(size, max_patches):
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3)).astype(np.uint8)
    transform = NativeTransform(16, max_patches, NATIVE)
    whole = AugmentConfig(crop_scale=None)
    image = transform_for_training(encoded(pixels), transform, whole, np.random.default_rng(0))
    expected = preprocess(pixels, transform)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 2


def test_a_random_crop_keeps_most_of_a_wide_image():
    pixels = np.zeros((100, 800, 3), np.uint8)
    transform = NativeTransform(16, 64, NATIVE)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop = choose_crop(pixels, transform, AugmentConfig(), rng)
        left, top, right, bottom = crop.box
        assert 0.89 < (right - left) * (bottom - top) / pixels[..., 0].size <= 1
        height, width, _ = render_crop(crop, transform, AugmentConfig(), rng).shape
        assert height % 16 == width % 16 == 0
        assert (height // 16) * (width // 16) <= 64
        assert width >= 4 * height


def test_no_patches_and_endless_images_are_refused():
    with pytest.raises(InputError, match="max_patches is 0\nan image has at least one patch"):
        native_grid(10, 10, 16, 0)
    with pytest.raises(UnreadableExampleError, match="do not fit 4 patches"):
        native_grid(1, 89_000_000, 16, 4)
