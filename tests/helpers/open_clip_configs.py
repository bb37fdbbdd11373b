"""The models of `parity/open_clip_cases.py`, as our configurations."""

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from tests.parity.open_clip_cases import BIGG, EMBED_DIM, SIGLIP, TEXT

SIGLIP_CONFIG = CLIPConfig(
    vision=ViTConfig(**SIGLIP, activation="gelu_tanh", norm_eps=1e-6, family="siglip"),
    text=TextConfig(**TEXT, activation="gelu_tanh", norm_eps=1e-6, family="siglip"),
    embed_dim=SIGLIP["width"],
    init_logit_bias=-10.0,
)
CONFIGS = {
    "bigG": CLIPConfig(
        vision=ViTConfig(**BIGG, activation="gelu"),
        text=TextConfig(**TEXT, activation="gelu"),
        embed_dim=EMBED_DIM,
    ),
    "siglip": SIGLIP_CONFIG,
}
