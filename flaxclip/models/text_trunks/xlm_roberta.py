"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020), which is RoBERTa in 100 languages.

Ids 0, 1, 2 are start, padding and end, and positions count from 2 (transformers,
`models/xlm_roberta`); the mean and the projection are open_clip's (`hf_model.py`).
"""

from flax import linen as nn

from flaxclip.models.text_trunks.text_family import BERT_BLOCK, BERT_NORMAL, TextFamily

FAMILIES = {
    "xlm_roberta": TextFamily(
        readout="mean",
        causal=False,
        attends_to_padding=False,
        post_norm=True,
        segments=1,
        projection_bias=False,
        more_positions=True,
        token_init=lambda width: BERT_NORMAL,
        position_init=lambda width: BERT_NORMAL,
        block_init=lambda width, mlp_width, layers: BERT_BLOCK,
        projection_init=lambda width: nn.initializers.lecun_normal(),
        padding=1,
        numbered_from=2,
        projection="mlp",
    ),
}
