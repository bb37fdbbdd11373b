"""`open_clip_config.json` -> a model; the way back is `write_config.py`.

Only settings that flaxclip computes in the same way are accepted. A field of open_clip's that would
change the result can have only the one value that flaxclip supports; any other value is refused
with the field's name.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError
from flaxclip.interop.source import Ratio, Side, Size, parse, read_json
from flaxclip.interop.timm_siglip import TIMM_TOWERS
from flaxclip.interop.tokenizer_class import read_tokenizer_class
from flaxclip.models.clip import INITIAL_LOGIT_SCALE, CLIPConfig
from flaxclip.models.inputs import (
    OPENAI_MEAN,
    OPENAI_STD,
    ImageTransform,
    TextCleaning,
    TokenizerConfig,
)
from flaxclip.models.layers import Activation
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import ModelSpec
from flaxclip.models.vision_transformer import ViTConfig

CONFIG_FILE = "open_clip_config.json"


@dataclasses.dataclass(frozen=True)
class _Act:
    approximate: Literal["none", "tanh"] = "none"


@dataclasses.dataclass(frozen=True)
class _Norm:
    eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class _Block:
    """open_clip's variations of a transformer block."""

    ls_init_value: None = None
    block_type: Literal["default"] | None = None
    qk_norm: Literal[False] = False
    scaled_cosine_attn: Literal[False] = False
    scale_heads: Literal[False] = False
    scale_attn_inner: Literal[False] = False
    scale_attn: Literal[False] = False
    scale_fc: Literal[False] = False
    output_tokens: Literal[False] = False
    final_ln_after_pool: Literal[False] = False
    mlp_ratio: Ratio = 4.0
    act_kwargs: _Act | None = None
    norm_kwargs: _Norm | None = None


@dataclasses.dataclass(frozen=True)
class _Vision(_Block):
    layers: int | tuple[int, int, int, int] = 12
    width: Size = 768
    head_width: Size = 64
    patch_size: Side | None = 16
    image_size: Side = 224
    patch_dropout: float = 0.0  # of training alone
    attentional_pool: Literal[False] = False
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8
    no_ln_pre: Literal[False] = False
    pos_embed_type: Literal["learnable"] = "learnable"
    pool_type: Literal["tok"] = "tok"
    timm_model_name: None = None


@dataclasses.dataclass(frozen=True)
class _TimmVision:
    timm_model_name: str
    image_size: Side = 224
    timm_pool: Literal["map"] = "map"
    timm_proj: Literal["none", ""] = "none"
    timm_model_pretrained: bool = False
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None


@dataclasses.dataclass(frozen=True)
class _Tokenizer:
    """The arguments of open_clip's tokenizers, except for the context length."""

    clean: Literal["lower", "whitespace", "canonicalize"] | None = None
    context_length: int | None = None
    reduction_mask: Literal[""] | None = None
    additional_special_tokens: None = None
    strip_sep_token: Literal[False] = False
    language: None = None


@dataclasses.dataclass(frozen=True)
class _Text(_Block):
    context_length: Size = 77
    vocab_size: Size = 49408
    width: Size = 512
    heads: Size = 8
    layers: int = 12
    hf_tokenizer_name: str | None = None
    tokenizer_mode: None = None
    tokenizer_kwargs: _Tokenizer | None = None
    hf_model_name: None = None
    embed_cls: Literal[False] = False
    pad_id: int = 0
    eos_id: int = 2
    no_causal_mask: bool = False
    pool_type: Literal["argmax", "last"] = "argmax"
    proj_bias: bool = False
    proj_type: Literal["linear"] = "linear"


@dataclasses.dataclass(frozen=True)
class _Model:
    embed_dim: Size
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_scale: float = INITIAL_LOGIT_SCALE
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool = False
    multimodal_cfg: None = None
    output_dict: bool = False
    cast_dtype: Any = None


@dataclasses.dataclass(frozen=True)
class _Preprocess:
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"
    size: int | tuple[int, ...] | None = None
    mode: Literal["RGB"] = "RGB"
    fill_color: int | tuple[int, ...] = 0


