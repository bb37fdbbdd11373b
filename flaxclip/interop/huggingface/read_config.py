"""`config.json` and the processor's files of a transformers directory -> the model in it."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from flaxclip.errors import InputError
from flaxclip.interop.source import Side, Size, parse, read_json
from flaxclip.interop.tokenizer_class import BACKEND, read_tokenizer_class
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.layers import Activation
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import ModelSpec
from flaxclip.models.vision_transformer import ViTConfig

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_Act = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]

PIL_BILINEAR, PIL_BICUBIC = 2, 3


# Fields that transformers leaves out of config.json have these values: those of its classes
# CLIPTextConfig, CLIPVisionConfig, SiglipTextConfig, SiglipVisionConfig and Siglip2VisionConfig.
@dataclasses.dataclass(frozen=True)
class _CLIPText:
    vocab_size: Size = 49408
    hidden_size: Size = 512
    intermediate_size: Size = 2048
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 8
    max_position_embeddings: Size = 77
    hidden_act: _Act = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407


@dataclasses.dataclass(frozen=True)
class _CLIPVision:
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    image_size: Side = 224
    patch_size: Side = 32
    hidden_act: _Act = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class _SiglipText:
    vocab_size: Size = 32000
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    max_position_embeddings: Size = 64
    hidden_act: _Act = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class _SiglipVision:
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    image_size: Side = 224
    patch_size: Side = 16
    hidden_act: _Act = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: Literal[True] = True
    num_patches: Size = 256


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


# Class -> what it does where its file is silent. All lay an image over white, then resize, then
# crop, by the same code.
_PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": {"do_center_crop": True, "crop_size": 224, "resample": PIL_BICUBIC},
    "SiglipImageProcessor": {"do_center_crop": False, "resample": PIL_BICUBIC},
    "Siglip2ImageProcessor": {"do_center_crop": False, "resample": PIL_BILINEAR},
}
_OF_MODEL = {
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip2": "Siglip2ImageProcessor",
}


def read_config(folder: Path) -> tuple[ModelSpec, str]:
    """The model that a directory's `config.json` describes, and its `model_type`.

    Raises:
        InputError: the directory's files describe none of the three models, or not how images
            are prepared for it.
    """
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in ("clip", "siglip", "siglip2"):
        raise InputError(f"{path} is of a model of type {kind!r}\nexpected clip, siglip or siglip2")
    text_type, vision_type = (
        (_CLIPText, _CLIPVision) if kind == "clip" else (_SiglipText, _SiglipVision)
    )

    def tower(kind: type, name: str) -> Any:
        # Old files have the values that count in `text_config_dict`, and stale ones beside them.
        key = f"{name}_dict" if config.get(f"{name}_dict") is not None else name
        return parse(kind, config.get(key) or {}, path, key)

    text, vision = tower(text_type, "text_config"), tower(vision_type, "vision_config")
    image_size = vision.image_size
    if kind == "siglip2":
        image_size = math.isqrt(vision.num_patches) * vision.patch_size
    if kind == "clip" and text.eos_token_id not in (2, text.vocab_size - 1):
        raise InputError(
            f"{path}: text_config.eos_token_id is {text.eos_token_id}\n"
            f"expected the highest id, {text.vocab_size - 1}: captions are read out there"
        )
    family: Literal["clip", "siglip"] = "clip" if kind == "clip" else "siglip"
    embed_dim = vision.hidden_size
    if kind == "clip":
        embed_dim = parse(int, config.get("projection_dim", 512), path, "projection_dim")
    model = CLIPConfig(
        vision=ViTConfig(
            image_size=image_size,
            patch_size=vision.patch_size,
            width=vision.hidden_size,
            layers=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            mlp_ratio=vision.intermediate_size / vision.hidden_size,
            activation=ACTIVATIONS[vision.hidden_act],
            norm_eps=vision.layer_norm_eps,
            family=family,
        ),
        text=TextConfig(
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            mlp_ratio=text.intermediate_size / text.hidden_size,
            activation=ACTIVATIONS[text.hidden_act],
            norm_eps=text.layer_norm_eps,
            family=family,
        ),
        embed_dim=embed_dim,
        **({} if kind == "clip" else {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}),
    )
    tokenizer = _tokenizer(folder, kind, text.vocab_size)
    return ModelSpec(model, _preprocessing(folder, image_size, kind), tokenizer), kind


def _tokenizer(folder: Path, kind: str, vocab_size: int) -> TokenizerConfig:
    """The tokenizer that transformers' `AutoTokenizer` makes."""
    default = {"clip": "CLIPTokenizer", "siglip": "SiglipTokenizer"}.get(kind, "Siglip2Tokenizer")
    name, cleaning, pad = read_tokenizer_class(folder, default)
    # transformers mistrusts what directories of this type say.
    if kind == "siglip2" and name != BACKEND:
        name, cleaning = "Siglip2Tokenizer", "transformers_siglip2"
    if kind == "clip":
        if name not in ("CLIPTokenizer", BACKEND):
            raise InputError(
                f"{folder}: the tokenizer of a model of type clip is a {name}\n"
                "expected a CLIPTokenizer"
            )
        return TokenizerConfig("clip", cleaning="transformers_clip")
    # SigLIP 2 of fixed resolution is of the same type as SigLIP, and has another tokenizer.
    gemma = vocab_size == 256_000 or name in ("Siglip2Tokenizer", "GemmaTokenizer")
    is_2 = gemma or (name == BACKEND and pad == "<pad>")
    return TokenizerConfig("siglip2" if is_2 else "siglip", cleaning=cleaning)


def _preprocessing(folder: Path, image_size: int, kind: str) -> ImageTransform:
    """The preprocessing of images in transformers 5."""
    path, values = _processor_values(folder)
    if kind == "siglip2":
        values = values | {"size": {"height": image_size, "width": image_size}}
    given = {name: value for name, value in values.items() if value is not None}
    processor = parse(_Processor, _defaults(values, kind, path) | given, path)
    if not math.isclose(processor.rescale_factor, 1 / 255, rel_tol=1e-4):
        raise InputError(
            f"{path}: rescale_factor is {processor.rescale_factor}\nexpected 1 / 255: pixels "
            "between 0 and 1 before mean and deviation"
        )
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


def _defaults(values: dict[str, Any], kind: str, path: Path) -> dict[str, Any]:
    """The default settings of the image processor that `values` names."""
    field = next(
        (f for f in ("image_processor_type", "feature_extractor_type") if values.get(f)), ""
    )
    name = str(values.get(field) or _OF_MODEL[kind]).replace("FeatureExtractor", "ImageProcessor")
    name = name.removesuffix("Fast").removesuffix("Pil")
    if name not in _PROCESSORS:
        raise InputError(
            f"{path}: {field} is {values[field]!r}\n"
            f"flaxclip prepares images as {', '.join(_PROCESSORS)} do"
        )
    return _PROCESSORS[name]
