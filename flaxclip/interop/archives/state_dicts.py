"""Find the weights in a checkpoint of torch, and restore their names.

A file of weights alone is a state dict. A training checkpoint holds one among other things, and
often two: the trained weights, and their average over the last steps (EMA), which is what a run is
usually measured by. timm loads the average by default, and so does flaxclip.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from flaxclip.errors import InputError
from flaxclip.interop.archives.torch_values import Other, ScriptObject, TensorView

MAX_MODULES = 10_000
"""Most modules in a TorchScript model; those in several places count each time. The largest CLIP
has 700."""

T = TypeVar("T")

WhichWeights = Literal["ema", "raw"]
"""The choice, in a run that has both, between the average (EMA) and the weights as trained."""

# open_clip and Lightning; PyTorch's tutorial; timm and DeiT; DeepSpeed; and others.
_RAW = ("state_dict", "model_state_dict", "model", "module", "model_state", "net", "network",
        "params", "weights")  # fmt: skip
# state_dict_ema is of timm, model_ema of DeiT and ConvNeXt; others have other orders of the words.
_AVERAGE = re.compile(r"(^|_)(ema|swa|avg|averaged?)(_|$)", re.IGNORECASE)

# Lightning's WeightAveraging puts the average in place of the weights, and the weights elsewhere.
_LIGHTNING_RAW, _LIGHTNING_MARK = "current_model_state", "averaging_state"

# What wraps a whole model: DistributedDataParallel, a LightningModule and other classes of users.
_OUTER = ("module.", "model.", "net.", "network.", "clip.", "clip_model.")
# What wraps any part of it: torch.compile, FSDP and activation checkpointing. No module of a model
# is called so.
_ANYWHERE = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# torch.optim.swa_utils.AveragedModel counts in it, beside the average as `module.`
_COUNT = "n_averaged"


class Chosen(NamedTuple):
    """One of the sets of weights in a file."""

    tensors: dict[str, TensorView]
    key: str
    """Its key in the file; empty if it is the whole file."""
    is_average: bool
    others: tuple[str, ...]
    """Keys of the sets that were not chosen."""


def choose_weights(value: Any, which: WhichWeights | None) -> Chosen:
    """The weights in what a torch file holds: a state dict, a checkpoint with some, a TorchScript.

    Args:
        value: as `torch_pickle.read_pickle` describes it.
        which: of the average and the weights themselves. If None, the average where there is one.

    Raises:
        InputError: there are no weights, or not those that are asked for.
    """
    if isinstance(value, ScriptObject):
        return Chosen(_attributes(value), "", False, ())
    if not isinstance(value, dict):
        raise InputError(
            f"the file holds a {_name(value)}\nexpected a state dict or a TorchScript model"
        )
    raw, averages = _sets(value)
    if not raw and not averages:
        return Chosen(_checked(value), "", False, ())
    taken = {"ema": averages, "raw": raw, None: averages or raw}[which]
    if not taken:
        missing = (
            "average of weights that can be read"
            if which == "ema"
            else "weights besides their average"
        )
        raise InputError(
            f"the file holds no {missing}\nit has: {', '.join([*raw, *averages])}; leave out the "
            "choice between ema and raw"
        )
    key = next(iter(taken))
    # Some averages are lists of tensors, which do not say whose they are.
    unread = [n for n, x in value.items() if _is_average(n) and _has_tensors(x)]
    others = tuple(n for n in dict.fromkeys((*raw, *averages, *unread)) if n != key)
    return Chosen(_checked(taken[key]), key, taken is averages, others)


def _sets(value: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Weights and averages in a checkpoint, each with its key, the likeliest first."""
    found = {
        key: tensors
        for key, inner in value.items()
        if isinstance(key, str) and (tensors := _state_dict_in(inner)) is not None
    }
    averages = {
        key: tensors
        for key, tensors in found.items()
        if _is_average(key) or (key in _RAW and _counts_averages(tensors))
    }
    raw = {key: found[key] for key in _RAW if key in found.keys() - averages.keys()}
    if raw:  # averages of something else, such as losses, have other names
        known = {name for tensors in raw.values() for name in _short_names(tensors)}
        averages = {
            key: tensors for key, tensors in averages.items() if known & _short_names(tensors)
        }
    if _LIGHTNING_RAW in found and _LIGHTNING_MARK in value and "state_dict" in found:
        averages = {"state_dict": found["state_dict"]}
        raw = {_LIGHTNING_RAW: found[_LIGHTNING_RAW]}
    return raw, averages


