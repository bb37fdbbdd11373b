"""Resizing and re-encoding of images before they are stored."""

import dataclasses
import io
from typing import Literal

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from flaxclip.data.images.decode import UprightImage
from flaxclip.data.images.open_image import decode_image, open_image
from flaxclip.errors import InputError


@dataclasses.dataclass(frozen=True)
class ImageEncoding:
    """Encoding of stored images. An image that needs no change keeps its bytes and metadata."""

    resize: int | None = None
    """Shorter side in pixels, for images whose own is longer. If None, the size is kept."""
    image_format: Literal["JPEG", "WEBP", "PNG"] | None = None
    """Format of all images. If None, each keeps its own, but those that are resized become JPEG."""
    quality: int = 90
    """Quality of JPEG and WEBP, 1 to 100."""

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise InputError(f"--resize is {self.resize}\nit is a side in pixels: 1 or more")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality is {self.quality}\nexpected 1 to 100")

    @property
    def changes_images(self) -> bool:
        """True if it may change images."""
        return self.resize is not None or self.image_format is not None


def encode_for_storage(
    image: bytes | UInt8[np.ndarray, "height width 3"], encoding: ImageEncoding
) -> bytes:
    """The image in the form that is stored; decodes all of it to check it.

    An image that is encoded anew has the pixels that training would see of the original: upright,
    opaque, in RGB; resized by bicubic interpolation. Pixels without a file become PNG, which is
    lossless, unless a format is given.

    Raises:
        UnreadableExampleError: an image that cannot be decoded.
    """
    if isinstance(image, bytes):
        header = open_image(image)
        kind, shorter = header.format, min(header.size)
    else:
        kind, shorter = None, min(image.shape[:2])
    shrink = encoding.resize is not None and shorter > encoding.resize
    if isinstance(image, bytes) and not shrink and encoding.image_format in (None, kind):
        decode_image(image)
        return image
    pixels, _ = UprightImage(image).decode(1.0)
    encoded = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    if encoding.resize is not None and shrink:
        scale = encoding.resize / shorter
        width, height = (max(round(side * scale), 1) for side in encoded.size)
        encoded = encoded.resize((width, height), PIL.Image.Resampling.BICUBIC)
    file = io.BytesIO()
    encoded.save(
        file, encoding.image_format or ("JPEG" if kind else "PNG"), quality=encoding.quality
    )
    return file.getvalue()
