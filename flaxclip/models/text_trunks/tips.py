"""The text tower of TIPSv2 (google-deepmind/tips, `pytorch/text_encoder.py`).

Positions are sines and cosines, the MLP is a ReLU, and the mean of what is no padding yields the
embedding, without a projection.
"""

from flax import linen as nn

from flaxclip.models.initializers import BlockInit
from flaxclip.models.text_trunks.text_family import TextFamily, normal

FAMILIES = {
    "tips": TextFamily(
        readout="mean",
        causal=False,
        attends_to_padding=False,
        post_norm=False,
        segments=0,
        projection_bias=False,
        more_positions=False,
        token_init=normal(),
        position_init=normal(),
        block_init=lambda width, mlp_width, layers: BlockInit.xavier(width, mlp_width),
        projection_init=lambda width: nn.initializers.lecun_normal(),
        projection="none",
        positions="sinusoidal",
        scaled_tokens=True,
    ),
}
