"""A model -> `open_clip_config.json`; the way back is `read_config.py`."""

from typing import Any

from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError
from flaxclip.interop.timm_siglip import TIMM_TOWERS
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.variants import ModelSpec
from flaxclip.models.vision_transformer import ViTConfig


def open_clip_json(spec: ModelSpec) -> dict[str, Any]:
    """The contents of `open_clip_config.json` for a model like `spec`.

    Raises:
        InputError: open_clip cannot build such a model.
    """
    config, preprocess, tokenizer = spec
    text, vision = config.text, config.vision
    vision_activation = getattr(vision, "activation", text.activation)
    quick_gelu = text.activation == "quick_gelu"
    siglip_text = text.family == "siglip"
    if isinstance(vision, ViTConfig) and vision.family == "siglip":
        vision_cfg: dict[str, Any] = _timm_vision(vision)
    elif (vision_activation == "quick_gelu") != quick_gelu:
        raise InputError(
            f"the towers' activations are {vision_activation} and {text.activation}\n"
            "open_clip has one switch, quick_gelu, for both"
        )
    else:
        vision_cfg = _own_vision(vision)
    text_cfg = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        "mlp_ratio": _mlp_ratio(text.width, text.mlp_width),
        "norm_kwargs": {"eps": text.norm_eps},
    }
    if text.activation == "gelu_tanh":
        text_cfg["act_kwargs"] = {"approximate": "tanh"}
    if siglip_text:
        text_cfg |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    if tokenizer.name != "clip":
        # open_clip reads the tokenizer beside this file, whatever the name says.
        text_cfg["hf_tokenizer_name"] = f"flaxclip/{tokenizer.name}"
    if tokenizer.name != "clip" or tokenizer.cleaning is not None:
        cleaning = cleaning_of(tokenizer.name, tokenizer.cleaning)
        clean = None if cleaning is None else NEAREST_CLEANING.get(cleaning, cleaning)
        text_cfg["tokenizer_kwargs"] = {"clean": clean}
    model_cfg = {
        "embed_dim": config.embed_dim,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
        "quick_gelu": quick_gelu,
        "init_logit_scale": config.init_logit_scale,
    }
    if siglip_text:
        model_cfg["custom_text"] = True
    if config.init_logit_bias is not None:
        model_cfg["init_logit_bias"] = config.init_logit_bias
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": {
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize,
        },
    }


NEAREST_CLEANING = {
    "transformers_clip": "lower",
    "transformers_siglip": "canonicalize",
    "transformers_siglip2": "lower",
    "big_vision": "lower",
    "unicode_lower": "lower",
    "none": "whitespace",
}
"""open_clip's nearest to those that it lacks: it always fixes mojibake and squeezes whitespace."""


def _own_vision(vision: ViTConfig | ResNetConfig) -> dict[str, Any]:
    if isinstance(vision, ResNetConfig):
        return {
            "image_size": vision.image_size,
            "layers": list(vision.layers),
            "width": vision.width,
            "patch_size": None,
        }
    fields = {
        "image_size": vision.image_size,
        "layers": vision.layers,
        "width": vision.width,
        "head_width": vision.width // vision.heads,
        "mlp_ratio": _mlp_ratio(vision.width, vision.mlp_width),
        "patch_size": vision.patch_size,
        "norm_kwargs": {"eps": vision.norm_eps},
    }
    if vision.activation == "gelu_tanh":
        fields["act_kwargs"] = {"approximate": "tanh"}
    return fields


def _mlp_ratio(width: int, mlp_width: int) -> float:
    """A ratio that open_clip, which rounds the product down, turns into `mlp_width`."""
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else (mlp_width + 0.5) / width


def _timm_vision(vision: ViTConfig) -> dict[str, Any]:
    for name, tower in TIMM_TOWERS.items():
        if tower == vision:
            return {
                "image_size": vision.image_size,
                "timm_model_name": name,
                "timm_model_pretrained": False,
                "timm_pool": "map",
                "timm_proj": "none",
            }
    raise InputError(
        f"an image tower with attention pooling, {vision.layers} layers of width {vision.width}, "
        f"{vision.activation}, {vision.image_size} px in patches of {vision.patch_size}\n"
        f"open_clip takes such towers from timm by name, which has none of these sizes and this "
        "activation; export to huggingface instead"
    )