def _is_average(key: Any) -> bool:
    return isinstance(key, str) and _AVERAGE.search(key) is not None


def _has_tensors(value: Any, depth: int = 2) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(x, TensorView) or (depth and _has_tensors(x, depth - 1)) for x in parts)


def _state_dict_in(value: Any, depth: int = 3) -> dict[Any, Any] | None:
    """`value` if it is a state dict, or the one in it, e.g. of a wrapper that was saved whole."""
    if not isinstance(value, dict):
        return None
    if any(isinstance(tensor, TensorView) for tensor in value.values()):
        return value
    inner = (_state_dict_in(value[key], depth - 1) for key in _RAW if depth and key in value)
    return next((tensors for tensors in inner if tensors is not None), None)


def _short_names(tensors: dict[Any, Any]) -> set[str]:
    names = {name: None for name in tensors if isinstance(name, str)}
    return set(without_wrappers(names)[0])


def _checked(tensors: dict[Any, Any]) -> dict[str, TensorView]:
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise InputError(f"the file holds a dict with {name!r} for a name, not a state dict")
        if not isinstance(tensor, TensorView):
            raise InputError(
                f"{name!r} in the file is of type {_name(tensor)}, not a tensor that can be read\n"
                "expected a state dict, or a dict that holds one under a name such as "
                f"{', '.join(_RAW[:3])}"
            )
    return tensors


def _name(value: Any) -> str:
    return value.kind if isinstance(value, Other) else type(value).__name__


def _attributes(model: ScriptObject) -> dict[str, TensorView]:
    tensors = {}
    modules = [("", model)]
    # It grows while it is walked, and without an end where a damaged file has a module in itself.
    for prefix, module in modules:
        for name, value in module.attributes.items():
            if isinstance(value, TensorView):
                tensors[prefix + str(name)] = value
            elif isinstance(value, ScriptObject):
                modules.append((f"{prefix}{name}.", value))
        if len(modules) > MAX_MODULES:
            raise InputError(f"the model has more than {MAX_MODULES:,} modules")
    return tensors


def without_wrappers(tensors: Mapping[str, T]) -> tuple[dict[str, T], bool]:
    """The tensors by their names in the model itself, and whether they are an average.

    Names in training have prefixes, in any order: `module._orig_mod.` is a compiled model in
    DistributedDataParallel. Only torch's AveragedModel marks an average.

    Raises:
        InputError: two names become one, or a CLIP lies beside other parameters.
    """
    names = {name: _ANYWHERE.sub("", name) for name in tensors}
    is_average = _counts_averages(names.values())
    if is_average:
        names = {name: short for name, short in names.items() if short != _COUNT}
    while (prefix := _common(names.values())) is not None:
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    _check_alone(names.values())
    if len(set(names.values())) < len(names):
        raise InputError(
            "two tensors have the same name without the prefixes of training, such as "
            f"{', '.join(sorted(_twins(names))[:2])}"
        )
    return {short: tensors[name] for name, short in names.items()}, is_average


def _counts_averages(names: Iterable[str]) -> bool:
    """True if a state dict with these names is that of an AveragedModel."""
    names = set(map(str, names))
    others = names - {_COUNT}
    return _COUNT in names and bool(others) and all(n.startswith("module.") for n in others)


def _common(names: Iterable[str]) -> str | None:
    names = list(names)
    fitting = (prefix for prefix in _OUTER if all(name.startswith(prefix) for name in names))
    return next(fitting, None) if names else None


def _check_alone(names: Collection[str]) -> None:
    """Raise InputError if a CLIP is under a prefix, and other parameters are not."""
    for prefix in _OUTER:
        if f"{prefix}logit_scale" not in names:
            continue
        beside = sorted(name for name in names if not name.startswith(prefix))
        raise InputError(
            f"a CLIP lies under {prefix!r} in the file, and {len(beside)} other "
            f"tensor{'s' * (len(beside) > 1)} beside it: "
            + ", ".join(beside[:5] + ["..."] * (len(beside) > 5))
            + "\nexpected the CLIP alone: a LightningModule with parameters of its own has more; "
            f"save its {prefix.removesuffix('.')}.state_dict()"
        )


def _twins(names: Mapping[str, str]) -> list[str]:
    seen: dict[str, str] = {}
    twins = []
    for name, short in names.items():
        if short in seen:
            twins += [seen[short], name]
        seen[short] = name
    return twins
