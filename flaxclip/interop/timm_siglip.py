"""timm's SigLIP image towers, which open_clip's configuration names without describing them.

timm, `models/vision_transformer.py`. Google trained all with the tanh approximation of GELU; the
towers that timm added first, and open_clip's models with them, have the exact one.
"""

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


TIMM_TOWERS: dict[str, ViTConfig] = {
    f"vit_{name}": _tower(name, activation)
    for activation, names in _NAMES.items()
    for name in names
}
