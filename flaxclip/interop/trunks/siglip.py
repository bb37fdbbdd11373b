"""timm's SigLIP image towers, which open_clip's configuration names without describing them.

timm, `models/vision_transformer.py`, and for NaFlex `models/naflexvit.py`. Google trained all with
the tanh approximation of GELU; the towers that timm added first, and open_clip's models with them,
have the exact one.
"""

from flaxclip.interop.name_table import Binding, Rule
from flaxclip.interop.trunks.timm_trunk import (
    ATTENTION_POOL,
    BLOCKS,
    PATCHES,
    PATCHES_BIAS,
    POSITIONS,
    TimmTrunk,
    bind_trunk,
    norm,
)
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.layers import Activation
from flaxclip.models.vision_transformer import ViTConfig

# Width, layers, heads and width of the MLP.
_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
_NAMES: dict[Activation, tuple[str, ...]] = {
    "gelu": (
        "base_patch16_siglip_224", "base_patch16_siglip_256", "base_patch16_siglip_384",
        "base_patch16_siglip_512", "large_patch16_siglip_256", "large_patch16_siglip_384",
        "so400m_patch14_siglip_224", "so400m_patch14_siglip_378", "so400m_patch14_siglip_384",
    ),
    "gelu_tanh": (
        "base_patch32_siglip_256", "large_patch16_siglip_512", "so400m_patch16_siglip_256",
        "so400m_patch16_siglip_384", "so400m_patch16_siglip_512", "giantopt_patch16_siglip_256",
        "giantopt_patch16_siglip_384",
    ),
}  # fmt: skip


def _tower(name: str, activation: Activation) -> ViTConfig:
    size, patch, _, image_size = name.split("_")
    width, layers, heads, mlp_width = _SIZES[size]
    return ViTConfig(
        image_size=int(image_size),
        patch_size=int(patch.removeprefix("patch")),
        width=width,
        layers=layers,
        heads=heads,
        mlp_ratio=mlp_width / width,
        activation=activation,
        norm_eps=1e-6,
        family="siglip",
    )


_TOWERS: dict[str, ViTConfig] = {
    f"vit_{name}": _tower(name, activation)
    for activation, names in _NAMES.items()
    for name in names
}

_REST = (*BLOCKS, *norm("ln_post", "norm"), *ATTENTION_POOL)
_RULES = (PATCHES, PATCHES_BIAS, POSITIONS, *_REST)

# Their positions were learned on a grid of 16 x 16, whatever open_clip's image size says.
_NATIVE_TOWERS: dict[str, ViTConfig] = {
    f"naflexvit_{size}_patch16_siglip": _tower(f"{size}_patch16_siglip_256", "gelu_tanh")
    for size in ("base", "so400m")
}
_NATIVE_RULES = (
    Rule("patch_embedding/kernel", "embeds.proj.weight", "w (p q rgb) -> (p q rgb) w"),
    Rule("patch_embedding/bias", "embeds.proj.bias", "w -> w"),
    Rule("position_embedding", "embeds.pos_embed", "1 grid_y grid_x w -> (grid_y grid_x) w"),
    *_REST,
)


def _bindings(config: CLIPConfig) -> list[Binding]:
    return bind_trunk(_RULES, config)


def _native_bindings(config: CLIPConfig) -> list[Binding]:
    return bind_trunk(_NATIVE_RULES, config)


TRUNKS = (
    TimmTrunk(("siglip",), _TOWERS, "map", ("none", ""), _bindings),
    TimmTrunk(("siglip",), _NATIVE_TOWERS, "map", ("none", ""), _native_bindings, native=True),
)
