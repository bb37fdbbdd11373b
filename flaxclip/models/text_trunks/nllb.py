"""The encoder of NLLB-200 (NLLB Team 2022), which translates from 202 languages.

That of M2M-100 (Fan et al. 2020; transformers, `models/m2m_100`): positions are sines and cosines
that count from 2, and the MLP is a ReLU. A caption begins with the token of its language, where
open_clip reads it out (`hf_model.py`; Visheratin 2023, "NLLB-CLIP").
"""

from flax import linen as nn

from flaxclip.models.initializers import BlockInit
from flaxclip.models.text_trunks.text_family import TextFamily, normal

_NORMAL = nn.initializers.normal(0.02)

FAMILIES = {
    "nllb": TextFamily(
        readout="first position",
        causal=False,
        attends_to_padding=False,
        post_norm=False,
        segments=0,
        projection_bias=False,
        more_positions=False,
        token_init=normal(0.02),
        position_init=normal(0.02),
        block_init=lambda width, mlp_width, layers: BlockInit(
            qkv_kernel=_NORMAL,
            out_kernel=_NORMAL,
            fc1_kernel=_NORMAL,
            fc1_bias=nn.initializers.zeros,
            fc2_kernel=_NORMAL,
            fc2_bias=nn.initializers.zeros,
        ),
        projection_init=lambda width: nn.initializers.lecun_normal(),
        padding=1,
        numbered_from=2,
        positions="sinusoidal",
        scaled_tokens=True,
    ),
}
