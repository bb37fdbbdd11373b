"""Named architectures: a table and nothing else."""

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import VisionConfig

VARIANTS: dict[str, CLIPConfig] = {
    # For tests and the built-in data: few, large patches and a short context are what make it fast.
    "ViT-tiny": CLIPConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=128, layers=4, heads=4),
        text=TextConfig(context_length=20, width=64, layers=2, heads=2),
        embed_dim=64,
        unroll=4,
    ),
    # Radford et al. 2021, table 20.
    "ViT-B-32": CLIPConfig(),
    "ViT-B-16": CLIPConfig(vision=VisionConfig(patch_size=16)),
    "ViT-L-14": CLIPConfig(
        vision=VisionConfig(patch_size=14, width=1024, layers=24, heads=16),
        text=TextConfig(width=768, heads=12),
        embed_dim=768,
    ),
    "ViT-L-14-336": CLIPConfig(
        vision=VisionConfig(image_size=336, patch_size=14, width=1024, layers=24, heads=16),
        text=TextConfig(width=768, heads=12),
        embed_dim=768,
    ),
}
