"""A model -> `open_clip_config.json`; the way back is `read_config.py`."""

import dataclasses
import math
from typing import Any

from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError
from flaxclip.interop.open_clip.hf_text import write_tower
from flaxclip.interop.open_clip.names import OWN_FAMILIES, TEXT_FAMILIES, has_custom_text
from flaxclip.interop.text_trunks.registry import HF_TRUNKS
from flaxclip.interop.trunks.registry import TIMM_TRUNKS, trunk_of
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.models.vision_transformer import ViTConfig


def open_clip_json(spec: ModelSpec) -> dict[str, Any]:
    """The contents of `open_clip_config.json` for a model like `spec`.

    Raises:
        InputError: open_clip cannot build such a model.
    """
    config, preprocess, tokenizer = spec
    text, vision = config.text, config.vision
    native = preprocess.resize == "native"
    vision_activation = getattr(vision, "activation", text.activation)
    # Of towers of transformers it says nothing.
    switched = vision_activation if text.family in HF_TRUNKS else text.activation
    quick_gelu = switched == "quick_gelu"
    if native or trunk_of(vision) is not None:
        vision_cfg: dict[str, Any] = _timm_vision(vision, native)
        if native:
            vision_cfg |= _native_sizes(preprocess.max_patches or vision.grid**2, vision.patch_size)
    elif (vision_activation == "quick_gelu") != quick_gelu:
        raise InputError(
            f"the towers' activations are {vision_activation} and {text.activation}\n"
            "open_clip has one switch, quick_gelu, for both"
        )
    else:
        vision_cfg = _own_vision(vision)
    text_cfg: dict[str, Any] = {
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
    if text.family in HF_TRUNKS:
        text_cfg = dict(write_tower(text))
    elif text.family != "clip":
        text_cfg |= TEXT_FAMILIES[text.family]
    if text.end_id is not None:
        text_cfg |= {"pool_type": "eos", "eos_id": text.end_id}
    if tokenizer.name != "clip":
        # open_clip reads the tokenizer beside this file, whatever the name says.
        text_cfg["hf_tokenizer_name"] = f"flaxclip/{tokenizer.name}"
    if tokenizer.name != "clip" or tokenizer.cleaning is not None:
        cleaning = cleaning_of(tokenizer.name, tokenizer.cleaning)
        clean = None if cleaning is None else NEAREST_CLEANING.get(cleaning, cleaning)
        text_cfg["tokenizer_kwargs"] = {"clean": clean}
        if tokenizer.name == "bert_uncased":
            text_cfg["tokenizer_kwargs"]["strip_sep_token"] = True
    model_cfg = {
        "embed_dim": config.embed_dim,
        "vision_cfg": vision_cfg,
        "text_cfg": text_cfg,
        "quick_gelu": quick_gelu,
        "init_logit_scale": config.init_logit_scale,
    }
    if has_custom_text(config):
        model_cfg["custom_text"] = True
    if config.init_logit_bias is not None:
        model_cfg["init_logit_bias"] = config.init_logit_bias
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": {
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": "squash" if native else preprocess.resize,
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


def _own_vision(vision: TrunkConfig) -> dict[str, Any]:
    if isinstance(vision, ResNetConfig):
        return {
            "image_size": vision.image_size,
            "layers": list(vision.layers),
            "width": vision.width,
            "patch_size": None,
        }
    assert isinstance(vision, ViTConfig), "timm's are written by name"
    fields: dict[str, Any] = {
        "image_size": vision.image_size,
        "layers": vision.layers,
        "width": vision.width,
        "head_width": vision.width // vision.heads,
        "mlp_ratio": _mlp_ratio(vision.width, vision.mlp_width),
        "patch_size": vision.patch_size,
        "norm_kwargs": {"eps": vision.norm_eps},
    }
    if vision.family != "clip":
        fields |= OWN_FAMILIES[vision.family]
    if vision.activation == "gelu_tanh":
        fields["act_kwargs"] = {"approximate": "tanh"}
    return fields


def _mlp_ratio(width: int, mlp_width: int) -> float:
    """A ratio that open_clip, which rounds the product down, turns into `mlp_width`."""
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else (mlp_width + 0.5) / width


def _native_sizes(max_patches: int, patch_size: int) -> dict[str, int]:
    """Fields of open_clip 4: patches of an image, and the side of the square of as many."""
    side = math.isqrt(max_patches) * patch_size
    return {"image_size": side, "image_seq_len": max_patches}


def _timm_vision(vision: TrunkConfig, native: bool) -> dict[str, Any]:
    for trunk in TIMM_TRUNKS:
        if vision.family not in trunk.families or trunk.native != native:
            continue
        for name, tower in trunk.towers.items():
            size = tower.image_size if trunk.any_size else vision.image_size
            # Not the other way: towers of a family may differ in the sizes that they can have.
            if dataclasses.replace(vision.architecture, image_size=size) == tower:  # type: ignore[type-var]
                return {
                    "image_size": vision.image_size,
                    "timm_model_name": name,
                    "timm_model_pretrained": False,
                    "timm_pool": trunk.pool,
                    "timm_proj": trunk.proj[0],
                }
    raise InputError(
        f"an image tower of {vision.describe()}, {vision.image_size} px in patches of "
        f"{vision.patch_size}\n"
        "open_clip takes such towers from timm by name, which has none of these sizes and settings"
        + ("; export to huggingface instead" if vision.family == "siglip" else "")
    )