def read_config(path: Path) -> ModelSpec:
    """The model that the file describes.

    Raises:
        InputError: it is none of ours, by the field that makes the difference.
    """
    file = read_json(path)
    model = parse(_Model, file.get("model_cfg"), path, "model_cfg", extra="forbid")
    text = parse(_Text, model.text_cfg, path, "model_cfg.text_cfg", extra="forbid")
    preprocess = parse(
        _Preprocess, file.get("preprocess_cfg", {}), path, "preprocess_cfg", extra="forbid"
    )
    vision = _read_vision(model, path)
    if preprocess.size not in (None, vision.image_size, (vision.image_size,) * 2):
        raise InputError(
            f"{path}: preprocess_cfg.size is {preprocess.size}\n"
            f"expected the image tower's {vision.image_size}"
        )
    ways = (text.pool_type, text.no_causal_mask, text.proj_bias)
    families: dict[Any, Literal["clip", "siglip"]] = {
        ("argmax", False, False): "clip",
        ("last", True, True): "siglip",
    }
    if ways not in families:
        raise InputError(
            f"{path}: text_cfg has pool_type {ways[0]!r}, no_causal_mask {ways[1]}, "
            f"proj_bias {ways[2]}\n"
            "expected argmax, false, false (CLIP) or last, true, true (SigLIP)"
        )
    config = CLIPConfig(
        vision=vision,
        text=TextConfig(
            context_length=text.context_length,
            vocab_size=text.vocab_size,
            width=text.width,
            layers=text.layers,
            heads=text.heads,
            mlp_ratio=int(text.width * text.mlp_ratio) / text.width,
            activation=_activation(model.quick_gelu, text),
            norm_eps=(text.norm_kwargs or _Norm()).eps,
            family=families[ways],
        ),
        embed_dim=model.embed_dim,
        init_logit_scale=model.init_logit_scale,
        init_logit_bias=model.init_logit_bias,
    )
    transform = ImageTransform(
        resize=preprocess.resize_mode,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
    )
    return ModelSpec(config, transform, _tokenizer(text, families[ways], path))


def _activation(quick_gelu: bool, block: _Block) -> Activation:
    if quick_gelu:
        return "quick_gelu"
    return "gelu_tanh" if (block.act_kwargs or _Act()).approximate == "tanh" else "gelu"


def _read_vision(model: _Model, path: Path) -> ViTConfig | ResNetConfig:
    field = "model_cfg.vision_cfg"
    if model.vision_cfg.get("timm_model_name") is not None:
        timm = parse(_TimmVision, model.vision_cfg, path, field, extra="forbid")
        if timm.timm_model_name not in TIMM_TOWERS:
            raise InputError(
                f"{path}: {field}.timm_model_name is {timm.timm_model_name!r}\n"
                "of timm's models flaxclip has those of SigLIP with attention pooling"
            )
        return TIMM_TOWERS[timm.timm_model_name]
    vision = parse(_Vision, model.vision_cfg, path, field, extra="forbid")
    if isinstance(vision.layers, tuple):
        return ResNetConfig(vision.image_size, vision.width, vision.layers)
    if vision.patch_size is None:
        raise InputError(f"{path}: {field}.patch_size is null\nexpected a number of pixels")
    return ViTConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.width,
        layers=vision.layers,
        heads=vision.width // vision.head_width,
        mlp_ratio=int(vision.width * vision.mlp_ratio) / vision.width,
        activation=_activation(model.quick_gelu, vision),
        norm_eps=(vision.norm_kwargs or _Norm()).eps,
    )


def _tokenizer(text: _Text, family: str, path: Path) -> TokenizerConfig:
    """The tokenizer that open_clip's `get_tokenizer` makes."""
    name, given = text.hf_tokenizer_name, text.tokenizer_kwargs or _Tokenizer()
    if given.context_length not in (None, text.context_length):
        raise InputError(
            f"{path}: text_cfg.tokenizer_kwargs.context_length is {given.context_length}\n"
            f"expected that of text_cfg, {text.context_length}"
        )
    if family == "clip":
        if name and not name.startswith("openai/clip-"):
            raise InputError(
                f"{path}: text_cfg.hf_tokenizer_name is {name!r}\n"
                "flaxclip has the tokenizers of CLIP, SigLIP and SigLIP 2"
            )
        # With a name it is transformers' CLIPTokenizer, which lower-cases anyway. Of captions that
        # spell out a marker it makes other ids.
        lowers = name and given.clean == "whitespace"
        return TokenizerConfig("clip", cleaning="lower" if lowers else given.clean)
    # SigLIP 2 has Gemma's vocabulary of 256,000, and its repositories have it in their names.
    is_2 = text.vocab_size == 256_000 or "siglip2" in (name or "").lower()
    tokenizer: Literal["siglip", "siglip2"] = "siglip2" if is_2 else "siglip"
    cleaning: TextCleaning = "canonicalize"
    if name:
        cleaning = _cleaning_and_class(given.clean or "whitespace", path)
    # None, as named architectures have it, which is written as what it means.
    own = cleaning == cleaning_of(tokenizer, None)
    return TokenizerConfig(tokenizer, cleaning=None if own else cleaning)


def _cleaning_and_class(clean: TextCleaning, path: Path) -> TextCleaning:
    """open_clip's cleaning, followed by that of transformers' tokenizer in the directory."""
    then = read_tokenizer_class(path.parent, default="GemmaTokenizer")
    if then.cleaning == "none" or clean == "canonicalize":
        return clean
    if then.cleaning == "transformers_siglip2":
        return "lower"
    raise InputError(
        f"{path}: text_cfg.tokenizer_kwargs.clean is {clean!r}, while tokenizer_config.json beside "
        f"it names {then.name}, which cleans texts again\n"
        "expected canonicalize, or a tokenizer without a cleaning of its own"
    )
