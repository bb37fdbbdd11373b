"""RoBERTa and XLM-R (transformers 5.24, `models/xlm_roberta`; open_clip 3.3, `hf_model.py`)."""

import re

from flaxclip.interop.name_table import Rule, prefixed
from flaxclip.interop.text_trunks.hf_trunk import (
    BIAS,
    FC1,
    FC2,
    MLP_BIAS,
    MLP_PROJECTION,
    OUT,
    QKV,
    QKV_BIAS,
    TOKENS,
    HFTrunk,
    dense,
    norm,
)
from flaxclip.models.variants import VARIANTS

_LAYER = (
    *dense("attention/qkv", "attention.self.{part}", QKV, QKV_BIAS),
    *dense("attention/out", "attention.output.dense", OUT, BIAS),
    *norm("ln_1", "attention.output.LayerNorm", "layer "),
    *dense("mlp/fc1", "intermediate.dense", FC1, MLP_BIAS),
    *dense("mlp/fc2", "output.dense", FC2, BIAS),
    *norm("ln_2", "output.LayerNorm", "layer "),
)
_TOWER = (
    Rule("token_embedding", "embeddings.word_embeddings.weight", TOKENS),
    Rule("position_embedding", "embeddings.position_embeddings.weight", "position w -> position w"),
    Rule("segment_embedding", "embeddings.token_type_embeddings.weight", "segment w -> segment w"),
    *norm("ln_embedding", "embeddings.LayerNorm"),
    *prefixed(_LAYER, "transformer/blocks/", "encoder.layer.{layer}."),
)

TRUNKS = (
    HFTrunk(
        family="xlm_roberta",
        towers={
            "xlm-roberta-base": VARIANTS["xlm-roberta-base-ViT-B-32"].model.text,
            "xlm-roberta-large": VARIANTS["xlm-roberta-large-ViT-H-14"].model.text,
            "roberta-base": VARIANTS["roberta-ViT-B-32"].model.text,
        },
        pooler="mean_pooler",
        proj="mlp",
        rules=(*prefixed(_TOWER, "", "transformer."), *MLP_PROJECTION),
        tokenizer="xlm_v",
        tokenizer_names=re.compile(r"(^|/)(xlm-roberta-(base|large)|roberta-base|xlm_v)$"),
        tokenizer_hint="xlm-roberta-base, -large or roberta-base, as the tower",
    ),
)
