"""Part of a picture to a square, antialiased, as Pillow does it but with vector instructions."""

import math
from typing import Literal

import numpy as np
import PIL.Image
from jaxtyping import UInt8

try:
    import cykooz_resizer
except ImportError:  # no wheel for Linux on ARM; Pillow's result is the same but for rounding
    cykooz_resizer = None

# Pillow's bicubic is Catmull and Rom's cubic too (a = -1/2).
_FILTERS = {"bicubic": "catmull_rom", "bilinear": "bilinear"}


def resize_part(
    pixels: UInt8[np.ndarray, "height width 3"],
    box: tuple[float, float, float, float],
    size: int,
    interpolation: Literal["bicubic", "bilinear"],
) -> UInt8[np.ndarray, "size size 3"]:
    """The part of `pixels` inside `box`, resized; `pixels` themselves where that is the same.

    `box` is left, top, right and bottom edge, in pixels, not always whole ones. What lies beyond
    the pixels that it touches has no influence, as when the part is cropped first.
    """
    left, top, right, bottom = box
    if box == (0, 0, size, size) and pixels.shape == (size, size, 3):
        return pixels
    first_column, first_row = math.floor(left), math.floor(top)
    part = pixels[first_row : math.ceil(bottom), first_column : math.ceil(right)]
    left, top, width, height = left - first_column, top - first_row, right - left, bottom - top
    if cykooz_resizer is None:
        return resize_with_pillow(
            part, (left, top, left + width, top + height), size, interpolation
        )
    options = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType[_FILTERS[interpolation]]),
        crop_box=cykooz_resizer.CropBox(left, top, width, height),
    )
    pixel_type = cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(part.shape[1], part.shape[0], pixel_type, part.tobytes())
    target = cykooz_resizer.ImageData(size, size, pixel_type)
    cykooz_resizer.Resizer().resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3)


def resize_with_pillow(
    pixels: UInt8[np.ndarray, "height width 3"],
    box: tuple[float, float, float, float],
    size: int,
    interpolation: Literal["bicubic", "bilinear"],
) -> UInt8[np.ndarray, "size size 3"]:
    """The same by Pillow, several times slower."""
    filters = {
        "bicubic": PIL.Image.Resampling.BICUBIC,
        "bilinear": PIL.Image.Resampling.BILINEAR,
    }
    image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), filters[interpolation], box))
