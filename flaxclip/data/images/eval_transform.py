"""Images as evaluation gets them: encoded bytes or pixels in, uint8 [h w 3] out.

`preprocess` is pixel-exact, on `Image.open(file)`, to the transform that `ImageTransform` names:
- by default to OpenAI's and to open_clip's (3.3, `is_train=False`, on torchvision 0.29);
- with `transparency="white"` and `crop_rounding="down"` to transformers' (5.24) CLIP, SigLIP and
  SigLIP 2 image processors on their Pillow back end. Their torchvision back end resizes tensors,
  which in photographs is up to 2 grey levels of 255 away, 0.003 on average.
What training sees is made by `train_transform.py`. Mean and standard deviation are not applied
here: pixels go to the device as uint8.

Where the references stop short of what a photographer would do, so does evaluation:
- EXIF orientation is ignored, as by both, given an opened image.
- Without `transparency="white"`, alpha is dropped after a resize that is weighted by it: what is
  fully transparent comes out black, or, where the size is right already, in whatever colour lies
  under it. Palette and 1-bit images are resized by nearest neighbour, since resizing precedes the
  conversion to RGB. Convert them before `preprocess` to have them resampled.
- Of an animation, the first frame is taken.
One difference to both: 16-bit greyscale keeps its high byte. Pillow's own conversion makes all but
its lowest 256 levels white.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from flaxclip.data.images.native_size import PatchArrays, cut_into_patches, native_grid
from flaxclip.data.images.open_image import (
    check_pixels,
    decode_image,
    load_image,
    over_white,
    with_8_bit_channels,
)
from flaxclip.models.inputs import ImageTransform

_RESAMPLING = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
}


class SizedTransform(NamedTuple):
    """A model's image transform with the side of its input, in pixels."""

    size: int
    how: ImageTransform = ImageTransform()


class NativeTransform(NamedTuple):
    """A model's image transform at native aspect ratio, with the most patches of an image."""

    patch_size: int
    max_patches: int
    how: ImageTransform

    @property
    def size(self) -> int:
        """Side, in pixels, of a square with as many patches as fit."""
        return self.patch_size * math.isqrt(self.max_patches)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of these has for the model, in pixels."""
        rows, columns = native_grid(height, width, self.patch_size, self.max_patches)
        return rows * self.patch_size, columns * self.patch_size


Transform = SizedTransform | NativeTransform


def make_transform(image_size: int, patch_size: int, how: ImageTransform) -> Transform:
    """The transform for an image tower of this size."""
    if how.resize != "native":
        return SizedTransform(image_size, how)
    return NativeTransform(patch_size, how.max_patches or (image_size // patch_size) ** 2, how)


def stack_images(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], transform: Transform, rows: int
) -> UInt8[np.ndarray, "rows size size 3"] | PatchArrays:
    """A batch of `rows` from images that `preprocess` has returned; the last ones may be missing,
    and are black.
    """
    if isinstance(transform, NativeTransform):
        return cut_into_patches(images, transform.patch_size, transform.max_patches, rows)
    pixels = np.zeros((rows, transform.size, transform.size, 3), np.uint8)
    for row, image in enumerate(images):
        pixels[row] = image
    return pixels


def preprocess(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image,
    transform: Transform,
) -> UInt8[np.ndarray, "h w 3"]:
    """Resize, crop, convert to RGB: Radford et al. 2021's evaluation transform, in openai/CLIP's
    `clip._transform`, in the order and with the rounding that `transform` says.

    The result is a square of the transform's size, or by `NativeTransform` whole patches. Pixels
    that have the target size already are returned as they are, not copied.

    Raises:
        UnreadableExampleError: see `decode_image`; also an image so long and narrow that its
            resized version has more than `MAX_PIXELS`.
    """
    if isinstance(transform, NativeTransform):
        return _preprocess_native(image, transform)
    size = transform.size
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (size, size, 3):
        return image
    image = _as_pillow(image, transform.how)
    if transform.how.resize == "squash":
        resized = (size, size)
    else:
        short = min(image.size)
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        check_pixels(width, height)
        resized = width, height
    image = image.resize(resized, _RESAMPLING[transform.how.interpolation])
    width, height = resized
    rounded = round if transform.how.crop_rounding == "even" else math.floor
    left, top = rounded((width - size) / 2), rounded((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))


def _preprocess_native(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image,
    transform: NativeTransform,
) -> UInt8[np.ndarray, "h w 3"]:
    image = _as_pillow(image, transform.how)
    height, width = transform.resized(image.height, image.width)
    resized = image.resize((width, height), _RESAMPLING[transform.how.interpolation])
    return np.asarray(resized.convert("RGB"))


def _as_pillow(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image, how: ImageTransform
) -> PIL.Image.Image:
    if isinstance(image, np.ndarray):
        return PIL.Image.fromarray(image)
    if how.transparency == "white":
        return over_white(load_image(image) if isinstance(image, bytes) else image)
    return decode_image(image) if isinstance(image, bytes) else with_8_bit_channels(image)
