"""TIPSv2 as transformers stores it (5.24, `models/tipsv2`): configuration and tensors, both ways.

Files have the names of google-deepmind/tips; transformers turns them into its own as it reads them.
Their temperature is the inverse of our logit scale. The mask token, which only pretraining needs,
is left out, and written as zeros.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.huggingface.read_processor import read_preprocessing
from flaxclip.interop.name_table import (
    Binding,
    NameTable,
    Rule,
    bind,
    prefixed,
    text_axes,
    vision_axes,
)
from flaxclip.interop.open_clip.names import TEXT_TRANSFORMER
from flaxclip.interop.source import Ratio, Side, Size, parse, read_json
from flaxclip.interop.trunks.timm_trunk import (
    ATTENTION_OUT,
    CLASS_TOKEN,
    PATCHES,
    PATCHES_BIAS,
    POSITIONS,
    norm,
)
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig

_TEMPERATURE, _SCALE = "temperature", "logit_scale"
_MASK_TOKEN = "vision_encoder.mask_token"

_MLP = (
    Rule("mlp/fc1/kernel", "mlp.c_fc.weight", "mlp w -> layer w mlp"),
    Rule("mlp/fc1/bias", "mlp.c_fc.bias", "mlp -> layer mlp"),
    Rule("mlp/fc2/kernel", "mlp.c_proj.weight", "w mlp -> layer mlp w"),
    Rule("mlp/fc2/bias", "mlp.c_proj.bias", "w -> layer w"),
)
_GATED_MLP = (
    Rule("mlp/{wide}/kernel", "mlp.w12.weight", "(wide mlp) w -> layer w mlp"),
    Rule("mlp/{wide}/bias", "mlp.w12.bias", "(wide mlp) -> layer mlp"),
    Rule("mlp/fc2/kernel", "mlp.w3.weight", "w mlp -> layer mlp w"),
    Rule("mlp/fc2/bias", "mlp.w3.bias", "w -> layer w"),
)
_BLOCK = (
    *norm("ln_1", "norm1", "layer "),
    Rule("attention/qkv/kernel", "attn.qkv.weight", "(qkv head k) w -> layer w head qkv k"),
    Rule("attention/qkv/bias", "attn.qkv.bias", "(qkv head k) -> layer head qkv k"),
    *ATTENTION_OUT,
    Rule("scale_1/scale", "ls1.gamma", "w -> layer w"),
    *norm("ln_2", "norm2", "layer "),
    Rule("scale_2/scale", "ls2.gamma", "w -> layer w"),
)
_REGISTERS = Rule("register_embedding", "register_tokens", "1 register w -> register w")


def is_tips(names: Mapping[str, Any]) -> bool:
    """True for the tensors of a TIPSv2."""
    return "vision_encoder.register_tokens" in names


def has_tips(config: CLIPConfig) -> bool:
    """True if `config` is a TIPSv2's."""
    return config.vision.family in ("tips", "tips_gated") and config.text.family == "tips"


def tips_table(config: CLIPConfig) -> NameTable:
    """The tensors of a TIPSv2, its temperature as `as_ours` makes it."""
    mlp = _GATED_MLP if config.vision.family == "tips_gated" else _MLP
    vision = (
        CLASS_TOKEN,
        PATCHES,
        PATCHES_BIAS,
        POSITIONS,
        _REGISTERS,
        *prefixed((*_BLOCK, *mlp), "transformer/blocks/", "blocks.{layer}."),
        *norm("ln_post", "norm"),
    )
    axes = {**vision_axes(config), "wide": ("gate", "fc1"), "register": 1}
    text = [rule for rule in TEXT_TRANSFORMER if rule.ours != "position_embedding"]
    return NameTable(
        "a Tipsv2Model",
        [
            *bind(prefixed(vision, "params/vision/", "vision_encoder."), axes),
            *bind(prefixed(text, "params/text/", "text_encoder."), text_axes(config)),
            Binding(Rule("params/logit_scale", _SCALE, "->"), {}),
        ],
    )


