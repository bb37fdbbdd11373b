"""What a family's file says of timm's image towers, and the names that many of them share."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flaxclip.interop.name_table import Axes, Binding, Rule, prefixed, vision_axes
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.models.vision_transformer import ViTConfig


class TimmTrunk(NamedTuple):
    """Towers that open_clip takes from timm by name, in `vision_cfg`, and what it adds to them."""

    families: tuple[str, ...]
    """Values of our `vision.family`."""
    towers: Mapping[str, TrunkConfig]
    """`timm_model_name` -> the tower."""
    pool: str
    """`timm_pool`."""
    proj: tuple[str | None, ...]
    """Values of `timm_proj` that mean the same; the first is written."""
    bindings: Callable[[CLIPConfig], list[Binding]]
    """The names of a tower of these families, of any size."""
    custom_text: bool = True
    """True if open_clip's own configurations put the text tower's names under `text.`."""
    any_size: bool = False
    """True if the image size is the configuration's; otherwise timm's name tells it."""
    native: bool = False
    """True for images at their own aspect ratio (NaFlex): the configuration's image size is that of
    squares, which open_clip may show such towers as well, and says nothing of the tower."""
    as_stored: Callable[[TrunkConfig, Mapping[str, tuple[int, ...]]], TrunkConfig] | None = None
    """The tower that a file with tensors of these shapes holds, if its configuration does not tell
    it apart from another."""


PATCHES = Rule("patch_embedding/kernel", "patch_embed.proj.weight", "w rgb p q -> (p q rgb) w")
PATCHES_BIAS = Rule("patch_embedding/bias", "patch_embed.proj.bias", "w -> w")
CLASS_TOKEN = Rule("class_embedding", "cls_token", "1 1 w -> w")
POSITIONS = Rule("position_embedding", "pos_embed", "1 position w -> position w")


def norm(ours: str, theirs: str, layer: str = "", axis: str = "w") -> tuple[Rule, Rule]:
    """Both parameters of a norm; `layer` is "layer " for a stacked one."""
    return (
        Rule(f"{ours}/scale", f"{theirs}.weight", f"{axis} -> {layer}{axis}"),
        Rule(f"{ours}/bias", f"{theirs}.bias", f"{axis} -> {layer}{axis}"),
    )


ATTENTION_OUT = (
    Rule("attention/out/kernel", "attn.proj.weight", "w (head k) -> layer head k w"),
    Rule("attention/out/bias", "attn.proj.bias", "w -> layer w"),
)
MLP = (
    Rule("mlp/fc1/kernel", "mlp.fc1.weight", "mlp w -> layer w mlp"),
    Rule("mlp/fc1/bias", "mlp.fc1.bias", "mlp -> layer mlp"),
    Rule("mlp/fc2/kernel", "mlp.fc2.weight", "w mlp -> layer mlp w"),
    Rule("mlp/fc2/bias", "mlp.fc2.bias", "w -> layer w"),
)
_BLOCK = (
    *norm("ln_1", "norm1", "layer "),
    Rule("attention/qkv/kernel", "attn.qkv.weight", "(qkv head k) w -> layer w head qkv k"),
    Rule("attention/qkv/bias", "attn.qkv.bias", "(qkv head k) -> layer head qkv k"),
    *ATTENTION_OUT,
    *norm("ln_2", "norm2", "layer "),
    *MLP,
)
BLOCKS = tuple(prefixed(_BLOCK, "transformer/blocks/", "blocks.{layer}."))

ATTENTION_POOL = (
    Rule("pool/probe", "attn_pool.latent", "1 1 w -> 1 w"),
    Rule("pool/attention/query/kernel", "attn_pool.q.weight", "(pool_head pool_k) w -> "
         "w pool_head pool_k"),
    Rule("pool/attention/query/bias", "attn_pool.q.bias", "(pool_head pool_k) -> pool_head pool_k"),
    Rule("pool/attention/{kv}/kernel", "attn_pool.kv.weight", "(kv pool_head pool_k) w -> "
         "w pool_head pool_k"),
    Rule("pool/attention/{kv}/bias", "attn_pool.kv.bias", "(kv pool_head pool_k) -> "
         "pool_head pool_k"),
    Rule("pool/attention/out/kernel", "attn_pool.proj.weight", "w (pool_head pool_k) -> "
         "pool_head pool_k w"),
    Rule("pool/attention/out/bias", "attn_pool.proj.bias", "w -> w"),
    *norm("pool/ln", "attn_pool.norm"),
    Rule("pool/mlp/fc1/kernel", "attn_pool.mlp.fc1.weight", "pool_mlp w -> w pool_mlp"),
    Rule("pool/mlp/fc1/bias", "attn_pool.mlp.fc1.bias", "pool_mlp -> pool_mlp"),
    Rule("pool/mlp/fc2/kernel", "attn_pool.mlp.fc2.weight", "w pool_mlp -> pool_mlp w"),
    Rule("pool/mlp/fc2/bias", "attn_pool.mlp.fc2.bias", "w -> w"),
)  # fmt: skip
HEAD = (
    Rule("projection/kernel", "head.weight", "embed w -> w embed"),
    Rule("projection/bias", "head.bias", "embed -> embed"),
)


def bind_trunk(
    rules: tuple[Rule, ...], config: CLIPConfig, axes: Axes | None = None
) -> list[Binding]:
    """The rules of a vision transformer under timm's names; `axes` adds to its own."""
    vision = config.vision
    assert isinstance(vision, ViTConfig), "other towers have axes of their own"
    heads = vision.traits.pool_heads or vision.heads
    more: Axes = {
        "pool_head": heads,
        "pool_k": vision.width // heads,
        "pool_mlp": 4 * vision.width if vision.traits.pool_heads else vision.mlp_width,
    }
    under = prefixed(rules, "params/vision/", "visual.trunk.")
    return [Binding(rule, {**vision_axes(config), **more, **(axes or {})}) for rule in under]
