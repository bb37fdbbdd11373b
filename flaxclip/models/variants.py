"""Named architectures, by open_clip's names, and LiT's: a table and nothing else.

`-quickgelu` marks those whose transformers have OpenAI's activation: OpenAI's own models, MetaCLIP,
DFN, and LAION-400M's ViT-B-32. Those without it have GELU: LAION-2B, DataComp and most others.
Preprocessing is the family's, and that of texts is the one in open_clip's configurations; single
checkpoints that differ (DFN's ViT-H-14 squashes, LAION-2B's ViT-L-14 has SigLIP's mean) must say so
themselves.
"""

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variant_tables.clip import CLIP
from flaxclip.models.variant_tables.clipa import CLIPA
from flaxclip.models.variant_tables.siglip import LIT, SIGLIP
from flaxclip.models.variant_tables.text_trunks import TEXT_TRUNKS
from flaxclip.models.variant_tables.trunks import TRUNKS
from flaxclip.models.vision_transformer import ViTConfig

VARIANTS: dict[str, ModelSpec] = {
    # For tests and the built-in data: few, large patches and a short context are what make it fast.
    "ViT-tiny": ModelSpec(
        CLIPConfig(
            vision=ViTConfig(image_size=32, patch_size=8, width=128, layers=4, heads=4),
            text=TextConfig(context_length=20, width=64, layers=2, heads=2),
            embed_dim=64,
        )
    ),
    **CLIP,
    **SIGLIP,
    **LIT,
    **TEXT_TRUNKS,
    **CLIPA,
    **TRUNKS,
}
