"""A base's tensors with an adapter of peft merged into them, by the base's own names.

Numbers are read when they are asked for, one tensor after the other, and computed in float32.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flaxclip.errors import InputError
from flaxclip.interop.archives.open_archive import open_archive
from flaxclip.interop.archives.state_dicts import without_wrappers
from flaxclip.interop.archives.stored_tensor import StoredTensor
from flaxclip.interop.peft.adapter_config import AdapterConfig

Tensors = Mapping[str, StoredTensor]

# The module's name, then the part of the adapter that the tensor is.
_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(A|B|embedding_A|embedding_B|magnitude_vector))"
    r"(\.default)?(?P<kind>\.weight|\.bias|)"
)
_ROOT = "base_model.model."

# The projection inside an adapted nn.MultiheadAttention. peft (0.17 to 0.21) adds its product
# twice, in the forward pass of training as in merging.
_ADDED_TWICE = ".base_layer.out_proj"


@dataclasses.dataclass
class _Pair:
    """What an adapter has for one module."""

    named: str
    """The module's name in the adapted model, to look patterns up with."""
    parts: dict[str, StoredTensor]
    times: int = 1
    """How often the product is added."""


class Merged(NamedTuple):
    """Tensors with an adapter merged into them."""

    tensors: dict[str, StoredTensor]
    summary: str
    """Counts of what was changed, for people."""


def merge_adapter(base: Tensors, file: Path, config: AdapterConfig) -> Merged:
    """`base` with the adapter in `file` merged into it.

    Modules that the adapter holds as a whole (`modules_to_save`, biases) replace the base's.

    Raises:
        InputError: a tensor of the adapter belongs to none of the base's, or does not fit it.
    """
    found = open_archive(file)
    pairs, whole = _sorted_out(found)
    tensors = dict(base)
    try:
        for name, tensor in whole.items():
            if name not in base:
                raise _not_in_base(name)
            _check(name, "the base's tensor", tensor.shape, base[name].shape)
            tensors[name] = tensor
        for module, pair in pairs.items():
            name = _target(module, base)
            tensors[name] = _with_pair(tensors[name], name, pair, config)
            if "lora_B.bias" in pair.parts:
                bias = f"{module}.bias"
                if bias not in base:
                    raise _not_in_base(bias)
                tensors[bias] = _with_bias(tensors[bias], pair, config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    kind = "DoRA" if config.fields.use_dora else "LoRA"
    replaced = f" and {len(whole)} whole tensors" if whole else ""
    return Merged(tensors, f"{kind} of {len(pairs)} matrices{replaced}")


def _sorted_out(found: Tensors) -> tuple[dict[str, _Pair], dict[str, StoredTensor]]:
    """Parts by the module that they belong to, and tensors that replace the base's."""
    full = {name.removeprefix(_ROOT): tensor for name, tensor in found.items()}
    # Wrappers of the whole model may stand before the names, as in any checkpoint.
    shorter, _ = without_wrappers({name: (name, tensor) for name, tensor in full.items()})
    pairs: dict[str, _Pair] = {}
    whole = {}
    for short, (name, tensor) in shorter.items():
        match = _PART.fullmatch(short)
        if match is None:
            whole[short.replace(".base_layer.", ".")] = tensor
            continue
        module = match["module"].replace(".base_layer.", ".")
        # Of a MultiheadAttention peft adapts the projection too, by the settings of the whole.
        named = re.split(r"\.base_layer\.|\.lora_", name, maxsplit=1)[0]
        suffix = ".bias" if match["kind"] == ".bias" else ""
        times = 2 if match["module"].endswith(_ADDED_TWICE) else 1
        pair = pairs.setdefault(module, _Pair(named, {}, times))
        pair.parts[match["part"] + suffix] = tensor
    return pairs, whole


def _target(module: str, base: Tensors) -> str:
    for name in (f"{module}.weight", f"{module}.in_proj_weight"):
        if name in base:
            return name
    raise _not_in_base(module)


def _with_pair(tensor: StoredTensor, name: str, pair: _Pair, config: AdapterConfig) -> StoredTensor:
    """The tensor plus B A, scaled; for DoRA its rows then have the lengths that were learned."""
    embedding = "lora_embedding_A" in pair.parts
    sides = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    missing = [side for side in sides if side not in pair.parts]
    if missing:
        raise InputError(f"{pair.named} has no {missing[0]}\nexpected both matrices of the pair")
    a, b = (pair.parts[side] for side in sides)
    rank = config.rank(pair.named)
    inputs, outputs = a.shape[1:], b.shape[:1]
    if a.shape[:1] != (rank,) or b.shape != (*outputs, rank, *[1] * (len(inputs) - 1)):
        raise InputError(
            f"{pair.named} has matrices of shapes {list(a.shape)} and {list(b.shape)}\n"
            f"expected the rank {rank} of adapter_config.json in both"
        )
    _check(pair.named, name, (*inputs, *outputs) if embedding else (*outputs, *inputs),
           tensor.shape)  # fmt: skip
    magnitude = pair.parts.get("lora_magnitude_vector")
    if (magnitude is None) == config.fields.use_dora:
        raise InputError(
            f"{pair.named} has {'no' if magnitude is None else 'a'} magnitude vector, and use_dora "
            f"in adapter_config.json is {config.fields.use_dora}"
        )
    if magnitude is not None and (embedding or len(tensor.shape) != 2):
        raise InputError(
            f"{pair.named} is a DoRA of an embedding or a convolution\n"
            "only that of matrices is read: merge it with peft, model.merge_and_unload()"
        )
    scale = pair.times * config.scale(pair.named)

    def read() -> Float[np.ndarray, "..."]:
        product = _float32(b).reshape(*outputs, rank) @ _float32(a).reshape(rank, -1)
        product = product.T if embedding else product
        merged = _float32(tensor) + scale * product.reshape(tensor.shape)
        if magnitude is not None:
            lengths = np.linalg.norm(merged, axis=1, keepdims=True)
            merged = merged * (_float32(magnitude).reshape(-1, 1) / lengths)
        return merged.astype(np.float32, copy=False)

    return _computed(tensor, name, read)


def _with_bias(tensor: StoredTensor, pair: _Pair, config: AdapterConfig) -> StoredTensor:
    bias = pair.parts["lora_B.bias"]
    _check(pair.named, tensor.name, bias.shape, tensor.shape)
    scale = config.scale(pair.named)

    def read() -> Float[np.ndarray, "..."]:
        return (_float32(tensor) + scale * _float32(bias)).astype(np.float32, copy=False)

    return _computed(tensor, tensor.name, read)


def _computed(tensor: StoredTensor, name: str, read: Callable[[], np.ndarray]) -> StoredTensor:
    return StoredTensor(name, tensor.shape, np.dtype(np.float32), read)


def _float32(tensor: StoredTensor) -> Float[np.ndarray, "..."]:
    return np.asarray(tensor).astype(np.float32, copy=False)


def _check(what: str, of: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(
            f"{what} is for a tensor of shape {list(found)}\n"
            f"{of} has {list(expected)}: is this the base that it was trained on?"
        )


def _not_in_base(name: str) -> InputError:
    return InputError(
        f"{name} is in the adapter, and not in the base\nis this the base that it was trained on?"
    )