def as_ours(tensors: Mapping[str, StoredTensor], config: CLIPConfig) -> dict[str, StoredTensor]:
    """The tensors of a file, with a logit scale: that of `config` if it has no temperature."""
    stored = tensors.get(_TEMPERATURE)

    def read() -> np.ndarray:
        if stored is None:
            return np.array(config.init_logit_scale, np.float32)
        temperature = np.asarray(stored).astype(np.float32)
        if not temperature > 0:
            raise InputError(f"tensor {_TEMPERATURE} is {temperature}\nexpected a positive number")
        return np.asarray(-np.log(temperature))

    left = {
        # Those of google-deepmind/tips have timm's names of an MLP.
        name.replace(".mlp.fc1.", ".mlp.c_fc.").replace(".mlp.fc2.", ".mlp.c_proj."): tensor
        for name, tensor in tensors.items()
        if name not in (_TEMPERATURE, _MASK_TOKEN)
    }
    shape = () if stored is None else stored.shape
    return left | {_SCALE: StoredTensor(_TEMPERATURE, shape, np.dtype(np.float32), read)}


def as_theirs(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `as_ours`."""
    width = tensors["vision_encoder.cls_token"].shape[-1]
    others = {name: tensor for name, tensor in tensors.items() if name != _SCALE}
    return others | {
        _TEMPERATURE: np.asarray(np.exp(-tensors[_SCALE])),
        _MASK_TOKEN: np.zeros((1, width), np.float32),
    }


@dataclasses.dataclass(frozen=True)
class _Text:
    vocab_size: Size = 32000
    hidden_size: Size = 768
    intermediate_size: Size = 3072
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    max_position_embeddings: Size = 64
    hidden_act: Literal["relu"] = "relu"
    layer_norm_eps: float = 1e-5
    pad_token_id: Literal[0] = 0
    scale_sqrt_depth: Literal[True] = True


@dataclasses.dataclass(frozen=True)
class _Vision:
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    mlp_ratio: Ratio = 4
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: Side = 448
    patch_size: Side = 14
    qkv_bias: Literal[True] = True
    use_swiglu_ffn: bool = False
    num_register_tokens: Literal[1] = 1


def read_tips(folder: Path) -> ModelSpec:
    """The model that a directory's files describe.

    Raises:
        InputError: it is none of ours, by the field that makes the difference.
    """
    path = folder / "config.json"
    config = read_json(path)
    text = parse(_Text, config.get("text_config") or {}, path, "text_config")
    vision = parse(_Vision, config.get("vision_config") or {}, path, "vision_config")
    temperature = parse(
        float, config.get("temperature_init_value", 0.005065968260169029), path,
        "temperature_init_value",
    )  # fmt: skip
    if temperature <= 0:
        raise InputError(
            f"{path}: temperature_init_value is {temperature}\nexpected a positive number"
        )
    mlp_width = int(vision.hidden_size * vision.mlp_ratio)
    if vision.use_swiglu_ffn:
        mlp_width = (int(mlp_width * 2 / 3) + 7) // 8 * 8
    model = CLIPConfig(
        vision=ViTConfig(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            width=vision.hidden_size,
            layers=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            mlp_ratio=mlp_width / vision.hidden_size,
            activation="gelu",
            norm_eps=vision.layer_norm_eps,
            family="tips_gated" if vision.use_swiglu_ffn else "tips",
        ),
        text=TextConfig(
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            mlp_ratio=text.intermediate_size / text.hidden_size,
            activation="relu",
            norm_eps=text.layer_norm_eps,
            family="tips",
        ),
        embed_dim=vision.hidden_size,
        init_logit_scale=-math.log(temperature),
    )
    preprocess = read_preprocessing(folder, vision.image_size, "tipsv2")
    return ModelSpec(model, preprocess, TokenizerConfig("tips"))


def tips_json(spec: ModelSpec) -> dict[str, Any]:
    """The contents of `config.json` for a model like `spec`."""
    vision, text = spec.model.vision, spec.model.text
    assert isinstance(vision, ViTConfig), "a TIPSv2's is one"
    gated = vision.family == "tips_gated"
    # transformers takes two thirds of it, rounded down and then up to a multiple of 8.
    ratio = (vision.mlp_width * (1.5 if gated else 1) + 0.5) / vision.width
    return {
        "architectures": ["Tipsv2Model"],
        "model_type": "tipsv2",
        "temperature_init_value": math.exp(-spec.model.init_logit_scale),
        "text_config": {
            "model_type": "tipsv2_text_model",
            "vocab_size": text.vocab_size,
            "hidden_size": text.width,
            "intermediate_size": text.mlp_width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "layer_norm_eps": text.norm_eps,
        },
        "vision_config": {
            "model_type": "tipsv2_vision_model",
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "mlp_ratio": ratio,
            "layer_norm_eps": vision.norm_eps,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "use_swiglu_ffn": gated,
        },
        "torch_dtype": "float32",
    }
