"""Images for training: crop, resize, and optional augmentation.

open_clip's training transform by default: a random crop of nearly the whole image, resized by
antialiased bicubic interpolation. All randomness comes from the generator that is passed in.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from flaxclip.data.images.changes import Change, apply_changes
from flaxclip.data.images.decode import UprightImage
from flaxclip.data.images.eval_transform import NativeTransform, Transform
from flaxclip.data.images.resize import resize_part
from flaxclip.errors import InputError

MARGIN = 1.4
"""Least size of a decoded JPEG, relative to the size needed. Shrinking as part of decoding blurs
and aliases otherwise than bicubic interpolation: in photographs of grass by up to 4 grey levels of
255 on average without a margin, and by less than 2 with this one."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images."""

    crop_scale: tuple[float, float] | None = (0.9, 1.0)
    """Area of the random crop over the image's. If None, the part that evaluation takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the random crop, log-uniform between these; of images at their own
    aspect ratio, over theirs."""
    flip: float = 0.0
    """Probability of mirroring an image. Captions that name sides, and writing, become wrong."""
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Largest change of brightness, contrast, saturation (as parts of 1) and hue (of 0.5)."""
    color_jitter_probability: float = 1.0
    grayscale: float = 0.0
    """Probability of an image without its colours."""

    def __post_init__(self) -> None:
        ranges = [("crop_ratio", self.crop_ratio, math.inf)]
        if self.crop_scale is not None:
            ranges.append(("crop_scale", self.crop_scale, 1.0))
        for name, (low, high), most in ranges:
            if not 0 < low <= high <= most:
                limit = "" if most == math.inf else f" ≤ {most:g}"
                raise InputError(
                    f"augment.{name} is {low:g} {high:g}\nexpected 0 < lowest ≤ highest{limit}"
                )
        for name in ("flip", "color_jitter_probability", "grayscale"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"augment.{name} is {getattr(self, name):g}\nexpected 0 to 1")
        *strengths, hue = self.color_jitter
        if min(self.color_jitter) < 0 or hue > 0.5 or max(strengths) > 1:
            raise InputError(
                f"augment.color_jitter is {' '.join(f'{value:g}' for value in self.color_jitter)}\n"
                "expected brightness, contrast and saturation from 0 to 1, hue from 0 to 0.5"
            )


class Crop(NamedTuple):
    """The part of an image that the image tower sees, chosen before the image is decoded."""

    image: UprightImage
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in pixels."""


class View(NamedTuple):
    """What one model sees of a crop."""

    size: tuple[int, int]
    """Height and width, in pixels."""
    interpolation: Literal["bicubic", "bilinear"]


def transform_for_training(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image,
    transform: Transform,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "h w 3"]:
    """Make the pixels of a row from `image`, with randomness from `rng`.

    Raises:
        UnreadableExampleError: see `decode_image`.
    """
    return render_crop(choose_crop(image, transform, augment, rng), transform, augment, rng)


def choose_crop(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image | UprightImage,
    transform: Transform,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> Crop:
    """The first half of `transform_for_training`: reads only the header of a JPEG."""
    upright = image if isinstance(image, UprightImage) else UprightImage(image)
    return Crop(upright, _choose_box(upright.height, upright.width, transform, augment, rng))


def render_crop(
    crop: Crop, transform: Transform, augment: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The second half, with the same `rng`."""
    return render_views(crop, (transform,), augment, rng)[0]


def render_views(
    crop: Crop,
    transforms: Sequence[Transform],
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """`render_crop` for several models: the same part, mirrored and coloured alike.

    The view of each is what it would be by itself. The image is decoded once for all that need it
    at the same scale.
    """
    views = [view_of(crop.box, transform) for transform in transforms]
    return render_changed(crop, views, draw_changes(augment, rng))


def view_of(box: tuple[float, float, float, float], transform: Transform) -> View:
    """How a model with this transform sees the crop with this box.

    Raises:
        UnreadableExampleError: see `native_grid`.
    """
    size = transform.size, transform.size
    if isinstance(transform, NativeTransform):
        left, top, right, bottom = box
        size = transform.resized(math.ceil(bottom - top), math.ceil(right - left))
    return View(size, transform.how.interpolation)


def render_changed(
    crop: Crop, views: Sequence[View], changes: tuple[Change, ...]
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """`render_views`, with sizes and changes that are chosen already."""
    left, top, right, bottom = crop.box
    decoded: dict[float, tuple[np.ndarray, float]] = {}
    rendered = []
    for (height, width), interpolation in views:
        wanted = MARGIN * max(height / (bottom - top), width / (right - left))
        key = crop.image.decoding_scale(wanted)
        if key not in decoded:
            decoded[key] = crop.image.decode(wanted)
        pixels, scale = decoded[key]
        box = (scale * left, scale * top, scale * right, scale * bottom)
        pixels = resize_part(pixels, box, (height, width), interpolation)
        rendered.append(apply_changes(pixels, changes))
    return rendered


def sample_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image, in pixels.

    The part's area is uniform in `scale` times the image's, its width : height log-uniform in
    `ratio`. As in torchvision's `RandomResizedCrop.get_params`, ten draws that do not fit the
    image are followed by the largest centred part of a permitted shape.
    """
    for _ in range(10):
        # One call for all four: each takes longer than all arithmetic here.
        for_area, for_aspect, for_top, for_left = rng.random(4).tolist()
        area = height * width * (scale[0] + (scale[1] - scale[0]) * for_area)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** for_aspect
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(for_top * (height - crop_height + 1))
            left = int(for_left * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _choose_box(
    height: int,
    width: int,
    transform: Transform,
    augment: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of the part that the image tower sees, in pixels."""
    if augment.crop_scale is not None:
        ratio = augment.crop_ratio
        if transform.how.resize == "native":  # of a panorama, most of the panorama
            ratio = ratio[0] * width / height, ratio[1] * width / height
        top, left, crop_height, crop_width = sample_crop(
            height, width, rng, augment.crop_scale, ratio
        )
        return left, top, left + crop_width, top + crop_height
    if transform.how.resize in ("squash", "native"):
        return 0, 0, width, height
    side = min(height, width)
    across, down = (width - side) / 2, (height - side) / 2
    return across, down, across + side, down + side


def draw_changes(augment: AugmentConfig, rng: np.random.Generator) -> tuple[Change, ...]:
    """Mirroring; colours as by torchvision's `ColorJitter`, in a random order; `RandomGrayscale`.

    No randomness is drawn for what `augment` excludes.
    """
    changes: list[Change] = []
    if augment.flip and rng.random() < augment.flip:
        changes.append(("flip", 1.0))
    if any(augment.color_jitter) and rng.random() < augment.color_jitter_probability:
        for number in rng.permutation(len(augment.color_jitter)):
            strength, name = augment.color_jitter[number], _JITTERS[number]
            if not strength:
                continue  # a hue shifted by nothing would still be rounded, to HSV and back
            middle = 0.0 if name == "hue" else 1.0
            changes.append((name, rng.uniform(middle - strength, middle + strength)))
    if augment.grayscale and rng.random() < augment.grayscale:
        changes.append(("grayscale", 1.0))
    return tuple(changes)


_JITTERS = ("brightness", "contrast", "color", "hue")
