"""The encoder of NLLB-200 (transformers 5.24, `models/m2m_100`; open_clip 3.3, `hf_model.py`)."""

import re

from flaxclip.interop.name_table import Rule, prefixed
from flaxclip.interop.text_trunks.hf_trunk import (
    BIAS,
    FC1,
    FC2,
    LINEAR_PROJECTION,
    MLP_BIAS,
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
    *norm("ln_1", "self_attn_layer_norm", "layer "),
    *dense("attention/qkv", "self_attn.{qkv}_proj", QKV.replace("part", "qkv"),
           QKV_BIAS.replace("part", "qkv")),
    *dense("attention/out", "self_attn.out_proj", OUT, BIAS),
    *norm("ln_2", "final_layer_norm", "layer "),
    *dense("mlp/fc1", "fc1", FC1, MLP_BIAS),
    *dense("mlp/fc2", "fc2", FC2, BIAS),
)  # fmt: skip
_TOWER = (
    Rule("token_embedding", "embed_tokens.weight", TOKENS),
    *prefixed(_LAYER, "transformer/blocks/", "layers.{layer}."),
    *norm("ln_final", "layer_norm"),
)

TRUNKS = (
    HFTrunk(
        family="nllb",
        towers={
            "nllb-200-distilled-600M": VARIANTS["nllb-clip-base"].model.text,
            "nllb-200-distilled-1.3B": VARIANTS["nllb-clip-large"].model.text,
        },
        pooler="cls_pooler",
        proj="linear",
        rules=(*prefixed(_TOWER, "", "transformer."), *LINEAR_PROJECTION),
        tokenizer="nllb",
        tokenizer_names=re.compile(r"(^|/)nllb(-200-distilled-(600M|1\.3B))?$"),
        tokenizer_hint="facebook/nllb-200-distilled-600M or -1.3B, as the tower",
    ),
)
