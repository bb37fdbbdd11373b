"""`CLIPModel`, `SiglipModel` and `Siglip2Model` of transformers: tensors by one table of names.

SigLIP 2 checkpoints of fixed resolution are `SiglipModel`s. To a `Siglip2Model` (NaFlex), patches
come flattened.
"""

from flaxclip.errors import InputError
from flaxclip.interop.huggingface.tips import has_tips, tips_table
from flaxclip.interop.name_table import (
    NameTable,
    Rule,
    bind,
    prefixed,
    text_axes,
    vision_axes,
)
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.vision_transformer import ViTConfig

_BLOCK = (
    Rule("ln_1/scale", "layer_norm1.weight", "w -> layer w"),
    Rule("ln_1/bias", "layer_norm1.bias", "w -> layer w"),
    Rule("attention/qkv/kernel", "self_attn.{qkv}_proj.weight", "(head k) w -> layer w head qkv k"),
    Rule("attention/qkv/bias", "self_attn.{qkv}_proj.bias", "(head k) -> layer head qkv k"),
    Rule("attention/out/kernel", "self_attn.out_proj.weight", "w (head k) -> layer head k w"),
    Rule("attention/out/bias", "self_attn.out_proj.bias", "w -> layer w"),
    Rule("ln_2/scale", "layer_norm2.weight", "w -> layer w"),
    Rule("ln_2/bias", "layer_norm2.bias", "w -> layer w"),
    Rule("mlp/fc1/kernel", "mlp.fc1.weight", "mlp w -> layer w mlp"),
    Rule("mlp/fc1/bias", "mlp.fc1.bias", "mlp -> layer mlp"),
    Rule("mlp/fc2/kernel", "mlp.fc2.weight", "w mlp -> layer mlp w"),
    Rule("mlp/fc2/bias", "mlp.fc2.bias", "w -> layer w"),
)

# What all three have in both towers.
_TOWER = (
    Rule("position_embedding", "embeddings.position_embedding.weight", "position w -> position w"),
    *prefixed(_BLOCK, "transformer/blocks/", "encoder.layers.{layer}."),
)
_VISION = (
    *_TOWER,
    Rule("patch_embedding/kernel", "embeddings.patch_embedding.weight", "w rgb p q -> (p q rgb) w"),
    Rule("ln_post/scale", "post_layernorm.weight", "w -> w"),
    Rule("ln_post/bias", "post_layernorm.bias", "w -> w"),
)
_TEXT = (
    *_TOWER,
    Rule("token_embedding", "embeddings.token_embedding.weight", "vocab w -> vocab w"),
    Rule("ln_final/scale", "final_layer_norm.weight", "w -> w"),
    Rule("ln_final/bias", "final_layer_norm.bias", "w -> w"),
)

_CLIP_VISION = (
    *prefixed(_VISION, "params/vision/", "vision_model."),
    Rule("params/vision/class_embedding", "vision_model.embeddings.class_embedding", "w -> w"),
    Rule("params/vision/ln_pre/scale", "vision_model.pre_layrnorm.weight", "w -> w"),
    Rule("params/vision/ln_pre/bias", "vision_model.pre_layrnorm.bias", "w -> w"),
    Rule("params/vision/projection/kernel", "visual_projection.weight", "embed w -> w embed"),
)
_CLIP_TEXT = (
    *prefixed(_TEXT, "params/text/", "text_model."),
    Rule("params/text/projection/kernel", "text_projection.weight", "embed w -> w embed"),
    Rule("params/logit_scale", "logit_scale", "->"),
)

