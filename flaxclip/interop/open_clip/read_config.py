"""`open_clip_config.json` -> a model; the way back is `write_config.py`.

Only settings that flaxclip computes in the same way are accepted. A field of open_clip's that would
change the result can have only the one value that flaxclip supports; any other value is refused
with the field's name.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from flaxclip.errors import InputError
from flaxclip.interop.open_clip.hf_text import HFText, named_tower, read_tower
from flaxclip.interop.open_clip.names import OWN_FAMILIES, TEXT_FAMILIES
from flaxclip.interop.open_clip.read_tokenizer import TokenizerArguments, read_tokenizer
from flaxclip.interop.source import Ratio, Side, Size, parse, read_json
from flaxclip.interop.trunks.registry import TIMM_TRUNKS
from flaxclip.interop.trunks.timm_trunk import TimmTrunk
from flaxclip.models.clip import INITIAL_LOGIT_SCALE, CLIPConfig
from flaxclip.models.inputs import (
    OPENAI_MEAN,
    OPENAI_STD,
    ImageTransform,
)
from flaxclip.models.layers import Activation
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.trunks.trunk import TrunkConfig
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
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    pool_type: Literal["tok", "avg"] = "tok"
    final_ln_after_pool: bool = False
    timm_model_name: None = None


@dataclasses.dataclass(frozen=True)
class _TimmVision:
    timm_model_name: str
    image_size: Side = 224
    image_seq_len: Size | None = None
    timm_pool: str = "avg"
    timm_model_kwargs: None = None
    timm_proj: str | None = "linear"
    timm_model_pretrained: bool = False
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None
    patch_dropout: float = 0.0

    def max_patches(self, patch_size: int) -> int:
        """Of an image at its own aspect ratio; if not said, those of the square."""
        return self.image_seq_len or (self.image_size // patch_size) ** 2


@dataclasses.dataclass(frozen=True)
class _Text(_Block):
    context_length: Size = 77
    vocab_size: Size = 49408
    width: Size = 512
    heads: Size = 8
    layers: int = 12
    hf_tokenizer_name: str | None = None
    tokenizer_mode: None = None
    tokenizer_kwargs: TokenizerArguments | None = None
    hf_model_name: None = None
    embed_cls: Literal[False] = False
    pad_id: int = 0
    eos_id: int = 2
    no_causal_mask: bool = False
    final_ln_after_pool: Literal[False] = False
    pool_type: Literal["argmax", "last", "eos"] = "argmax"
    proj_bias: bool = False
    proj_type: Literal["linear", "none"] = "linear"


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
    preprocess = parse(
        _Preprocess, file.get("preprocess_cfg", {}), path, "preprocess_cfg", extra="forbid"
    )
    vision, native = _read_vision(model, path)
    side = native.image_size if native else vision.image_size
    if preprocess.size not in (None, side, (side,) * 2):
        raise InputError(
            f"{path}: preprocess_cfg.size is {preprocess.size}\nexpected the image tower's {side}"
        )
    tower, tokenizer_name, arguments = _read_text(model, path)
    config = CLIPConfig(
        vision=vision,
        text=tower,
        embed_dim=model.embed_dim,
        init_logit_scale=model.init_logit_scale,
        init_logit_bias=model.init_logit_bias,
    )
    transform = ImageTransform(
        # The file's is of squares, which open_clip makes where it is not asked for patches.
        resize="native" if native else preprocess.resize_mode,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        std=preprocess.std,
        max_patches=native.max_patches(vision.patch_size) if native else None,
    )
    tokenizer = read_tokenizer(tokenizer_name, arguments or TokenizerArguments(), config.text, path)
    return ModelSpec(config, transform, tokenizer)


def _read_text(
    model: _Model, path: Path
) -> tuple[TextConfig, str | None, TokenizerArguments | None]:
    """The tower, its tokenizer's name, and the arguments of that."""
    field = "model_cfg.text_cfg"
    if (name := model.text_cfg.get("hf_model_name")) is not None:
        # Before other fields, which are another tower's.
        named_tower(name, f"{path}: text_cfg")
        named = parse(HFText, model.text_cfg, path, field, extra="forbid")
        return read_tower(named, path), named.hf_tokenizer_name, named.tokenizer_kwargs
    text = parse(_Text, model.text_cfg, path, field, extra="forbid")
    end_id = text.eos_id if text.pool_type == "eos" else None
    if end_id is not None:
        text = dataclasses.replace(text, pool_type="argmax")
    family: Any = _family(text, TEXT_FAMILIES, f"{path}: text_cfg")
    tower = TextConfig(
        context_length=text.context_length,
        vocab_size=text.vocab_size,
        width=text.width,
        layers=text.layers,
        heads=text.heads,
        mlp_ratio=int(text.width * text.mlp_ratio) / text.width,
        activation=_activation(model.quick_gelu, text),
        norm_eps=(text.norm_kwargs or _Norm()).eps,
        family=family,
        end_id=end_id,
    )
    return tower, text.hf_tokenizer_name, text.tokenizer_kwargs


