"""Pictures as the image tower gets them: encoded bytes or pixels in, uint8 [h w 3] out.

Two ways in. `preprocess` is the evaluation transform, pixel-exact to OpenAI's (and open_clip's
`image_transform(is_train=False)`) on `Image.open(file)`. `random_resized_crop` is open_clip's
training crop. Mean and standard deviation are not applied here: pixels go to the device as uint8.

Where both references stop short of what a photographer would do, so does this file:
- EXIF orientation is ignored, as the published models were trained and measured.
- Alpha is dropped, not composited. In evaluation the resize comes first and is alpha-weighted, so
  fully transparent pixels come out black; in training the conversion to RGB comes first.
- Palette and 1-bit pictures are resized by nearest neighbour in evaluation, since resizing
  precedes the conversion to RGB. Convert them before `preprocess` to have them resampled.
- Of an animation, the first frame is taken.
One difference: 16-bit greyscale keeps its high byte. Pillow's own conversion clips it to white.
"""

import dataclasses
import io
import math
from typing import Literal

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from flaxclip.data.source import UnreadableRecordError

MAX_PIXELS = 89_478_485
"""Pictures with more pixels are refused before they are decoded: Pillow's own warning threshold,
a quarter of a GiB in RGB."""

# Pillow's other formats are not found in image corpora, and some (EPS) run programs to be read.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MODES_WITH_AN_RGB = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK"}
_MODES_WITH_AN_RGB |= {"YCbCr", "HSV"}
_RESAMPLING = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
}


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """The evaluation transform that a model was measured with."""

    size: int = 224
    """Side of the square that the image tower takes, in pixels."""
    resize_mode: Literal["shortest", "squash"] = "shortest"
    """`shortest`: short side to `size`, then centre crop (CLIP). `squash`: both sides (SigLIP)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"


def open_image(encoded: bytes) -> PIL.Image.Image:
    """The picture's format, size and colour mode, from its header alone: pixels come with `load`.

    Raises:
        UnreadableRecordError: not a picture, or one of more than `MAX_PIXELS`.
    """
    if not encoded:
        raise UnreadableRecordError("empty image file")
    try:
        image = PIL.Image.open(io.BytesIO(encoded), formats=_FORMATS)
    except PIL.UnidentifiedImageError:
        found = f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}: starts with {encoded[:16]!r}"
        raise UnreadableRecordError(found) from None
    except Exception as error:
        raise _broken_image(error) from error
    _check_pixels(*image.size)
    return image


def decode_image(encoded: bytes) -> PIL.Image.Image:
    """The picture in `encoded`, in the colour mode it was stored in; at most 8 bits a channel.

    Raises:
        UnreadableRecordError: not a picture, a broken one, one of more than `MAX_PIXELS`, or one
            whose colours have no defined conversion to RGB.
    """
    image = open_image(encoded)
    try:
        image.load()
    except Exception as error:
        raise _broken_image(error) from error
    # Alpha in a palette is dropped below either way; with this entry Pillow warns of it each time.
    image.info.pop("transparency", None)
    return _with_8_bit_channels(image)


def preprocess(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image, transform: ImageTransform
) -> UInt8[np.ndarray, "size size 3"]:
    """Resize, crop, convert to RGB: Radford et al. 2021's evaluation transform, in openai/CLIP's
    `clip._transform`, with torchvision's rounding.

    Pixels that have the target size already are returned as they are, not copied.

    Raises:
        UnreadableRecordError: see `decode_image`; also a picture so long and narrow that its
            resized version has more than `MAX_PIXELS`.
    """
    size = transform.size
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (size, size, 3):
        return image
    image = _as_pillow(image)
    if transform.resize_mode == "squash":
        resized = (size, size)
    else:
        short = min(image.size)
        resized = tuple(size if side == short else int(size * side / short) for side in image.size)
        _check_pixels(*resized)
    image = image.resize(resized, _RESAMPLING[transform.interpolation])
    width, height = resized
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))


def random_resized_crop(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> UInt8[np.ndarray, "size size 3"]:
    """A random crop, resized by bicubic interpolation: open_clip's training transform.

    The defaults are open_clip's and torchvision's; all randomness comes from `rng`.

    Raises:
        UnreadableRecordError: see `decode_image`.
    """
    image = _as_pillow(image).convert("RGB")
    width, height = image.size
    top, left, crop_height, crop_width = sample_crop(height, width, rng, scale, ratio)
    crop = image.crop((left, top, left + crop_width, top + crop_height))
    return np.asarray(crop.resize((size, size), PIL.Image.Resampling.BICUBIC))


def sample_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a picture, in pixels.

    The part's area is uniform in `scale` times the picture's, its width : height log-uniform in
    `ratio`. As in torchvision's `RandomResizedCrop.get_params`, ten draws that do not fit the
    picture are followed by the largest centred part of a permitted shape.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height, endpoint=True))
            left = int(rng.integers(width - crop_width, endpoint=True))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _as_pillow(
    image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image,
) -> PIL.Image.Image:
    if isinstance(image, bytes):
        return decode_image(image)
    if isinstance(image, np.ndarray):
        return PIL.Image.fromarray(image)
    return _with_8_bit_channels(image)


def _with_8_bit_channels(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in _MODES_WITH_AN_RGB:
        raise UnreadableRecordError(f"no defined conversion to RGB from pixel mode {image.mode}")
    return image


def _broken_image(error: Exception) -> UnreadableRecordError:
    # Pillow's decoders answer broken files with nearly any exception.
    return UnreadableRecordError(f"broken image: {type(error).__name__}: {error}")


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        found = f"{width} × {height} pixels, more than the limit of {MAX_PIXELS:,}"
        raise UnreadableRecordError(found)