_MAP_HEAD = (
    Rule("probe", "probe", "1 1 w -> 1 w"),
    Rule("attention/{part}/kernel", "attention.in_proj_weight", "(part head k) w -> w head k"),
    Rule("attention/{part}/bias", "attention.in_proj_bias", "(part head k) -> head k"),
    Rule("attention/out/kernel", "attention.out_proj.weight", "w (head k) -> head k w"),
    Rule("attention/out/bias", "attention.out_proj.bias", "w -> w"),
    Rule("ln/scale", "layernorm.weight", "w -> w"),
    Rule("ln/bias", "layernorm.bias", "w -> w"),
    Rule("mlp/fc1/kernel", "mlp.fc1.weight", "mlp w -> w mlp"),
    Rule("mlp/fc1/bias", "mlp.fc1.bias", "mlp -> mlp"),
    Rule("mlp/fc2/kernel", "mlp.fc2.weight", "w mlp -> mlp w"),
    Rule("mlp/fc2/bias", "mlp.fc2.bias", "w -> w"),
)
_SIGLIP_VISION = (
    *prefixed(_VISION, "params/vision/", "vision_model."),
    Rule(
        "params/vision/patch_embedding/bias",
        "vision_model.embeddings.patch_embedding.bias",
        "w -> w",
    ),
    *prefixed(_MAP_HEAD, "params/vision/pool/", "vision_model.head."),
)
_SIGLIP_TEXT = (
    *prefixed(_TEXT, "params/text/", "text_model."),
    Rule("params/text/projection/kernel", "text_model.head.weight", "embed w -> w embed"),
    Rule("params/text/projection/bias", "text_model.head.bias", "embed -> embed"),
    Rule("params/logit_scale", "logit_scale", "1 ->"),
    Rule("params/logit_bias", "logit_bias", "1 ->"),
)

# Constants that older versions of transformers saved with the weights.
_POSITION_IDS = r"^(vision|text)_model\.embeddings\.position_ids$"


_MODELS = {("clip", "clip", False): "a CLIPModel", ("siglip", "siglip", True): "a SiglipModel"}
"""By the families of both towers, and whether there is a logit bias."""


def has_huggingface(config: CLIPConfig) -> bool:
    """True if transformers' classes can represent models like `config`."""
    return _traits(config) in _MODELS or has_tips(config)


def _traits(config: CLIPConfig) -> tuple[str, str, bool]:
    return config.vision.family, config.text.family, config.init_logit_bias is not None


def huggingface_table(config: CLIPConfig, flat_patches: bool = False) -> NameTable:
    """The tensors of the `CLIPModel` or `SiglipModel` that is this architecture.

    With `flat_patches`, of the `Siglip2Model`.

    Raises:
        InputError: transformers has no such model.
    """
    vision = config.vision
    if has_tips(config):
        return tips_table(config)
    if not has_huggingface(config):
        of_vit = f"vision transformer of family {vision.family!r}"
        other = type(vision).__name__.removesuffix("Config")
        image = of_vit if isinstance(vision, ViTConfig) else other
        raise InputError(
            f"transformers has no model of a {image}, a text tower of family "
            f"{config.text.family!r} and {'a' if _traits(config)[2] else 'no'} logit bias\n"
            "it has CLIP's vision transformers (clip, clip, no bias), MetaCLIP 2's among them, and "
            "SigLIP (siglip, siglip, a bias); its BERT's projection, for LiT, has no bias"
        )
    if flat_patches and config.vision.family != "siglip":
        raise InputError(
            f"transformers has no model of family {config.vision.family!r} that takes images at "
            "their own aspect ratio\nit has SigLIP 2's"
        )
    peer = _MODELS[_traits(config)]
    vision_rules, text_rules = _SIGLIP_VISION, _SIGLIP_TEXT
    if config.text.family == "clip":
        vision_rules, text_rules = _CLIP_VISION, _CLIP_TEXT
    if flat_patches:
        peer = "a Siglip2Model"
        vision_rules = tuple(
            rule._replace(axes="w (p q rgb) -> (p q rgb) w")
            if rule.ours.endswith("patch_embedding/kernel")
            else rule
            for rule in vision_rules
        )
    return NameTable(
        peer,
        [*bind(vision_rules, vision_axes(config)), *bind(text_rules, text_axes(config))],
        counters=_POSITION_IDS,
    )
