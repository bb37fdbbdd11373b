"""Pixels equal to torchvision's and open_clip's, on photographs and on every kind of file.

pip install open_clip_torch torchvision scikit-image scikit-learn
python -m pytest tests/parity/test_transforms_live.py
"""

import io

import numpy as np
import PIL.Image
import pytest

from flaxclip.data.images.eval_transform import SizedTransform, preprocess
from flaxclip.data.images.train_transform import AugmentConfig, sample_crop, transform_for_training
from flaxclip.models.inputs import OPENAI_MEAN, OPENAI_STD, ImageTransform
from flaxclip.models.variants import VARIANTS
from tests.parity.images import kinds_of_file, photographs, photographs_and_pieces, saved

torch = pytest.importorskip("torch", reason="torch is a peer, not a requirement")
torchvision = pytest.importorskip("torchvision", reason="torchvision is a peer, not a requirement")
open_clip_transform = pytest.importorskip("open_clip.transform", reason="open_clip is a peer")


def _open_clip(file: io.BytesIO, size: int, mode: str, interpolation: str) -> np.ndarray:
    transform = open_clip_transform.image_transform(
        size, is_train=False, resize_mode=mode, interpolation=interpolation
    )
    image = PIL.Image.open(file)
    for step in transform.transforms[:-2]:  # without MaybeToTensor and Normalize
        image = step(image)
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_photographs_come_out_of_the_evaluation_transform_equal_to_open_clips(mode, interpolation):
    paths = photographs()
    if len(paths) < 30:
        pytest.skip(f"only {len(paths)} images: scikit-image and scikit-learn are not installed")
    for path in paths:
        for size in (64, 224, 337):
            transform = SizedTransform(size, ImageTransform(mode, interpolation))
            ours = preprocess(path.read_bytes(), transform)
            theirs = _open_clip(io.BytesIO(path.read_bytes()), size, mode, interpolation)
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{path.name} at {size}")


def _families() -> dict[str, tuple[int, ImageTransform]]:
    """Each family of image towers with each of its transforms, at the smallest size that it has."""
    found: dict[str, tuple[int, ImageTransform]] = {}
    for spec in sorted(VARIANTS.values(), key=lambda spec: spec.model.vision.image_size):
        vision, how = spec.model.vision, spec.preprocess
        if how.resize == "native":  # see test_naflex_open_clip_live.py
            continue
        kind = getattr(vision, "family", type(vision).__name__)
        middle = "0.5" if how.mean == (0.5, 0.5, 0.5) else f"{how.mean[0]:.2f}"
        found.setdefault(
            f"{kind}, {how.resize}, {how.interpolation}, mean {middle}", (vision.image_size, how)
        )
    return found


FAMILIES = _families()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_sees_30_photographs_as_in_open_clip(family):
    size, how = FAMILIES[family]
    transform = open_clip_transform.image_transform(
        size, is_train=False, mean=how.mean, std=how.std, resize_mode=how.resize,
        interpolation=how.interpolation,
    )  # fmt: skip
    images = photographs_and_pieces(30)
    assert len(images) >= 30
    for name, image in images:
        image = image.convert("RGB")
        ours = preprocess(image, SizedTransform(size, how))
        theirs = transform(image).numpy().transpose(1, 2, 0) * how.std + how.mean
        np.testing.assert_array_equal(ours, np.rint(theirs * 255), err_msg=name)
        np.testing.assert_allclose(ours / 255, theirs, rtol=0, atol=1e-6, err_msg=name)


# Weights whose images are prepared otherwise than those of all others of their names.
ALONE = {
    ("ViT-L-14", "laion2b_s32b_b82k"), ("ViT-H-14", "dfn5b"), ("ViT-H-14-quickgelu", "dfn5b"),
}  # fmt: skip


def test_named_models_prepare_images_as_their_published_weights_do():
    pretrained = pytest.importorskip("open_clip.pretrained", reason="open_clip is a peer")
    different, count = set(), 0
    for name, spec in VARIANTS.items():
        ours = spec.preprocess
        for tag in pretrained.list_pretrained_tags_by_model(name):
            config = pretrained.get_pretrained_cfg(name, tag)
            theirs = ImageTransform(
                config.get("resize_mode") or "shortest",
                config.get("interpolation") or "bicubic",
                mean=tuple(config.get("mean") or OPENAI_MEAN),
                std=tuple(config.get("std") or OPENAI_STD),
            )
            count += 1
            if theirs != ours:
                different.add((name, tag))
    assert count > 150
    assert different == ALONE


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # open_clip's side
@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("kind", kinds_of_file())
def test_every_kind_of_file_comes_out_equal_to_open_clips(kind, mode):
    file = kinds_of_file()[kind]
    for size in (64, 151, 224):  # 151: already the shortest side
        ours = preprocess(file, SizedTransform(size, ImageTransform(mode)))
        np.testing.assert_array_equal(ours, _open_clip(io.BytesIO(file), size, mode, "bicubic"))


