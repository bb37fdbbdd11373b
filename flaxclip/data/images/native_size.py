"""The size of an image at its own aspect ratio, and its pixels as patches."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError

_LARGEST_SCALE = 100.0
_SCALE_STEP = 1e-5
_ROUNDING = 1e-9  # relative, and far more than `_largest_scale` may be wrong by


def native_grid(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of patches of the largest resized image that has at most `max_patches`.

    Both sides are scaled by one factor, at most 100, and rounded up to whole patches, of which each
    has one at least. The factor is searched by bisection in steps of 1e-5, as transformers (5.24)
    does in `get_image_size_for_max_num_patches`, since where rows and columns grow at nearly the
    same factor, the exact one gives another grid.

    Raises:
        InputError: `max_patches` is not positive.
        UnreadableExampleError: an image of which even a millionth is too long.
    """
    if max_patches < 1:
        raise InputError(f"max_patches is {max_patches}\nan image has at least one patch")

    def grid(scale: float) -> tuple[int, int]:
        rows = max(1, math.ceil(height * scale / patch_size))
        columns = max(1, math.ceil(width * scale / patch_size))
        return rows, columns

    # Patches are counted near the exact factor alone, which takes a fifth of the time.
    exact = _largest_scale(height, width, patch_size, max_patches)
    surely_fits, surely_too_large = exact * (1 - _ROUNDING), exact * (1 + _ROUNDING)
    fits, too_large = _SCALE_STEP / 10, _LARGEST_SCALE
    while too_large - fits >= _SCALE_STEP:
        scale = (fits + too_large) / 2
        if scale < surely_fits:
            fits = scale
        elif scale > surely_too_large or math.prod(grid(scale)) > max_patches:
            too_large = scale
        else:
            fits = scale
    rows, columns = grid(fits)
    if rows * columns > max_patches:
        raise UnreadableExampleError(f"{width} x {height} pixels do not fit {max_patches} patches")
    return rows, columns


def _largest_scale(height: int, width: int, patch_size: int, max_patches: int) -> float:
    """The largest factor with which an image has at most `max_patches`, without its bounds."""
    # A number of patches along the shorter side leaves room for so many along the longer. The best
    # number is the last with which the shorter side is the limit, or the one after it.
    long, short = max(height, width), min(height, width)
    middle = int(math.sqrt(max_patches * short / long))
    numbers = (min(max(1, middle + more), max_patches) for more in (-1, 0, 1))
    return max(
        min(number * patch_size / short, max_patches // number * patch_size / long)
        for number in numbers
    )


class PatchArrays(NamedTuple):
    """Images as patches, on the host: `flaxclip.models.patches.ImagePatches` without JAX."""

    patches: UInt8[np.ndarray, "batch n pixels"]
    grid: Int32[np.ndarray, "batch 2"]


def write_patches(
    pixels: UInt8[np.ndarray, "height width 3"], places: UInt8[np.ndarray, "n pixels"]
) -> tuple[int, int]:
    """Cut an image, whose sides are whole patches, into the first of `places`; return its grid.

    The other places become black.
    """
    patch_size = math.isqrt(places.shape[1] // 3)
    rows, columns = pixels.shape[0] // patch_size, pixels.shape[1] // patch_size
    # NumPy copies items of a patch's width, a line of it each, up to five times as fast as bytes.
    line = np.dtype((np.void, 3 * patch_size))
    lines = np.ascontiguousarray(pixels).reshape(rows, patch_size, columns, -1).view(line)[..., 0]
    used = places[: rows * columns].reshape(rows, columns, patch_size, -1).view(line)[..., 0]
    used[...] = lines.transpose(0, 2, 1)
    places[rows * columns :] = 0
    return rows, columns


def cut_into_patches(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], patch_size: int, length: int, rows: int
) -> PatchArrays:
    """The patches of `images`, whose sides are whole patches, in a batch of `rows`.

    Places without a patch are black. Rows without an image have one patch, which is black: without
    any, there would be nothing to attend to.
    """
    patches = np.zeros((rows, length, 3 * patch_size**2), np.uint8)
    grid = np.ones((rows, 2), np.int32)
    for row, pixels in enumerate(images):
        grid[row] = write_patches(pixels, patches[row])
    return PatchArrays(patches, grid)
