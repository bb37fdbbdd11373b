"""timm's image towers of EVA-CLIP (`models/eva.py`)."""

from flaxclip.interop.name_table import Binding, Rule, prefixed
from flaxclip.interop.trunks.timm_trunk import (
    ATTENTION_OUT,
    CLASS_TOKEN,
    HEAD,
    MLP,
    PATCHES,
    PATCHES_BIAS,
    POSITIONS,
    TimmTrunk,
    bind_trunk,
    norm,
)
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.variants import VARIANTS

_TOWERS = {
    name: VARIANTS[ours].model.vision
    for name, ours in {
        "eva_giant_patch14_224": "EVA01-g-14",
        "eva02_base_patch16_clip_224": "EVA02-B-16",
        "eva02_large_patch14_clip_224": "EVA02-L-14",
        "eva02_large_patch14_clip_336": "EVA02-L-14-336",
        "eva02_enormous_patch14_clip_224": "EVA02-E-14",
    }.items()
}

_NORMS = (*norm("ln_1", "norm1", "layer "), *norm("ln_2", "norm2", "layer "))
_BIASES_BESIDE = (
    Rule("attention/qkv/kernel", "attn.qkv.weight", "(qkv head k) w -> layer w head qkv k"),
    Rule("attention/qkv/bias", "attn.{qv}_bias", "(head k) -> layer head qv k"),
)
_PROJECTIONS_APART = (
    Rule("attention/qkv/kernel", "attn.{qkv}_proj.weight", "(head k) w -> layer w head qkv k"),
    Rule("attention/qkv/bias", "attn.{qv}_proj.bias", "(head k) -> layer head qv k"),
)
_SUB_NORMS = (
    *norm("attention/ln", "attn.norm", "layer "),
    *norm("mlp/ln", "mlp.norm", "layer ", "mlp"),
)
_GATED_MLP = (
    Rule("mlp/gate/kernel", "mlp.fc1_g.weight", "mlp w -> layer w mlp"),
    Rule("mlp/gate/bias", "mlp.fc1_g.bias", "mlp -> layer mlp"),
    *(rule._replace(theirs=rule.theirs.replace("fc1", "fc1_x")) for rule in MLP),
)


def _bindings(config: CLIPConfig) -> list[Binding]:
    block: tuple[Rule, ...] = (*_NORMS, *_BIASES_BESIDE, *ATTENTION_OUT, *MLP)
    if config.vision.family == "eva02":
        block = (*_NORMS, *_PROJECTIONS_APART, *ATTENTION_OUT, *_SUB_NORMS, *_GATED_MLP)
    rules = (
        CLASS_TOKEN,
        PATCHES,
        PATCHES_BIAS,
        POSITIONS,
        *prefixed(block, "transformer/blocks/", "blocks.{layer}."),
        *norm("ln_post", "norm"),
        *HEAD,
    )
    return bind_trunk(rules, config, {"qv": ("q", "v")})


TRUNKS = (TimmTrunk(("eva01", "eva02", "eva02_e"), _TOWERS, "token", (None, ""), _bindings),)
