"""`adapter_config.json` of peft: how much of an adapter is added, and to which base."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from flaxclip.errors import InputError
from flaxclip.interop.archives.weight_names import ADAPTER_CONFIG, ADAPTERS, WEIGHTS
from flaxclip.interop.source import parse, read_json

# peft 0.21. These say which modules were adapted, or how training went: names and numbers of the
# tensors tell all that merging needs.
_NO_MATTER = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern",
    "revision", "runtime_config", "target_modules", "task_type", "use_dora", "use_rslora",
    "eva_config", "loftq_config", "corda_config", "lora_ga_config",
}  # fmt: skip

# Others, such as PiSSA and OLoRA, subtract what they begin with from the base.
_UNCHANGED_BASE = (True, False, "gaussian", "eva", "orthogonal")

_MERGE_WITH_PEFT = "merge it with peft: model.merge_and_unload().save_pretrained(folder)"


@dataclasses.dataclass(frozen=True)
class _Fields:
    peft_type: str
    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: dict[str, float] = dataclasses.field(default_factory=dict)
    init_lora_weights: bool | str = True
    base_model_name_or_path: str | None = None
    revision: str | None = None


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Settings of a LoRA adapter whose merged weights are defined by its tensors."""

    folder: Path
    fields: _Fields

    def rank(self, module: str) -> int:
        """Rank of the pair of a module, by its name in the adapted model."""
        return _by_pattern(self.fields.rank_pattern, module, self.fields.r)

    def scale(self, module: str) -> float:
        """Factor on a module's product B A (Hu et al. 2022, section 4.1; Kalajdzievski 2023)."""
        alpha = _by_pattern(self.fields.alpha_pattern, module, self.fields.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.fields.use_rslora else rank)

    def base(self) -> str:
        """Path or URL of the base: the one that is named, or the weights beside the adapter.

        Raises:
            InputError: there is none of either.
        """
        named = self.fields.base_model_name_or_path
        beside = [self.folder / name for name in WEIGHTS if (self.folder / name).is_file()]
        if named and "://" in named:
            return named
        named_here = named and (self.folder / named).resolve() == self.folder.resolve()
        if named and not named_here:
            for path in (self.folder / named, Path(named).expanduser()):
                if path.exists():
                    return str(path)
        if beside:
            return str(beside[0])
        if named and re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", named):
            return f"hf://{named}" + (f"@{self.fields.revision}" if self.fields.revision else "")
        raise InputError(
            f"{self.folder / ADAPTER_CONFIG} has base_model_name_or_path {named!r}\n"
            "no model is there: put the path, hf://ORGANISATION/REPOSITORY or another URL of the "
            "base's directory into that field, or the base's files beside the adapter"
        )


def _by_pattern(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """The first value whose pattern is the end of the module's name, as peft looks them up."""
    found = (v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module))
    return next(found, default)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The settings in `folder`.

    Raises:
        InputError: they cannot be read, or describe something whose merging is not defined by the
            tensors alone.
    """
    path = folder / ADAPTER_CONFIG
    values = read_json(path)
    fields = parse(_Fields, values, path)
    if fields.peft_type != "LORA":
        raise InputError(
            f"{path}: peft_type is {fields.peft_type!r}\nof peft's adapters LORA can be read; "
            f"{_MERGE_WITH_PEFT}"
        )
    if fields.init_lora_weights not in _UNCHANGED_BASE:
        raise InputError(
            f"{path}: init_lora_weights is {fields.init_lora_weights!r}, which changes the base "
            "before the adapter is added to it\n"
            "save it with path_initial_model_for_weight_conversion, which makes it a plain LoRA; "
            f"or {_MERGE_WITH_PEFT}"
        )
    # A field that is not set changes nothing, whatever it means.
    if unknown := sorted(n for n, value in values.items() if value and n not in _NO_MATTER):
        raise InputError(
            f"{path}: {unknown[0]} is {values[unknown[0]]!r}\n"
            f"which changes the adapter in a way that is not read; {_MERGE_WITH_PEFT}"
        )
    for name, patterns in (("rank", fields.rank_pattern), ("alpha", fields.alpha_pattern)):
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"{path}: {name}_pattern has {pattern!r}, no regular expression: {error}"
                ) from None
    if min(fields.r, *fields.rank_pattern.values(), fields.r) < 1:
        raise InputError(f"{path}: a rank is not positive\nexpected 1 or more")
    return AdapterConfig(folder, fields)


def is_adapter(weights: Path) -> bool:
    """True if this is the file, or the index of the files, of an adapter's tensors."""
    return weights.name in ADAPTERS and (weights.parent / ADAPTER_CONFIG).is_file()
