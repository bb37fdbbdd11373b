"""`text_cfg` of text towers that open_clip takes from transformers by name (3.3, `hf_model.py`)."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from flaxclip.errors import InputError
from flaxclip.interop.open_clip.read_tokenizer import TokenizerArguments
from flaxclip.interop.source import Size
from flaxclip.interop.text_trunks.hf_trunk import HFTrunk
from flaxclip.interop.text_trunks.registry import HF_TRUNKS
from flaxclip.models.text_transformer import TextConfig


@dataclasses.dataclass(frozen=True)
class HFText:
    """open_clip's `text_cfg` of such towers; their sizes are those of the name.

    A pooler that is null is the architecture's; one that is left out is not.
    """

    hf_model_name: str
    hf_tokenizer_name: str | None = None
    hf_proj_type: str | None = "mlp"
    hf_pooler_type: str | None = "mean_pooler"
    hf_model_pretrained: bool = False
    context_length: Size = 77
    tokenizer_kwargs: TokenizerArguments | None = None


def named_tower(name: Any, field: str) -> tuple[HFTrunk, TextConfig]:
    """The tower that `hf_model_name` names.

    Raises:
        InputError: it is none of ours.
    """
    short = re.sub("^.*/", "", str(name))
    for trunk in HF_TRUNKS.values():
        if short in trunk.towers:
            return trunk, trunk.towers[short]
    raise InputError(
        f"{field}.hf_model_name is {name!r}\nof transformers' text towers flaxclip has "
        + ", ".join(name for trunk in HF_TRUNKS.values() for name in trunk.towers)
    )


def read_tower(found: HFText, path: Path) -> TextConfig:
    """The tower.

    Raises:
        InputError: it is none of ours, by the field that makes the difference.
    """
    field = f"{path}: text_cfg"
    trunk, tower = named_tower(found.hf_model_name, field)
    if found.hf_pooler_type not in (None, trunk.pooler) or found.hf_proj_type != trunk.proj:
        raise InputError(
            f"{field} has hf_pooler_type {found.hf_pooler_type!r} and hf_proj_type "
            f"{found.hf_proj_type!r}\nexpected {trunk.pooler!r} and {trunk.proj!r}"
        )
    return dataclasses.replace(tower, context_length=found.context_length)


def write_tower(text: TextConfig) -> dict[str, str | bool | int]:
    """The fields of `text_cfg` that name the tower.

    Raises:
        InputError: transformers has no tower of these sizes by name.
    """
    trunk = HF_TRUNKS[text.family]
    for name, tower in trunk.towers.items():
        if dataclasses.replace(tower, context_length=text.context_length) == text:
            return {
                "hf_model_name": name,
                "hf_model_pretrained": False,
                "hf_proj_type": trunk.proj,
                "hf_pooler_type": trunk.pooler,
                "context_length": text.context_length,
            }
    raise InputError(
        f"a text tower of {text.describe()}, {text.vocab_size:,} tokens and "
        f"{text.position_count} positions\nopen_clip takes such towers from transformers by name, "
        f"which are {', '.join(trunk.towers)}"
    )
