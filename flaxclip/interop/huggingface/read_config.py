"""`config.json` of a transformers directory, and what lies beside it -> the model in it."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from flaxclip.data.tokenizers.clip import CLIPTokenizer
from flaxclip.errors import InputError
from flaxclip.interop.clip_vocabulary import check_clip_vocabulary
from flaxclip.interop.huggingface.read_processor import (
    PROCESSOR_OF,
    read_native_preprocessing,
    read_preprocessing,
)
from flaxclip.interop.source import Side, Size, parse, read_json
from flaxclip.interop.tokenizer_class import BACKEND, read_tokenizer_class
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.layers import Activation
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_Act = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]


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


def read_config(folder: Path) -> tuple[ModelSpec, str]:
    """The model that a directory's `config.json` describes, and its `model_type`.

    Raises:
        InputError: the directory's files describe none of the three models, or not how images
            are prepared for it.
    """
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in PROCESSOR_OF:
        raise InputError(
            f"{path} is of a model of type {kind!r}\nexpected {' or '.join(PROCESSOR_OF)}"
        )
    is_clip = kind in ("clip", "metaclip_2")
    text_type, vision_type = (_CLIPText, _CLIPVision) if is_clip else (_SiglipText, _SiglipVision)

    def tower(kind: type, name: str) -> Any:
        # CLIP's old files have the values that count in `text_config_dict`, and stale ones beside
        # them; SigLIP's classes do not read it.
        key = f"{name}_dict" if is_clip and config.get(f"{name}_dict") is not None else name
        return parse(kind, config.get(key) or {}, path, key)

    text, vision = tower(text_type, "text_config"), tower(vision_type, "vision_config")
    image_size = vision.image_size
    if kind == "siglip2":
        image_size = math.isqrt(vision.num_patches) * vision.patch_size
    # Captions are read out at the highest id: that of CLIP's tokenizer, whose ids may be fewer than
    # there are embeddings. With 2 so does transformers.
    end = min(text.vocab_size, CLIPTokenizer.vocab_size) - 1
    if kind == "clip" and text.eos_token_id not in (2, end):
        raise InputError(
            f"{path}: text_config.eos_token_id is {text.eos_token_id}\n"
            f"expected the tokenizer's highest id, {end}: captions are read out there"
        )
    family: Literal["clip", "siglip"] = "clip" if is_clip else "siglip"
    embed_dim = vision.hidden_size
    if is_clip:
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
            end_id=text.eos_token_id if kind == "metaclip_2" else None,
        ),
        embed_dim=embed_dim,
        **({} if is_clip else {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}),
    )
    tokenizer = _tokenizer(folder, kind, text.vocab_size, model.text.end_id)
    if kind == "siglip2":
        return ModelSpec(
            model, read_native_preprocessing(folder, vision.patch_size), tokenizer
        ), kind
    return ModelSpec(model, read_preprocessing(folder, image_size, kind), tokenizer), kind


def _tokenizer(folder: Path, kind: str, vocab_size: int, end_id: int | None) -> TokenizerConfig:
    """The tokenizer that transformers' `AutoTokenizer` makes."""
    default = {
        "clip": "CLIPTokenizer",
        "metaclip_2": "T5Tokenizer" if end_id == 1 else "XLMRobertaTokenizer",
        "siglip": "SiglipTokenizer",
    }.get(kind, "Siglip2Tokenizer")
    name, cleaning, pad = read_tokenizer_class(folder, default)
    # transformers mistrusts what directories of this type say.
    if kind == "siglip2" and name != BACKEND:
        name, cleaning = "Siglip2Tokenizer", "transformers_siglip2"
    if kind == "metaclip_2":
        # Of the distilled ones some have mT5's vocabulary, whose end is 1.
        expected = "T5Tokenizer" if end_id == 1 else "XLMRobertaTokenizer"
        if name not in (expected, BACKEND):
            raise InputError(
                f"{folder}: the tokenizer of a model of type metaclip_2 with eos_token_id {end_id} "
                f"is a {name}\nexpected {expected}"
            )
        return TokenizerConfig("mt5" if end_id == 1 else "xlm_v", cleaning="none")
    if kind == "clip":
        if name not in ("CLIPTokenizer", BACKEND):
            raise InputError(
                f"{folder}: the tokenizer of a model of type clip is a {name}\n"
                "expected a CLIPTokenizer"
            )
        check_clip_vocabulary(folder, name)
        return TokenizerConfig("clip", cleaning="transformers_clip")
    # SigLIP 2 of fixed resolution is of the same type as SigLIP, and has another tokenizer.
    gemma = vocab_size == 256_000 or name in ("Siglip2Tokenizer", "GemmaTokenizer")
    is_2 = gemma or (name == BACKEND and pad == "<pad>")
    return TokenizerConfig("siglip2" if is_2 else "siglip", cleaning=cleaning)
