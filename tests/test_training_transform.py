import io
import math
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import pytest

from flaxclip.data.images import resize
from flaxclip.data.images.decode import UprightImage
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig, sample_crop, transform_for_training
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.models.inputs import ImageTransform
from tests.parity.images import photographs

GOLDEN = pathlib.Path(__file__).parent / "golden" / "transforms.npz"
SIZE = 16  # as in tests/parity/transforms_reference.py
CROP = AugmentConfig()
WHOLE = AugmentConfig(crop_scale=None)


def _file(image: PIL.Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (height, width, channels), dtype=np.uint8)


def _smooth(height: int, width: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(_noise(3, 4)).resize((width, height), PIL.Image.Resampling.BICUBIC)


def _transform(image, augment=CROP, size=SIZE, seed=0, resize="shortest"):
    transform = SizedTransform(size, ImageTransform(resize))
    return transform_for_training(image, transform, augment, np.random.default_rng(seed))


def _whole(image) -> np.ndarray:
    return UprightImage(image).decode(1.0)[0]


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return np.abs(ours.astype(int) - theirs.astype(int)).mean()


def _crop_by_pillow(file: bytes, seed: int, size: int) -> np.ndarray:
    image = PIL.Image.open(io.BytesIO(file)).convert("RGB")
    top, left, height, width = sample_crop(
        image.height, image.width, np.random.default_rng(seed), (0.9, 1.0), (3 / 4, 4 / 3)
    )
    crop = image.crop((left, top, left + width, top + height))
    return np.asarray(crop.resize((size, size), PIL.Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", ["wide", "tall"])
def test_the_crop_is_torchvisions_at_the_same_place(monkeypatch, name):
    with np.load(GOLDEN) as golden:
        file, place, expected = (golden[f"{name}/{x}"] for x in ("file", "crop_box", "crop"))
    monkeypatch.setattr(
        "flaxclip.data.images.train_transform.sample_crop", lambda *_: tuple(place.tolist())
    )
    ours = _transform(file.tobytes())
    assert _difference(ours, expected) < 0.5


def _photographs_as_jpegs(width: int, height: int) -> dict[str, bytes]:
    """Real ones, enlarged at most to twice their size."""
    files = {}
    for path in photographs():
        with PIL.Image.open(path) as image:
            if path.suffix == ".jpg" and min(image.width / width, image.height / height) > 0.5:
                fitted = PIL.ImageOps.fit(image.convert("RGB"), (width, height))
                files[path.name] = _file(fitted, "JPEG", quality=90)
    assert len(files) >= 2
    return files


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(384, 320, 1.0), (680, 660, 0.5), (1024, 768, 0.5)],
)
def test_photographs_are_within_2_grey_levels_of_pillows_bicubic(width, height, scale):
    for seed, (name, file) in enumerate(_photographs_as_jpegs(width, height).items()):
        assert UprightImage(file).decode(1.4 * 224 / height)[1] == scale
        ours = _transform(file, size=224, seed=seed)
        assert _difference(ours, _crop_by_pillow(file, seed, 224)) < 2, name


def test_reduced_decoding_keeps_the_place():
    """An offset of half a pixel in the result would be 4 levels of this ramp."""
    ramp = np.repeat(np.linspace(0, 255, 1600)[None, :, None], 1600, 0).repeat(3, 2)
    file = _file(PIL.Image.fromarray(ramp.astype(np.uint8)), "JPEG", quality=95)
    for seed in range(10):
        ours = _transform(file, AugmentConfig(crop_scale=(0.3, 0.9)), size=32, seed=seed)
        _, left, _, width = sample_crop(
            1600, 1600, np.random.default_rng(seed), (0.3, 0.9), (3 / 4, 4 / 3)
        )
        centres = left + (np.arange(32) + 0.5) * width / 32
        expected = np.interp(centres - 0.5, np.arange(1600), ramp[0, :, 0])
        assert np.abs(ours[16, 2:-2, 0] - expected[2:-2]).max() < 1.5


def test_pillow_resizes_alike_where_the_fast_resizer_is_not_installed(monkeypatch):
    pixels = np.asarray(_smooth(90, 70))
    for interpolation in ("bicubic", "bilinear"):
        arguments = pixels, (3.5, 2.25, 66.0, 80.5), 24, interpolation
        fast = resize.resize_part(*arguments)
        with monkeypatch.context() as patch:
            patch.setattr(resize, "cykooz_resizer", None)
            assert _difference(fast, resize.resize_part(*arguments)) < 0.5


def _fast_and_pillows(pixels, interpolation):
    box = (0, 0, pixels.shape[1], pixels.shape[0])
    fast = resize.resize_part(pixels, box, 224, interpolation)
    pillow = resize.resize_with_pillow(pixels, box, 224, interpolation)
    return np.abs(fast.astype(int) - pillow)


def test_the_fast_resizer_is_as_far_from_pillow_as_its_docstring_says():
    if resize.cykooz_resizer is None:
        pytest.skip("no fast resizer here")
    for name, file in _photographs_as_jpegs(640, 427).items():
        pixels = np.asarray(PIL.Image.open(io.BytesIO(file)))
        bicubic = _fast_and_pillows(pixels, "bicubic")
        assert bicubic.mean() < 0.25, name
        assert 1 < bicubic.max() <= 7, name
        assert _fast_and_pillows(pixels, "bilinear").max() == 1, name
    noise = np.random.default_rng(0).integers(0, 2, (100, 100, 3), np.uint8) * np.uint8(255)
    assert 25 < _fast_and_pillows(noise, "bicubic").max() <= 29
    assert _fast_and_pillows(noise, "bilinear").max() == 1


@pytest.mark.parametrize("crop_scale", [None, (0.9, 1.0), (0.08, 1.0)])
def test_no_crop_is_wider_than_the_pixels_by_a_rounding_error(crop_scale):
    """cykooz.resizer raises RuntimeError for one."""
    rng = np.random.default_rng(0)
    augment = AugmentConfig(crop_scale=crop_scale)
    for seed in range(300):
        height, width = rng.integers(1, 400, 2)
        file = _file(PIL.Image.new("RGB", (int(width), int(height))), "JPEG")
        for mode in ("shortest", "squash"):
            assert _transform(file, augment, seed=seed, resize=mode).shape == (16, 16, 3)


def test_examples_depend_on_the_generator_alone():
    pixels = np.asarray(_smooth(40, 45))
    augment = AugmentConfig((0.5, 1.0), flip=0.5, color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.2)
    first, again, other = (_transform(pixels, augment, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("height", "width"), [(480, 640), (30, 400), (400, 30), (1, 1), (5, 7)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0)])
def test_crops_lie_inside_the_image_and_have_the_asked_shape(height, width, scale):
    rng = np.random.default_rng(0)
    for _ in range(200):
        top, left, crop_height, crop_width = sample_crop(height, width, rng, scale, (3 / 4, 4 / 3))
        assert 0 <= top <= top + crop_height <= height
        assert 0 <= left <= left + crop_width <= width
        if min(height, width) > 20:  # smaller ones round to coarser ratios
            assert 0.7 < crop_width / crop_height < 1.4


def test_a_whole_square_is_cropped_to_itself():
    pixels = _noise(SIZE, SIZE)
    assert np.shares_memory(_transform(pixels, WHOLE), pixels)
    out = _transform(pixels, AugmentConfig((1.0, 1.0), (1.0, 1.0)))
    np.testing.assert_array_equal(out, pixels)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_without_a_crop_training_sees_what_evaluation_does(resize):
    image = _smooth(60, 91)
    expected = np.asarray(
        image.resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC)
        if resize == "squash"
        else image.crop((15, 0, 76, 60)).resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC)
    )
    assert _difference(_transform(_file(image), WHOLE, resize=resize), expected) < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    file = _file(_smooth(33, 58), kind, exif=exif)
    image = UprightImage(file)
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(file))))
    assert (image.height, image.width) == expected.shape[:2]
    assert _difference(_whole(file), expected) < 1  # two JPEG decoders may round apart
    assert image.decode(0.5)[0].shape[:2] in (expected.shape[:2], (17, 29), (29, 17))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_no_reason_to_drop_a_image():
    file = _file(_smooth(33, 58), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert _whole(file).shape == (33, 58, 3)


def test_transparency_is_laid_over_white_and_leaves_no_warning(recwarn):
    hidden = np.zeros((20, 20, 4), np.uint8)  # black under full transparency
    hidden[:, 10:] = (200, 0, 0, 255)
    palette = PIL.Image.new("P", (20, 20), 1)
    palette.putpalette([255, 0, 0, 0, 0, 0])
    grey = np.dstack([np.zeros((20, 20), np.uint8)] * 2)
    for file in (
        _file(PIL.Image.fromarray(hidden)),
        _file(PIL.Image.fromarray(hidden), "WEBP", lossless=True),
        _file(palette, transparency=1),
        _file(palette, transparency=bytes([255, 0])),
        _file(PIL.Image.fromarray(grey, "LA")),
        _file(PIL.Image.new("RGB", (20, 20)), transparency=(0, 0, 0)),
        _file(palette, "GIF", transparency=1),
    ):
        assert _whole(file)[0, 0].tolist() == [255, 255, 255]
    assert _whole(_file(PIL.Image.fromarray(hidden)))[0, 15].tolist() == [200, 0, 0]
    assert not recwarn.list


def test_every_mode_becomes_the_rgb_that_pillow_makes():
    image = _smooth(30, 44)
    frames = [image, image.rotate(180)]
    for file in (
        _file(image.convert("L"), "JPEG"),
        _file(image.convert("CMYK"), "JPEG"),
        _file(image, "JPEG", progressive=True),
        _file(image, "JPEG", keep_rgb=True),
        _file(image.quantize(16)),
        _file(image.convert("1")),
        _file(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        _file(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
    ):
        expected = np.asarray(PIL.Image.open(io.BytesIO(file)).convert("RGB"))
        assert _difference(_whole(file), expected) < 1
    deep = np.linspace(0, 65535, 900).astype(np.uint16).reshape(30, 30)
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(_whole(_file(PIL.Image.fromarray(deep))), expected)


def test_flips_jitter_and_greyscale_happen_as_often_as_asked():
    pixels = np.asarray(_smooth(SIZE, SIZE))
    for augment, changed in (
        (AugmentConfig(None, flip=0.25), lambda out: np.array_equal(out, pixels[:, ::-1])),
        (AugmentConfig(None, grayscale=0.25), lambda out: (np.ptp(out, axis=-1) == 0).all()),
        (
            AugmentConfig(None, color_jitter=(0, 0, 0, 0.5), color_jitter_probability=0.25),
            lambda out: _difference(out, pixels) > 3,
        ),
    ):
        outs = [_transform(pixels, augment, seed=seed) for seed in range(400)]
        share = np.mean([changed(out) for out in outs])
        assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)
        untouched = np.mean([np.array_equal(out, pixels) for out in outs])
        assert 0.6 < untouched < 0.9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("crop_ratio", (2.0, 1.0)),
        ("flip", 1.5),
        ("grayscale", -0.1),
        ("color_jitter", (0.4, 0.4, 0.4, 0.6)),
    ],
)
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=rf"augment.{field} is .*\nexpected"):
        AugmentConfig(**{field: value})


