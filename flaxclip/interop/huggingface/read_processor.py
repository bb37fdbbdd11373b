"""The image processor's file of a transformers directory -> how its model's images are prepared."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from flaxclip.errors import InputError
from flaxclip.interop.source import Side, Size, parse, read_json
from flaxclip.models.inputs import ImageTransform

PIL_BILINEAR, PIL_BICUBIC = 2, 3


@dataclasses.dataclass(frozen=True)
class _Processor:
    """The settings of the image processors in `_PROCESSORS`."""

    size: dict[str, int] | int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    resample: Literal[2, 3]
    do_center_crop: bool
    crop_size: dict[str, int] | int | None = None
    do_resize: Literal[True] = True
    do_normalize: Literal[True] = True
    do_rescale: Literal[True] = True
    rescale_factor: float = 1 / 255
    do_pad: Literal[False] = False
    # CLIP's resizes to squares then, whatever `size` says.
    use_square_size: Literal[False] = False


@dataclasses.dataclass(frozen=True)
class _NativeProcessor:
    """The settings of `Siglip2ImageProcessor`, whose images keep their aspect ratio."""

    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resample: Literal[2, 3] = 2
    patch_size: Side = 16
    max_num_patches: Size = 256
    do_resize: Literal[True] = True
    do_normalize: Literal[True] = True
    do_rescale: Literal[True] = True
    rescale_factor: float = 1 / 255


# Class -> what it does where its file is silent. All lay an image over white, then resize, then
# crop, by the same code.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {"do_center_crop": True, "crop_size": 224, "resample": PIL_BICUBIC},
    "SiglipImageProcessor": {"do_center_crop": False, "resample": PIL_BICUBIC},
    "Tipsv2ImageProcessor": {
        "do_center_crop": False,
        "resample": PIL_BILINEAR,
        "size": {"height": 448, "width": 448},
        "do_normalize": False,
    },
}
_UNNORMALISED = {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3, "do_normalize": True}
_NATIVE = "Siglip2ImageProcessor"
PROCESSOR_OF = {
    "clip": "CLIPImageProcessor",
    "metaclip_2": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip2": _NATIVE,
    "tipsv2": "Tipsv2ImageProcessor",
}
"""By the model's `model_type`."""


def read_native_preprocessing(folder: Path, patch_size: int) -> ImageTransform:
    """The preprocessing of images that keep their aspect ratio.

    Raises:
        InputError: the directory does not say it, or it is not for a model with such patches.
    """
    path, values = _processor_values(folder)
    name = _class_name(values, "siglip2", path)
    if name != _NATIVE:
        raise InputError(f"{path} is of a {name}\na model of type siglip2 needs a {_NATIVE}")
    given = {key: value for key, value in values.items() if value is not None}
    processor = parse(_NativeProcessor, given, path)
    _check_rescaling(processor.rescale_factor, path)
    if processor.patch_size != patch_size:
        raise InputError(
            f"{path}: patch_size is {processor.patch_size}\n"
            f"expected {patch_size}, as in config.json: the weights have learned such patches"
        )
    return ImageTransform(
        "native",
        "bicubic" if processor.resample == PIL_BICUBIC else "bilinear",
        transparency="white",
        crop_rounding="down",
        mean=processor.image_mean,
        std=processor.image_std,
        max_patches=processor.max_num_patches,
    )


def _check_rescaling(factor: float, path: Path) -> None:
    if not math.isclose(factor, 1 / 255, rel_tol=1e-4):
        raise InputError(
            f"{path}: rescale_factor is {factor}\nexpected 1 / 255: pixels "
            "between 0 and 1 before mean and deviation"
        )


def read_preprocessing(folder: Path, image_size: int, kind: str) -> ImageTransform:
    """The preprocessing of images in transformers 5, for a model of type `kind`.

    Raises:
        InputError: the directory does not say it, or it makes no squares of `image_size`.
    """
    path, values = _processor_values(folder)
    given = {name: value for name, value in values.items() if value is not None}
    name = _class_name(values, kind, path)
    if name == _NATIVE:
        raise InputError(f"{path} is of a {name}\nonly models of type siglip2 take its patches")
    settings = _PROCESSORS[name] | given
    if name == "Tipsv2ImageProcessor" and settings["do_normalize"] is False:
        settings |= _UNNORMALISED
    processor = parse(_Processor, settings, path)
    _check_rescaling(processor.rescale_factor, path)
    size = {"shortest_edge": processor.size} if isinstance(processor.size, int) else processor.size
    crop = processor.crop_size
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    square = {"height": image_size, "width": image_size}
    crops = processor.do_center_crop
    if size == {"shortest_edge": image_size} and crops and crop == square:
        resize: Literal["shortest", "squash"] = "shortest"
    elif size == square and (not crops or crop == square):
        resize = "squash"
    else:
        raise InputError(
            f"{path}: size {processor.size}, crop_size {processor.crop_size}, do_center_crop "
            f"{processor.do_center_crop} do not make squares of the model's {image_size} pixels\n"
            f"expected the shortest edge resized to {image_size} and the centre cut out, or both "
            "sides resized"
        )
    return ImageTransform(
        resize,
        "bicubic" if processor.resample == PIL_BICUBIC else "bilinear",
        transparency="white",
        crop_rounding="down",
        mean=processor.image_mean,
        std=processor.image_std,
    )


def _processor_values(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's settings and their file, searched in transformers' order."""
    path = folder / "processor_config.json"
    if path.is_file() and "image_processor" in (whole := read_json(path)):
        return path, parse(dict, whole["image_processor"], path, "image_processor")
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return path, read_json(path)
    raise InputError(
        f"{folder} has no preprocessor_config.json, nor a processor_config.json with an "
        "image_processor\n"
        "without it, size, mean and deviation of the images that the model was trained with are "
        "not known: copy it from where the weights are from"
    )


def _class_name(values: dict[str, Any], kind: str, path: Path) -> str:
    """The class of the image processor that `values` names, or that such a model has."""
    field = next(
        (f for f in ("image_processor_type", "feature_extractor_type") if values.get(f)), ""
    )
    name = str(values.get(field) or PROCESSOR_OF[kind]).replace(
        "FeatureExtractor", "ImageProcessor"
    )
    name = name.removesuffix("Fast").removesuffix("Pil")
    known = (*_PROCESSORS, _NATIVE)
    if name not in known:
        raise InputError(
            f"{path}: {field} is {values[field]!r}\n"
            f"flaxclip prepares images as {', '.join(known)} do"
        )
    return name
