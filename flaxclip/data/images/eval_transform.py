"""Images as evaluation gets them: encoded bytes or pixels in, uint8 [h w 3] out.

`preprocess` is pixel-exact, on `Image.open(file)`, to the transform that `ImageTransform` names:
- by default to OpenAI's and to open_clip's (3.3, `is_train=False`, on torchvision 0.29);
- with `transparency="white"` and `crop_rounding="down"` to transformers' (5.24) CLIP and SigLIP
  image processors on their Pillow back end. Their torchvision back end resizes tensors, which in
  photographs is up to 2 grey levels of 255 away, 0.003 on average.
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

import io
import math
from typing import NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from flaxclip.data.images.jpeg_header import read_jpeg_frame
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.models.inputs import ImageTransform

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before they are decoded: Pillow's own warning threshold,
a quarter of a GiB in RGB."""

# Pillow's other formats are not found in image corpora, and some (EPS) run programs to be read.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MODES_WITH_AN_RGB = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK"}
_MODES_WITH_AN_RGB |= {"YCbCr", "HSV"}
_RESAMPLING = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
}


class SizedTransform(NamedTuple):
    """A model's image transform with the side of its input, in pixels."""

    size: int
    how: ImageTransform = ImageTransform()


def open_image(encoded: bytes) -> PIL.Image.Image:
    """The image's format, size and colour mode, from its header alone: pixels come with `load`.

    Raises:
        UnreadableExampleError: not an image, or one of more than `MAX_PIXELS`.
    """
    if not encoded:
        raise UnreadableExampleError("empty image file")
    try:
        image = PIL.Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except PIL.UnidentifiedImageError:
        found = f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}: starts with {encoded[:16]!r}"
        raise UnreadableExampleError(_rare_jpeg(encoded) or found) from None
    except Exception as error:
        raise _broken_image(error, encoded) from error
    check_pixels(*image.size)
    return image


def decode_image(encoded: bytes) -> PIL.Image.Image:
    """The image in `encoded`, in the colour mode it was stored in; at most 8 bits a channel.

    Raises:
        UnreadableExampleError: not an image, a broken one, one of more than `MAX_PIXELS`, or one
            whose colours have no defined conversion to RGB.
    """
    image = load_image(encoded)
    # Alpha in a palette is dropped below either way; with this entry Pillow warns of it each time.
    image.info.pop("transparency", None)
    return with_8_bit_channels(image)


def load_image(encoded: bytes) -> PIL.Image.Image:
    """The first image in `encoded`, with all that Pillow knows about it.

    Raises:
        UnreadableExampleError: not an image, a broken one, or one of more than `MAX_PIXELS`.
    """
    image = open_image(encoded)
    try:
        image.load()
    except Exception as error:
        raise _broken_image(error, encoded) from error
    return image


def preprocess(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image, transform: SizedTransform
) -> UInt8[np.ndarray, "size size 3"]:
    """Resize, crop, convert to RGB: Radford et al. 2021's evaluation transform, in openai/CLIP's
    `clip._transform`, in the order and with the rounding that `transform` says.

    Pixels that have the target size already are returned as they are, not copied.

    Raises:
        UnreadableExampleError: see `decode_image`; also an image so long and narrow that its
            resized version has more than `MAX_PIXELS`.
    """
    size = transform.size
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (size, size, 3):
        return image
    image = _as_pillow(image, transform)
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


def _as_pillow(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image,
    transform: SizedTransform,
) -> PIL.Image.Image:
    if isinstance(image, np.ndarray):
        return PIL.Image.fromarray(image)
    if transform.how.transparency == "white":
        return over_white(load_image(image) if isinstance(image, bytes) else image)
    return decode_image(image) if isinstance(image, bytes) else with_8_bit_channels(image)


def over_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """`image` in RGB, with transparent parts white.

    Raises:
        UnreadableExampleError: its colours have no defined conversion to RGB.
    """
    opaque = with_8_bit_channels(image)
    if image.mode.startswith("I;16") and "transparency" in image.info:
        # The grey that stands for transparency has 16 bits, and neighbours of the same high byte.
        clear = np.asarray(image) == image.info["transparency"]
        grey = np.where(clear, 255, np.asarray(opaque)).astype(np.uint8)
        return PIL.Image.fromarray(grey).convert("RGB")
    if opaque.has_transparency_data:
        white = PIL.Image.new("RGBA", opaque.size, "white")
        opaque = PIL.Image.alpha_composite(white, opaque.convert("RGBA"))
    return opaque.convert("RGB")


def with_8_bit_channels(image: PIL.Image.Image) -> PIL.Image.Image:
    """`image` in a mode that converts to RGB; of 16 bits of grey, the upper 8.

    Raises:
        UnreadableExampleError: its colours have no defined conversion to RGB.
    """
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _MODES_WITH_AN_RGB:
        raise UnreadableExampleError(f"no defined conversion to RGB from pixel mode {image.mode}")
    return image


def _broken_image(error: Exception, encoded: bytes) -> UnreadableExampleError:
    # Pillow's decoders answer broken files with nearly any exception.
    kind = _rare_jpeg(encoded) or "broken image"
    return UnreadableExampleError(f"{kind}: {type(error).__name__}: {error}")


def _rare_jpeg(encoded: bytes) -> str | None:
    """The message for a JPEG that few programs can read; None for all other images."""
    frame = read_jpeg_frame(encoded)
    if frame is None or frame.is_common:
        return None
    return f"a JPEG of a kind that cannot be read here ({frame.describe()}); save it as a PNG"


def check_pixels(width: int, height: int) -> None:
    """Raise `UnreadableExampleError` above `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        found = f"{width} × {height} pixels, more than the limit of {MAX_PIXELS:,}"
        raise UnreadableExampleError(found)
