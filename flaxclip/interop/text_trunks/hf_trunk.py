"""What a family's file says of transformers' text towers, and the names that many of them share."""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from flaxclip.interop.name_table import Rule
from flaxclip.models.text_transformer import TextConfig


class HFTrunk(NamedTuple):
    """Towers that open_clip takes from transformers by name, in `text_cfg`, and what it adds."""

    family: str
    """Value of our `text.family`."""
    towers: Mapping[str, TextConfig]
    """`hf_model_name` without its owner -> the tower."""
    pooler: str
    """`hf_pooler_type`."""
    proj: str
    """`hf_proj_type`."""
    rules: tuple[Rule, ...]
    """Names under `text.`."""
    tokenizer: Literal["xlm_v", "mt5", "nllb"]
    tokenizer_names: re.Pattern[str]
    """`hf_tokenizer_name`, as the hub has it and as we write it."""
    tokenizer_hint: str
    """What that should be, for people."""


def dense(ours: str, theirs: str, kernel: str, bias: str | None = None) -> list[Rule]:
    """A dense layer's kernel and, with its axes given, bias."""
    rules = [Rule(f"{ours}/kernel", f"{theirs}.weight", kernel)]
    return rules + ([] if bias is None else [Rule(f"{ours}/bias", f"{theirs}.bias", bias)])


def norm(ours: str, theirs: str, layer: str = "") -> list[Rule]:
    """Both parameters of a norm; `layer` is "layer " for a stacked one."""
    return [
        Rule(f"{ours}/scale", f"{theirs}.weight", f"w -> {layer}w"),
        Rule(f"{ours}/bias", f"{theirs}.bias", f"w -> {layer}w"),
    ]


TOKENS = "vocab w -> vocab w"
QKV = "(head k) w -> layer w head part k"
QKV_BIAS = "(head k) -> layer head part k"
OUT = "w (head k) -> layer head k w"
FC1 = "mlp w -> layer w mlp"
FC2 = "w mlp -> layer mlp w"
BIAS = "w -> layer w"
MLP_BIAS = "mlp -> layer mlp"

MLP_PROJECTION = (
    Rule("projection_hidden/kernel", "proj.0.weight", "hidden w -> w hidden"),
    Rule("projection/kernel", "proj.2.weight", "embed hidden -> hidden embed"),
)
LINEAR_PROJECTION = (Rule("projection/kernel", "proj.weight", "embed w -> w embed"),)
