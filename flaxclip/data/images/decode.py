"""An image as training sees it: upright, opaque, in RGB, decoded no larger than it is needed.

Fast, and in photographs within a fraction of a grey level of Pillow on average; the exact way,
which evaluation goes, is `eval_transform.py`. In three respects training does more than the
published evaluation transforms:
- EXIF orientation is obeyed, as by viewers and by Hugging Face `datasets`: a caption speaks of the
  image that its author saw, in which left is left and writing can be read.
- Transparency is laid over white, as on a web page, as img2dataset stores it, and as evaluation of
  weights from transformers does. Dropping alpha, as evaluation of open_clip's does, uncovers
  whatever colours an editor has left under it: fine-tuning them does not.
- 1-bit and palette images become RGB before they are resized.
"""

import math
import warnings

import numpy as np
import PIL.Image
import simplejpeg
from jaxtyping import UInt8

from flaxclip.data.images.jpeg_header import JpegFrame, read_jpeg_frame
from flaxclip.data.images.open_image import check_pixels, load_image, open_image, over_white

_ORIENTATION = 0x0112  # EXIF 2.32, section 4.6.4
# Orientation -> whether stored pixels must be transposed, then turned upside down, then mirrored.
_TO_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# libjpeg-turbo has vector code for these alone; the eighths between them cost more than full size.
_FAST_SCALES = (1 / 8, 1 / 4, 1 / 2)


class UprightImage:
    """An image of known size, whose pixels are decoded on demand.

    Attributes:
        height: in pixels, upright.
        width: in pixels, upright.
    """

    def __init__(
        self,
        image: bytes | UInt8[np.ndarray, "height width 3"] | PIL.Image.Image,
        obeys_exif: bool = True,
    ):
        """Read the header of a JPEG, all of anything else.

        Args:
            image: as stored.
            obeys_exif: if False, "upright" is as the pixels are stored.

        Raises:
            UnreadableExampleError: see `decode_image`.
        """
        self._jpeg, self._rgb = None, None
        orientation = 1
        if isinstance(image, np.ndarray):
            self._rgb = image
        elif isinstance(image, bytes) and (frame := _fast_frame(image)):
            self._jpeg = image
            size = frame.height, frame.width
            if frame.has_exif and obeys_exif:
                orientation = _orientation(open_image(image))
        else:
            image = load_image(image) if isinstance(image, bytes) else image
            orientation = _orientation(image) if obeys_exif else 1
            self._rgb = np.asarray(over_white(image))
        self._to_upright = _TO_UPRIGHT.get(orientation, _TO_UPRIGHT[1])
        self._stored = size if self._rgb is None else self._rgb.shape[:2]
        self.height, self.width = self._stored[:: -1 if self._to_upright[0] else 1]

    def decoding_scale(self, scale: float) -> float:
        """The scale at which `decode` would decode the image for one that is asked for."""
        if self._jpeg is None:
            return 1.0
        return next((fast for fast in _FAST_SCALES if fast >= scale), 1.0)

    def decode(self, scale: float) -> tuple[UInt8[np.ndarray, "height width 3"], float]:
        """Decode the image at `scale` or more, up to 1; returns it with the scale used.

        Sides are rounded up to whole pixels, so the last one may lie partly outside.

        Raises:
            UnreadableExampleError: see `decode_image`.
        """
        rgb, decoded_scale = self._rgb, 1.0
        if self._jpeg is not None:
            rgb, decoded_scale = self._decode_jpeg(self._jpeg, self.decoding_scale(scale))
        assert rgb is not None, "an image is either a JPEG or decoded"
        transposed, upside_down, mirrored = self._to_upright
        if transposed:
            rgb = rgb.swapaxes(0, 1)
        return rgb[:: -1 if upside_down else 1, :: -1 if mirrored else 1], decoded_scale

    def _decode_jpeg(
        self, jpeg: bytes, scale: float
    ) -> tuple[UInt8[np.ndarray, "height width 3"], float]:
        height, width = (math.ceil(side * scale) for side in self._stored)
        try:
            rgb = simplejpeg.decode_jpeg(jpeg, min_height=height, min_width=width)
        except ValueError:
            # Broken, or odd. Pillow decides, since it takes more oddities, and says what is wrong.
            return np.asarray(over_white(load_image(jpeg))), 1.0
        return rgb, scale


def _fast_frame(encoded: bytes) -> JpegFrame | None:
    """The frame of a JPEG that libjpeg-turbo turns into RGB at any scale; None for other files.

    simplejpeg (1.9) is shown no others: a valid one of another kind can abort the process in scaled
    decoding.
    """
    frame = read_jpeg_frame(encoded) if simplejpeg.is_jpeg(encoded) else None
    if frame is None or not frame.is_common or frame.components not in (1, 3):
        return None
    check_pixels(frame.width, frame.height)
    return frame if frame.width and frame.height else None


def _orientation(image: PIL.Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF is broken in as many ways as images, and more often
        return 1