def _activation(quick_gelu: bool, block: _Block) -> Activation:
    if quick_gelu:
        return "quick_gelu"
    return "gelu_tanh" if (block.act_kwargs or _Act()).approximate == "tanh" else "gelu"


def _read_vision(model: _Model, path: Path) -> tuple[TrunkConfig, _TimmVision | None]:
    """The tower, and its settings if it takes images at their own aspect ratio."""
    field = "model_cfg.vision_cfg"
    if model.vision_cfg.get("timm_model_name") is not None:
        timm = parse(_TimmVision, model.vision_cfg, path, field, extra="forbid")
        tower, trunk = _timm_tower(timm, f"{path}: {field}")
        return tower, timm if trunk.native else None
    vision = parse(_Vision, model.vision_cfg, path, field, extra="forbid")
    if isinstance(vision.layers, tuple):
        resnet = ResNetConfig(vision.image_size, vision.width, vision.layers)
        # open_clip's `model.py`; the tensors of the pooling have the same shapes with any number.
        heads = vision.width * 32 // vision.head_width
        if heads != resnet.heads:
            raise InputError(
                f"{path}: {field}.head_width is {vision.head_width}, which makes {heads} heads of "
                f"the ResNet's pooling\nexpected {resnet.heads}, of 64 channels each"
            )
        return resnet, None
    family = _family(vision, OWN_FAMILIES, f"{path}: {field}")
    if vision.patch_size is None:
        raise InputError(f"{path}: {field}.patch_size is null\nexpected a number of pixels")
    tower = ViTConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.width,
        layers=vision.layers,
        heads=vision.width // vision.head_width,
        mlp_ratio=int(vision.width * vision.mlp_ratio) / vision.width,
        activation=_activation(model.quick_gelu, vision),
        norm_eps=(vision.norm_kwargs or _Norm()).eps,
        family=family,
    )
    return tower, None


def _family(found: _Block, families: dict[str, dict[str, Any]], field: str) -> str:
    """The family whose settings are those of `found`."""
    names = next(iter(families.values()))
    settings = {name: getattr(found, name) for name in names}
    for family, expected in families.items():
        if settings == expected:
            return family

    def words(settings: dict[str, Any]) -> str:
        return ", ".join(f"{name} {json.dumps(value)}" for name, value in settings.items())

    raise InputError(
        f"{field} has {words(settings)}\nexpected "
        + "; or ".join(f"{words(expected)} ({family})" for family, expected in families.items())
    )


def _timm_tower(timm: _TimmVision, field: str) -> tuple[TrunkConfig, TimmTrunk]:
    name = timm.timm_model_name
    known = [trunk for trunk in TIMM_TRUNKS if name in trunk.towers]
    if not known:
        raise InputError(
            f"{field}.timm_model_name is {name!r}\nof timm's models flaxclip has "
            + ", ".join(name for trunk in TIMM_TRUNKS for name in trunk.towers)
        )
    fitting = [t for t in known if timm.timm_pool == t.pool and timm.timm_proj in t.proj]
    if not fitting:
        expected = " or ".join(f"{t.pool!r} and {t.proj[0]!r}" for t in known)
        raise InputError(
            f"{field} has timm_pool {timm.timm_pool!r} and timm_proj {timm.timm_proj!r}\n"
            f"expected {expected} with {name}"
        )
    trunk = fitting[0]
    tower = trunk.towers[name]
    if timm.image_seq_len is not None and not trunk.native:
        raise InputError(
            f"{field}.image_seq_len is {timm.image_seq_len}\n"
            f"expected none: timm's {name} sees squares"
        )
    if trunk.any_size:
        sized = dataclasses.replace(tower, image_size=timm.image_size)  # type: ignore[type-var]
        return sized, trunk
    if timm.image_size != tower.image_size and not trunk.native:
        raise InputError(
            f"{field}.image_size is {timm.image_size}\n"
            f"expected {tower.image_size}, that of timm's {name}"
        )
    return tower, trunk