@pytest.mark.parametrize("cut", [40, 300, 900])
def test_cut_jpegs_are_unreadable_not_grey(cut):
    file = _file(PIL.Image.fromarray(_noise(50, 50)), "JPEG")
    with pytest.raises(UnreadableExampleError, match=r"broken image|starts with"):
        _transform(file[:cut])


def test_a_jpeg_bomb_is_refused_by_its_header():
    file = bytearray(_file(_smooth(8, 8), "JPEG"))
    at = file.index(b"\xff\xc0") + 5
    file[at : at + 4] = (20_000).to_bytes(2) * 2
    with pytest.raises(UnreadableExampleError, match="20000 × 20000 pixels, more than the limit"):
        _transform(bytes(file))


@pytest.mark.filterwarnings("ignore:Tag data larger", "ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_files_never_raise_anything_but_unreadable(kind):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    good = _file(PIL.Image.fromarray(_noise(24, 31)), kind, exif=exif)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(good)
        for position in rng.integers(0, len(good), rng.integers(1, 6)):
            damaged[position] = rng.integers(256)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        try:
            out = _transform(bytes(damaged))
        except UnreadableExampleError:
            continue
        assert out.shape == (SIZE, SIZE, 3)


def test_a_jitter_of_brightness_alone_changes_nothing_else():
    pixels = np.random.default_rng(4).integers(0, 256, (64, 64, 3), np.uint8)
    augment = AugmentConfig(None, color_jitter=(0.4, 0.0, 0.0, 0.0))
    ours = transform_for_training(pixels, SizedTransform(64), augment, np.random.default_rng(0))
    replay = np.random.default_rng(0)
    replay.random()
    replay.permutation(4)
    brightness = PIL.ImageEnhance.Brightness(PIL.Image.fromarray(pixels))
    np.testing.assert_array_equal(ours, np.asarray(brightness.enhance(replay.uniform(0.6, 1.4))))
