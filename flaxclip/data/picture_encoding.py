"""Pictures made smaller, or put into another format, before they are stored."""

import dataclasses
import io
from typing import Literal

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from flaxclip.data.transforms import decode_image
from flaxclip.errors import InputError


@dataclasses.dataclass(frozen=True)
class PictureEncoding:
    """How a picture is stored. What needs no change keeps its bytes, and with them its metadata."""

    resize: int | None = None
    """Shorter side in pixels, for pictures that have more. None: as large as they are."""
    image_format: Literal["JPEG", "WEBP", "PNG"] | None = None
    """Of all pictures. None: each keeps its own; those that are resized become JPEG."""
    quality: int = 90
    """Of JPEG and WEBP, 1 to 100."""

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise InputError(f"--resize is {self.resize}\nit is a side in pixels: 1 or more")
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality is {self.quality}\nexpected 1 to 100")

    @property
    def changes_pictures(self) -> bool:
        """Whether there are pictures that it would not leave as they are."""
        return self.resize is not None or self.image_format is not None


def encode_picture(
    image: bytes | UInt8[np.ndarray, "height width 3"], encoding: PictureEncoding
) -> bytes:
    """The picture as it is to be stored, seen to be whole by decoding all of it.

    Pictures are resized by bicubic interpolation, in RGB. Pixels without a file become PNG, which
    loses nothing, unless there is a format given.

    Raises:
        UnreadableRecordError: a picture that cannot be decoded.
    """
    is_file = isinstance(image, bytes)
    picture = decode_image(image) if is_file else PIL.Image.fromarray(image)
    width, height = picture.size
    shorter = min(width, height)
    shrink = encoding.resize is not None and shorter > encoding.resize
    # The decoder's own word for the format is lost with some conversions; the header keeps it.
    if is_file and not shrink and encoding.image_format in (None, picture.format):
        return image
    picture = picture.convert("RGB")
    if shrink:
        scale = encoding.resize / shorter
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        picture = picture.resize(size, PIL.Image.Resampling.BICUBIC)
    kind = encoding.image_format or ("JPEG" if is_file else "PNG")
    file = io.BytesIO()
    picture.save(file, kind, quality=encoding.quality)
    return file.getvalue()