def test_odd_sizes_round_as_torchvision_does():
    rng = np.random.default_rng(2)
    for _ in range(300):
        height, width = rng.integers(1, 90, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        size = int(rng.integers(8, 40))
        file = io.BytesIO(saved(PIL.Image.fromarray(pixels), "PNG"))
        theirs = _open_clip(file, size, "shortest", "bicubic")
        np.testing.assert_array_equal(preprocess(pixels, SizedTransform(size)), theirs)


def test_training_crops_are_within_2_grey_levels_of_torchvisions_at_the_same_place():
    functional = torchvision.transforms.functional
    for number, path in enumerate(photographs()):
        rng = np.random.default_rng(number)
        image = PIL.Image.open(path)
        if image.has_transparency_data:  # open_clip drops it, training lays it over white
            continue
        ours = transform_for_training(path.read_bytes(), SizedTransform(224), AugmentConfig(), rng)
        image = image.convert("RGB")
        place = sample_crop(
            image.height, image.width, np.random.default_rng(number), (0.9, 1.0), (3 / 4, 4 / 3)
        )
        bicubic = torchvision.transforms.InterpolationMode.BICUBIC
        theirs = np.asarray(functional.resized_crop(image, *place, [224, 224], bicubic))
        assert np.abs(ours.astype(int) - theirs.astype(int)).mean() < 2, path.name


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation", "hue", "grayscale"])
def test_colours_change_as_torchvisions_do_for_the_same_factor(change):
    functional = torchvision.transforms.functional
    rng = np.random.default_rng(4)
    pixels = np.asarray(
        PIL.Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).resize((64, 64))
    )
    image = PIL.Image.fromarray(pixels)
    names = ("brightness", "contrast", "saturation", "hue")
    for seed in range(20):
        ours = np.random.default_rng(seed)
        if change == "grayscale":
            augment = AugmentConfig(None, grayscale=1.0)
            theirs = functional.rgb_to_grayscale(image, 3)
        else:
            strength = [0.4 if name == change else 0.0 for name in names]
            augment = AugmentConfig(None, color_jitter=tuple(strength))
            replay = np.random.default_rng(seed)
            replay.random()
            replay.permutation(4)
            middle = 0.0 if change == "hue" else 1.0
            factor = replay.uniform(middle - 0.4, middle + 0.4)
            theirs = getattr(functional, f"adjust_{change}")(image, factor)
        out = transform_for_training(pixels, SizedTransform(64), augment, ours)
        np.testing.assert_array_equal(out, np.asarray(theirs))


@pytest.mark.parametrize("height_width", [(480, 640), (300, 300), (200, 900), (1000, 300), (5, 7)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.08, 1.0)])
def test_training_crops_are_distributed_as_torchvisions(height_width, scale):
    """Two-sample Kolmogorov-Smirnov distance below its value at p = 1e-4, for 4,000 against 4,000.

    No test of scipy's is used, so that the peers' environment need not have it.
    """
    draws, ratio = 4000, (3 / 4, 4 / 3)
    rng = np.random.default_rng(3)
    torch.manual_seed(3)
    image = torch.zeros(3, *height_width)
    get_params = torchvision.transforms.RandomResizedCrop.get_params
    ours = np.array([sample_crop(*height_width, rng, scale, ratio) for _ in range(draws)])
    theirs = np.array([get_params(image, scale, ratio) for _ in range(draws)])
    critical = np.sqrt(-np.log(1e-4 / 2) / 2) * np.sqrt(2 / draws)
    for column in range(4):
        grid = np.unique(np.concatenate([ours[:, column], theirs[:, column]]))
        ours_cdf = np.searchsorted(np.sort(ours[:, column]), grid, "right") / draws
        theirs_cdf = np.searchsorted(np.sort(theirs[:, column]), grid, "right") / draws
        assert np.abs(ours_cdf - theirs_cdf).max() < critical
