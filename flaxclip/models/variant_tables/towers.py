"""Towers of CLIP's shape, which most families start from."""

from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig


def vit(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, mlp_ratio: float = 4.0
) -> ViTConfig:
    """With GELU."""
    return ViTConfig(image_size, patch_size, width, layers, heads, mlp_ratio, "gelu")


def text_tower(width: int, layers: int = 12, context: int = 77) -> TextConfig:
    """With GELU, and heads of 64 channels."""
    return TextConfig(context, width=width, layers=layers, heads=width // 64, activation="gelu")
