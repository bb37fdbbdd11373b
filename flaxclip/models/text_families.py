"""Text transformers that differ in more than sizes: CLIP's, SigLIP's, BERT, `text_trunks/`'s.

What the traits mean: `text_trunks/text_family.py`.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

from flax import linen as nn

from flaxclip.models.initializers import BlockInit
from flaxclip.models.text_trunks.registry import TEXT_FAMILIES
from flaxclip.models.text_trunks.text_family import BERT_BLOCK, BERT_NORMAL, TextFamily, normal

# Radford et al. 2021, section 2.4; initial values of openai/CLIP, `clip/model.py`.
_CLIP = TextFamily(
    readout="end of text",
    causal=True,
    attends_to_padding=True,
    post_norm=False,
    segments=0,
    projection_bias=False,
    more_positions=False,
    token_init=normal(0.02),
    position_init=normal(0.01),
    block_init=BlockInit.scaled_normal,
    projection_init=normal(),
)
# Zhai et al. 2023; initial values of big_vision's `nn.Embed` and learned positions.
_SIGLIP = TextFamily(
    readout="last position",
    causal=False,
    attends_to_padding=True,
    post_norm=False,
    segments=0,
    projection_bias=True,
    more_positions=False,
    token_init=normal(),
    position_init=normal(),
    block_init=lambda width, mlp_width, layers: BlockInit.xavier(width, mlp_width),
    projection_init=normal(),
)

FAMILIES: dict[str, TextFamily] = {
    "clip": _CLIP,
    "siglip": _SIGLIP,
    # Of the larger one of SigLIP's two models of a hundred languages.
    "siglip_i18n": dataclasses.replace(_SIGLIP, projection="none"),
    # Vasu et al. 2024, "MobileCLIP", of S0 to S4 and MobileCLIP2-L/14.
    "mobileclip": dataclasses.replace(_CLIP, causal=False),
    # Li et al. 2023, "An Inverse Scaling Law for CLIP Training"; its code is built on big_vision.
    "clipa": dataclasses.replace(_SIGLIP, projection_bias=False),
    # Devlin et al. 2019, section 3, without the pooler, as in LiT (Zhai et al. 2022;
    # google-research/big_vision, `models/proj/flaxformer/bert.py`; google/flaxformer,
    # `architectures/bert/bert.py`).
    "bert": TextFamily(
        readout="first position",
        causal=False,
        attends_to_padding=False,
        post_norm=True,
        segments=2,
        projection_bias=True,
        more_positions=True,
        token_init=lambda width: BERT_NORMAL,
        position_init=lambda width: BERT_NORMAL,
        block_init=lambda width, mlp_width, layers: BERT_BLOCK,
        projection_init=lambda width: nn.initializers.lecun_normal(),
    ),
    **TEXT_FAMILIES,
}
if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[tuple(FAMILIES)]
