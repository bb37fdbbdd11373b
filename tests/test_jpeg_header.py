"""Frame headers without an image: there is nothing in them to decode."""

import io
import struct

import numpy as np
import PIL.Image
import pytest

from flaxclip.data.images import decode
from flaxclip.data.images.decode import UprightImage
from flaxclip.data.images.jpeg_header import JpegFrame, read_jpeg_frame
from flaxclip.data.images.open_image import decode_image, open_image
from flaxclip.data.prepare.encoding import ImageEncoding, encode_for_storage
from flaxclip.data.sources.source import UnreadableExampleError

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
RARE = {
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
    0xF7: "JPEG-LS",
}


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _frame(marker: int = 0xC0, bits: int = 8, components: int = 3) -> bytes:
    data = struct.pack(">BHHB", bits, 40, 50, components)
    return _segment(marker, data + b"".join(bytes((n, 0x11, 0)) for n in range(components)))


def _jpeg(**options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize(("marker", "process"), RARE.items())
def test_a_frame_of_a_rare_kind_is_named(marker, process):
    frame = read_jpeg_frame(SOI + _frame(marker) + EOI)
    assert frame == JpegFrame(process, 8, 40, 50, 3)
    assert not frame.is_common


@pytest.mark.parametrize(
    ("marker", "process"), [(0xC0, "baseline"), (0xC1, "extended"), (0xC2, "progressive")]
)
def test_common_kinds_are_those_of_8_bits(marker, process):
    assert read_jpeg_frame(SOI + _frame(marker) + EOI) == JpegFrame(process, 8, 40, 50, 3)
    assert read_jpeg_frame(SOI + _frame(marker) + EOI).is_common
    assert not read_jpeg_frame(SOI + _frame(marker, bits=12) + EOI).is_common


def test_what_may_stand_before_a_frame_is_passed_over():
    thumbnail = SOI + _frame(0xC3, 12, 1) + EOI
    file = (
        SOI
        + _segment(0xE0, b"JFIF\0" + bytes(9))
        + b"\xff" * 1000  # before a marker, any number may fill up
        + _segment(0xE1, b"Exif\0\0" + thumbnail)
        + b"\xff\x01"  # a marker without a segment
        + _segment(0xE2, bytes(65_533))
        + _segment(0xFE, b"\xff\xc3 a comment")
        + _segment(0xC4, bytes(17))
        + _segment(0xCC, bytes(2))
        + _frame(0xC2)
    )
    expected = JpegFrame("progressive", 8, 40, 50, 3, has_exif=True)
    assert read_jpeg_frame(file + _segment(0xDA, bytes(6)) + b"\0" + _frame(0xC3)) == expected
    # An EXIF segment may follow the frame.
    file = SOI + _frame() + _segment(0xE1, b"Exif\0\0") + _segment(0xDA, bytes(6))
    assert read_jpeg_frame(file).has_exif


def test_a_hierarchy_is_one_whatever_its_first_frame_is():
    file = SOI + _frame(0xDE) + _frame(0xC0) + _segment(0xDA, bytes(6))
    assert read_jpeg_frame(file).process == "hierarchical"


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        SOI,
        SOI + EOI,
        SOI + _segment(0xDA, bytes(6)) + _frame(),
        SOI + _frame(),
        SOI + _frame()[:-4] + EOI,
        SOI + b"\0" + _frame() + EOI,
        SOI + b"\xff\0" + _frame() + EOI,
        SOI + SOI + _frame() + EOI,
        SOI + _segment(0xC0, bytes(5)) + EOI,
        SOI + b"\xff\xe0\0\1" + _frame() + EOI,
        SOI + _frame(0xC0) + _frame(0xC3) + EOI,
        SOI + b"\xff" * 10_000_000,
    ],
    ids=[
        "empty", "PNG", "nothing", "no frame", "scan before frame", "no scan", "cut", "stray byte",
        "stuffed zero", "two beginnings", "short frame", "length of 1", "two frames", "filler",
    ],
)  # fmt: skip
def test_what_is_not_made_as_a_jpeg_has_no_frame(file):
    assert read_jpeg_frame(file) is None


def test_damaged_headers_are_read_without_an_error():
    good, rng = _jpeg(), np.random.default_rng(0)
    for _ in range(2000):
        damaged = bytearray(good[:700])
        for position in rng.integers(0, len(damaged), 3):
            damaged[position] = rng.integers(256)
        frame = read_jpeg_frame(bytes(damaged[: rng.integers(len(damaged))]))
        assert frame is None or frame.bits < 256


@pytest.fixture
def shown_to_simplejpeg(monkeypatch):
    """What the decoder that can abort is given, none of which it sees."""
    shown = []

    def spy(encoded, *_, **__):
        shown.append(encoded)
        raise ValueError("not to be decoded")

    for name in ("decode_jpeg", "decode_jpeg_header"):
        monkeypatch.setattr(decode.simplejpeg, name, spy)
    return shown


@pytest.mark.parametrize(
    "frame",
    [
        *map(_frame, RARE),
        _frame(0xC1, bits=12),
        _frame(0xC2, bits=12),
        _frame(0xC3, bits=16),
        _frame(0xC0, components=4),
        _frame(0xC0, components=2),
        _frame(0xDE) + _frame(0xC0),
        _frame(0xC0) + _frame(0xC3),
    ],
)
def test_simplejpeg_is_shown_no_frame_of_a_rare_kind(frame, shown_to_simplejpeg):
    file = SOI + frame + EOI
    for read in (
        lambda: UprightImage(file).decode(0.1),
        lambda: encode_for_storage(file, ImageEncoding(resize=10)),
    ):
        with pytest.raises(UnreadableExampleError):
            read()
    assert not shown_to_simplejpeg


def test_simplejpeg_is_shown_common_ones(shown_to_simplejpeg):
    for file in (_jpeg(), _jpeg(progressive=True), SOI + _frame(0xC1) + EOI):
        image = UprightImage(file)
        assert not shown_to_simplejpeg  # the header is enough
        try:
            image.decode(0.4)
        except UnreadableExampleError:
            assert len(file) < 100  # the one without an image
        assert shown_to_simplejpeg.pop() == file


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("marker", [0xC1, 0xC3, 0xC9, 0xF7])
def test_a_jpeg_that_cannot_be_read_is_called_one_and_by_its_kind(marker, bits):
    file = SOI + _frame(marker, bits) + EOI
    kind = {0xC1: "extended"}.get(marker) or RARE[marker]
    if (marker, bits) == (0xC1, 8):
        expected = "broken image"  # a common kind, and no image in it
    else:
        expected = rf"a JPEG of a kind .* \({kind}, {bits} bits a sample, components: 3\)"
    for read in (decode_image, UprightImage):
        with pytest.raises(UnreadableExampleError, match=expected):
            read(file).decode(1.0) if read is UprightImage else read(file)
    if bits == 12:
        with pytest.raises(UnreadableExampleError, match=expected):
            open_image(file)
