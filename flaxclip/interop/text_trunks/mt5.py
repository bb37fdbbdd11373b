"""The encoder of mT5 (transformers 5.24, `models/mt5`; open_clip 3.3, `hf_model.py`)."""

import re

from flaxclip.interop.name_table import Rule, prefixed
from flaxclip.interop.text_trunks.hf_trunk import (
    FC1,
    FC2,
    MLP_PROJECTION,
    OUT,
    QKV,
    TOKENS,
    HFTrunk,
    dense,
)
from flaxclip.models.variants import VARIANTS

_LAYER = (
    Rule("ln_1/scale", "0.layer_norm.weight", "w -> layer w"),
    *dense("attention/qkv", "0.SelfAttention.{qkv}", QKV.replace("part", "qkv")),
    *dense("attention/out", "0.SelfAttention.o", OUT),
    Rule("ln_2/scale", "1.layer_norm.weight", "w -> layer w"),
    *dense("mlp/gate", "1.DenseReluDense.wi_0", FC1),
    *dense("mlp/fc1", "1.DenseReluDense.wi_1", FC1),
    *dense("mlp/fc2", "1.DenseReluDense.wo", FC2),
)
_TOWER = (
    Rule("token_embedding", "embed_tokens.weight", TOKENS),
    # Of the first layer, for all of them.
    Rule("position_embedding", "block.0.layer.0.SelfAttention.relative_attention_bias.weight",
         "position head -> position head"),
    *prefixed(_LAYER, "transformer/blocks/", "block.{layer}.layer."),
    Rule("ln_final/scale", "final_layer_norm.weight", "w -> w"),
)  # fmt: skip

TRUNKS = (
    HFTrunk(
        family="mt5",
        towers={
            "mt5-base": VARIANTS["mt5-base-ViT-B-32"].model.text,
            "mt5-xl": VARIANTS["mt5-xl-ViT-H-14"].model.text,
        },
        pooler="mean_pooler",
        proj="mlp",
        rules=(*prefixed(_TOWER, "", "transformer."), *MLP_PROJECTION),
        tokenizer="mt5",
        tokenizer_names=re.compile(r"(^|/)(mt5-(base|xl)|mt5)$"),
        tokenizer_hint="google/mt5-base or -xl, as the tower",
    ),
)
