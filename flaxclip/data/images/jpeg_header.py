"""Find the kind of a JPEG from its markers, without decoding it."""

import re
from typing import NamedTuple

# The frame that a marker starts; ITU-T T.81, table B.1, and T.87 for JPEG-LS.
_FRAMES = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC5: "hierarchical, extended",
    0xC6: "hierarchical, progressive",
    0xC7: "hierarchical, lossless",
    0xC9: "arithmetic, extended",
    0xCA: "arithmetic, progressive",
    0xCB: "arithmetic, lossless",
    0xCD: "hierarchical, arithmetic, extended",
    0xCE: "hierarchical, arithmetic, progressive",
    0xCF: "hierarchical, arithmetic, lossless",
    0xDE: "hierarchical",
    0xF7: "JPEG-LS",
}
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_WITHOUT_SEGMENT = {0x01, *range(0xD0, 0xD8)}
_MARKER = re.compile(rb"\xff+([\x01-\xfe])")  # any number of bytes ff may fill up


class JpegFrame(NamedTuple):
    """The frame header of a JPEG."""

    process: str
    bits: int
    """Bits of a sample."""
    height: int
    width: int
    components: int
    has_exif: bool = False
    """True if an EXIF segment comes before the image data."""

    @property
    def is_common(self) -> bool:
        """True for the kinds that every decoder reads; cameras and programs write no others."""
        return self.process in ("baseline", "extended", "progressive") and self.bits == 8

    def describe(self) -> str:
        """A description of the kind of JPEG."""
        return f"{self.process}, {self.bits} bits a sample, components: {self.components}"


def read_jpeg_frame(encoded: bytes) -> JpegFrame | None:
    """The frame of the first image in `encoded`, a thumbnail in its metadata not counted.

    Returns:
        None, if there is none, several, or anything else than markers and their segments before
        the image. Some decoders make something of such files.
    """
    frame, has_exif, at = None, False, 2
    if encoded[:2] != bytes((0xFF, _START_OF_IMAGE)):
        return None
    while match := _MARKER.match(encoded, at):
        marker, at = match[1][0], match.end()
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            return frame and frame._replace(has_exif=has_exif)
        if marker in _WITHOUT_SEGMENT:
            continue
        length = int.from_bytes(encoded[at : at + 2])
        segment, at = encoded[at + 2 : at + length], at + length
        if marker == _START_OF_IMAGE or length < 2 or at > len(encoded):
            return None
        if marker == _APP1 and segment.startswith(b"Exif\0\0"):
            has_exif = True
        if marker in _FRAMES:
            if length < 8:
                return None
            if frame is None:
                sides = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
                frame = JpegFrame(_FRAMES[marker], segment[0], *sides, segment[5])
            elif not frame.process.startswith("hierarchical"):
                return None  # only a hierarchy has several
    return None
