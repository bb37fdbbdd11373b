"""Changes of a training image after it is cropped: mirroring, colours, and RandAugment's.

They are drawn first and applied then, so that they can be stored beside a teacher's embedding of
the crop, and applied for several models that see the crop at sizes of their own.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
from jaxtyping import UInt8

Change = tuple[str, float]
"""Name of a change, one of `CHANGES`, and its strength."""


def apply_changes(
    pixels: UInt8[np.ndarray, "h w 3"], changes: tuple[Change, ...]
) -> UInt8[np.ndarray, "h w 3"]:
    """The crop with the changes, one after the other.

    Raises:
        KeyError: a change that is not in `CHANGES`.
    """
    image: PIL.Image.Image | None = None
    for name, strength in changes:
        if name == "flip" and image is None:
            pixels = pixels[:, ::-1]
            continue
        if image is None:
            image = PIL.Image.fromarray(np.ascontiguousarray(pixels))
        image = CHANGES[name](image, strength)
    return pixels if image is None else np.asarray(image)


def _flip(image: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


def _enhance(kind: Callable, image: PIL.Image.Image, factor: float) -> PIL.Image.Image:
    return kind(image).enhance(factor)


def _shift_hue(image: PIL.Image.Image, shift: float) -> PIL.Image.Image:
    """Shift the hue by `shift` of a full turn."""
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(int(shift * 255) % 256)  # wraps around, as hues do
    return PIL.Image.fromarray(hsv, "HSV").convert("RGB")


def _gray(image: PIL.Image.Image, strength: float) -> PIL.Image.Image:
    return image.convert("L").convert("RGB")


def _shear(across: bool, image: PIL.Image.Image, level: float) -> PIL.Image.Image:
    # torchvision computes in degrees, rounded by nothing, around the corner.
    slope = math.tan(math.radians(math.degrees(math.atan(level))))
    matrix = (1.0, slope, 0.0, 0.0, 1.0, 0.0) if across else (1.0, 0.0, 0.0, slope, 1.0, 0.0)
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix)


def _translate(across: bool, image: PIL.Image.Image, share: float) -> PIL.Image.Image:
    pixels = float(round(share * image.size[0]))
    matrix = (1.0, 0.0, -pixels, 0.0, 1.0, 0.0) if across else (1.0, 0.0, 0.0, 0.0, 1.0, -pixels)
    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix)


CHANGES: dict[str, Callable[[PIL.Image.Image, float], PIL.Image.Image]] = {
    "flip": _flip,
    "brightness": functools.partial(_enhance, PIL.ImageEnhance.Brightness),
    "contrast": functools.partial(_enhance, PIL.ImageEnhance.Contrast),
    "color": functools.partial(_enhance, PIL.ImageEnhance.Color),
    "sharpness": functools.partial(_enhance, PIL.ImageEnhance.Sharpness),
    "hue": _shift_hue,
    "grayscale": _gray,
    "shear_x": functools.partial(_shear, True),
    "shear_y": functools.partial(_shear, False),
    "translate_x": functools.partial(_translate, True),
    "translate_y": functools.partial(_translate, False),
    "rotate": lambda image, degrees: image.rotate(degrees),
    "posterize": lambda image, bits: PIL.ImageOps.posterize(image, int(bits)),
    "solarize": lambda image, threshold: PIL.ImageOps.solarize(image, math.ceil(threshold)),
    "autocontrast": lambda image, strength: PIL.ImageOps.autocontrast(image),
    "equalize": lambda image, strength: PIL.ImageOps.equalize(image),
}
"""By name, with the strength's meaning: a factor for brightness, contrast, color and sharpness; a
part of a full turn for hue; degrees counter-clockwise for rotate; a slope for shears; a share of
the side for translations; bits left, and grey levels from which to invert, for posterize and
solarize. The others have none. What comes from outside the image is black, and pixels are taken
from their nearest neighbour, as in torchvision's `RandAugment` (0.29) by default."""
