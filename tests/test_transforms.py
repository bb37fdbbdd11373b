import io
import pathlib
import resource
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest

from flaxclip.api import CLIPModel
from flaxclip.data.images.eval_transform import SizedTransform, preprocess
from flaxclip.data.images.open_image import decode_image
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import ImageTransform
from flaxclip.models.spec import ModelSpec
from flaxclip.models.vision_transformer import ViTConfig

GOLDEN = pathlib.Path(__file__).parent / "golden" / "transforms.npz"
SIZE = 16  # as in tests/parity/transforms_reference.py


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def _file(image: PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, channels), dtype=np.uint8)


KINDS = (
    "wide", "tall", "small", "transparent", "grey", "palette", "grey alpha", "palette, one clear",
    "palette, alphas", "grey, one clear", "1 bit", "CMYK",
)  # fmt: skip
TRANSFORMERS = {"transparency": "white", "crop_rounding": "down"}


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("name", KINDS)
def test_evaluation_transform_is_pixel_exact_to_open_clips(golden, name, mode):
    out = preprocess(golden[f"{name}/file"].tobytes(), SizedTransform(SIZE, ImageTransform(mode)))
    np.testing.assert_array_equal(out, golden[f"{name}/{mode}"])


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("name", KINDS)
def test_evaluation_transform_is_pixel_exact_to_that_of_transformers(golden, name, mode, recwarn):
    file, transform = (
        golden[f"{name}/file"].tobytes(),
        SizedTransform(SIZE, ImageTransform(mode, **TRANSFORMERS)),
    )
    expected = golden[f"{name}/{mode} of transformers"]
    np.testing.assert_array_equal(preprocess(file, transform), expected)
    image = PIL.Image.open(io.BytesIO(file))
    np.testing.assert_array_equal(preprocess(image, transform), expected)
    assert not recwarn.list


def test_the_centre_crop_begins_where_each_family_begins_it():
    """A margin of 79: torchvision's half of it is 40, that of transformers 39."""
    ramp = np.repeat(np.arange(224 + 79, dtype=np.uint8)[None, :, None], 224, 0).repeat(3, 2)
    starts = {
        rounding: preprocess(ramp, SizedTransform(224, ImageTransform(crop_rounding=rounding)))[
            0, 0, 0
        ]
        for rounding in ("even", "down")
    }
    assert starts == {"even": 40, "down": 39}


def test_a_models_transform_is_what_its_configuration_says():
    how = ImageTransform("squash", "bilinear", "white", "down")
    spec = ModelSpec(CLIPConfig(vision=ViTConfig(image_size=64, patch_size=32)), how)
    assert CLIPModel(spec, {}).transform == SizedTransform(64, how)


def test_16_bit_grey_that_stands_for_transparency_becomes_white_alone():
    values = np.array([[0x1234, 0x1235], [0x5600, 0x1234]], np.uint16)
    file = _file(PIL.Image.fromarray(values), transparency=0x1234)
    out = preprocess(file, SizedTransform(2, ImageTransform(transparency="white")))
    assert out[..., 0].tolist() == [[255, 0x12], [0x56, 255]]


def test_bytes_pixels_and_pillow_images_give_the_same():
    pixels, transform = _noise(31, 47), SizedTransform(SIZE)
    image = PIL.Image.fromarray(pixels)
    expected = preprocess(_file(image), transform)
    np.testing.assert_array_equal(preprocess(pixels, transform), expected)
    np.testing.assert_array_equal(preprocess(image, transform), expected)


def test_pixels_of_the_target_size_pass_through_uncopied():
    pixels = _noise(SIZE, SIZE)
    assert preprocess(pixels, SizedTransform(SIZE)) is pixels
    assert preprocess(pixels, SizedTransform(SIZE, ImageTransform("squash"))) is pixels


def test_16_bit_greyscale_keeps_its_high_byte():
    values = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    out = preprocess(_file(PIL.Image.fromarray(values)), SizedTransform(SIZE))
    np.testing.assert_array_equal(out, np.repeat((values >> 8).astype(np.uint8)[..., None], 3, -1))


def test_the_first_frame_of_an_animation_is_taken():
    frames = [PIL.Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue", "lime")]
    file = _file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert preprocess(file, SizedTransform(SIZE))[0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_ignored():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = PIL.Image.fromarray(_noise(20, 40))
    turned = preprocess(_file(image, "JPEG", exif=exif), SizedTransform(SIZE))
    np.testing.assert_array_equal(turned, preprocess(_file(image, "JPEG"), SizedTransform(SIZE)))


def test_cmyk_and_transparency_yield_rgb_without_a_warning(recwarn):
    image = PIL.Image.fromarray(_noise(20, 40))
    palette = image.quantize(16)
    for file in (
        _file(image.convert("CMYK"), "JPEG"),
        _file(palette, transparency=bytes(range(16))),
        _file(palette, transparency=1),
        _file(PIL.Image.fromarray(_noise(20, 40, 4))),
        _file(image.convert("LA")),
        _file(image.convert("1")),
    ):
        assert preprocess(file, SizedTransform(SIZE)).shape == (SIZE, SIZE, 3)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "empty image file"),
        (b"<!DOCTYPE html><html>", "starts with b'<!DOCTYPE html><"),
        (_file(PIL.Image.fromarray(_noise(50, 50)), "JPEG")[:900], "broken image: OSError"),
        (_file(PIL.Image.fromarray(_noise(50, 50)))[:-600], "broken image"),
        (_file(PIL.Image.fromarray(_noise(50, 50)), "WEBP")[:-600], "broken image"),
        (_file(PIL.Image.new("F", (9, 9)), "TIFF"), "conversion to RGB from pixel mode F"),
        (_file(PIL.Image.new("LAB", (9, 9)), "TIFF"), "conversion to RGB from pixel mode LAB"),
    ],
    ids=["empty", "HTML", "cut JPEG", "cut PNG", "cut WebP", "float TIFF", "LAB TIFF"],
)
def test_broken_files_are_unreadable_with_a_reason(file, reason):
    with pytest.raises(UnreadableExampleError, match=reason):
        decode_image(file)


def _png_of_zeros(height: int, width: int) -> bytes:
    """Written row by row: Pillow would hold the image, and hide the peak that is looked for."""
    rows = zlib.compressobj(1)
    pixels = b"".join(rows.compress(bytes(1 + width)) for _ in range(height)) + rows.flush()
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", pixels),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_before_they_take_memory():
    """100 megapixels in PNG, and a hair that `shortest` would blow up to 15 gigapixels."""
    bomb = _png_of_zeros(10_000, 10_000)
    assert len(bomb) < 2**20
    hair = _file(PIL.Image.new("RGB", (1, 300_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableExampleError, match="10000 × 10000 pixels, more than the limit"):
        decode_image(bomb)
    with pytest.raises(UnreadableExampleError, match="224 × 67200000 pixels"):
        preprocess(hair, SizedTransform(224))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32 * 1024 * (1024 if sys.platform == "darwin" else 1)  # 32 MiB; KiB on Linux


@pytest.mark.filterwarnings("ignore:Tag data larger", "ignore:Truncated File Read")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_damaged_files_never_raise_anything_but_unreadable(kind):
    good = _file(PIL.Image.fromarray(_noise(24, 31)), kind)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(good)
        for position in rng.integers(0, len(good), rng.integers(1, 6)):
            damaged[position] = rng.integers(256)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        try:
            out = preprocess(bytes(damaged), SizedTransform(SIZE))
        except UnreadableExampleError:
            continue
        assert out.shape == (SIZE, SIZE, 3)
