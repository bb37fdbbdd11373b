"""Encoded bytes -> an image of Pillow's, within the limits of what is read here."""

import io

import numpy as np
import PIL.Image

from flaxclip.data.images.jpeg_header import read_jpeg_frame
from flaxclip.data.sources.source import UnreadableExampleError

MAX_PIXELS = 89_478_485
"""Images with more pixels are refused before they are decoded: Pillow's own warning threshold,
a quarter of a GiB in RGB."""

# Pillow's other formats are not found in image corpora, and some (EPS) run programs to be read.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_MODES_WITH_AN_RGB = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK"}
_MODES_WITH_AN_RGB |= {"YCbCr", "HSV"}


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
