"""Low-rank fine-tuning (LoRA, Hu et al. 2022).

A kernel W that is adapted has two more parameters beside it, `lora_a` [inputs, rank] and `lora_b`
[rank, outputs], and the model computes with W + scale * lora_a @ lora_b: in training as in what is
exported. Of a stack each layer has a pair of its own. Only the pairs train, so that optimizers keep
nothing for the rest; the gradient of a sum is that of its kernel, which exists for one moment.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flaxclip.errors import InputError
from flaxclip.fine_tuning.parameter_rules import check_patterns, is_stacked, map_names

PAIR = ("lora_a", "lora_b")

ALL_BUT_PAIRS = r"^(?!.*/lora_[ab]$)"
"""Pattern for the names of all parameters that are not of a pair."""

# First match wins; the number of axes of inputs in one layer's kernel, the rest being outputs.
# Kernels without a rule are convolutions, for which a product of two matrices is no natural form.
_INPUT_AXES: tuple[tuple[str, int], ...] = (
    (r"(attention|pool)/out/kernel$", 2),
    (r"(^|/)(qkv|query|key|value|fc1|fc2|gate|projection|patch_embedding|join\d)/kernel$", 1),
)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """The kernels that are adapted, and by how much."""

    patterns: tuple[str, ...]
    """Regular expressions for the kernels' names."""
    rank: int
    alpha: float
    """The product is scaled by alpha / rank, so that rates fit another rank too."""

    @property
    def scale(self) -> float:
        """Factor on the product."""
        return self.alpha / self.rank

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise InputError(
                f"lora_rank is {self.rank}, lora_alpha {self.alpha:g}\nboth must be positive"
            )


class Matrix(NamedTuple):
    """A kernel as one matrix a layer."""

    layers: tuple[int, ...]
    """(layers,) of a stack, or ()."""
    inputs: int
    outputs: int


def as_matrix(name: str, shape: Sequence[int]) -> Matrix | None:
    """The sizes of a kernel as a matrix; None for a parameter that is none."""
    axes = next((axes for rule, axes in _INPUT_AXES if re.search(rule, name)), None)
    if axes is None:
        return None
    start = int(is_stacked(name))
    sizes = shape[start:]
    return Matrix(tuple(shape[:start]), math.prod(sizes[:axes]), math.prod(sizes[axes:]))


def adapted_kernels(lora: LoRA, params: Any) -> dict[str, Matrix]:
    """The kernels that `lora` adapts, by name; `params` may be shapes, and hold pairs already."""
    found = {}

    def look(name: str, leaf: Any) -> None:
        matrix = as_matrix(name, leaf.shape)
        if matrix is not None and any(re.search(p, name) for p in lora.patterns):
            found[name] = matrix

    map_names(look, params)
    return found


def describe_lora(lora: LoRA, params: Any) -> str:
    """What is trained of a model, and what of it cannot be, for people; `params` may be shapes."""
    kernels = adapted_kernels(lora, params)
    sizes = [math.prod(m.layers) * (m.inputs + m.outputs) for m in kernels.values()]
    left_out = []

    def look(name: str, _: Any) -> None:
        matches = any(re.search(p, name) for p in lora.patterns)
        if name.endswith("/kernel") and matches and name not in kernels:
            left_out.append(name)

    map_names(look, params)
    text = (
        f"rank {lora.rank}, scale {lora.scale:g}: {lora.rank * sum(sizes):,} parameters train, "
        f"beside {len(kernels)} kernels: {', '.join(kernels)}"
    )
    if left_out:
        text += f"; not beside {len(left_out)} convolutions: {', '.join(left_out)}"
    return text


def check_lora(lora: LoRA, params: Any) -> None:
    """Check that each pattern is in the name of a kernel that can be adapted.

    Raises:
        InputError: one is not, or the rank is no smaller than a kernel.
    """
    kernels = adapted_kernels(LoRA(("",), 1, 1.0), params)
    # Patterns are matched with names, so a tree of these alone will do.
    check_patterns("lora", lora.patterns, dict.fromkeys(kernels, 0))
    for name, (_, inputs, outputs) in adapted_kernels(lora, params).items():
        if lora.rank >= min(inputs, outputs):
            raise InputError(
                f"lora_rank is {lora.rank}, and {name} is a matrix of {inputs} x {outputs}\n"
                f"choose less than {min(inputs, outputs)}, or train the kernel itself"
            )


def with_pairs(lora: LoRA | None, params: Any, key: Array) -> Any:
    """`params` with a new pair for each kernel that is adapted; the sums are the kernels.

    As in peft: `lora_a` uniform, within 1 / sqrt(inputs), and `lora_b` zero.
    """
    kernels = {} if lora is None else adapted_kernels(lora, params)
    keys = dict(zip(kernels, jax.random.split(key, max(1, len(kernels))), strict=False))

    def pair(name: str) -> tuple[Array, Array]:
        assert lora is not None, "there are kernels to adapt"
        (layers, inputs, outputs), bound = kernels[name], kernels[name].inputs ** -0.5
        a = jax.random.uniform(keys[name], (*layers, inputs, lora.rank), jnp.float32, -bound, bound)
        return a, jnp.zeros((*layers, lora.rank, outputs))

    return _beside_kernels(params, kernels, pair)


def abstract_with_pairs(lora: LoRA | None, params: Any) -> Any:
    """Shapes of `with_pairs`, from those of `params`, with shardings; all devices hold pairs."""
    kernels = {} if lora is None else adapted_kernels(lora, params)

    def pair(name: str) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        assert lora is not None, "there are kernels to adapt"
        layers, inputs, outputs = kernels[name]
        sharding = shardings[name]
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        shapes = (*layers, inputs, lora.rank), (*layers, lora.rank, outputs)
        a, b = (jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for s in shapes)
        return a, b

    shardings: dict[str, Any] = {}
    map_names(lambda name, leaf: shardings.update({name: leaf.sharding}), params)
    return _beside_kernels(params, kernels, pair)


def axes_with_pairs(lora: LoRA | None, logical_axes: Any, params: Any) -> Any:
    """`logical_axes` of `params`, and those of pairs, which every device holds whole."""
    kernels = {} if lora is None else adapted_kernels(lora, params)
    return _beside_kernels(logical_axes, kernels, lambda _: (PartitionSpec(), PartitionSpec()))


def _beside_kernels(tree: Any, kernels: Mapping[str, Any], pair: Any, at: str = "") -> Any:
    if not isinstance(tree, Mapping):
        return tree
    changed = {}
    for name, part in tree.items():
        changed[name] = _beside_kernels(part, kernels, pair, f"{at}{name}/")
        if f"{at}{name}" in kernels:
            changed |= dict(zip(PAIR, pair(f"{at}{name}"), strict=True))
    return changed


def merged(lora: LoRA | None, params: Any) -> Any:
    """The parameters that the model computes with: sums in place of kernels and their pairs."""
    if lora is None or not isinstance(params, Mapping):
        return params
    tree = {name: merged(lora, part) for name, part in params.items() if name not in PAIR}
    if PAIR[0] in params:
        a, b = (params[name] for name in PAIR)
        tree["kernel"] = tree["kernel"] + lora.scale * _product(a, b, tree["kernel"].shape)
    return tree


def _product(
    a: Float[Array, "*layers i r"], b: Float[Array, "*layers r o"], shape: Sequence[int]
) -> Float[Array, "..."]:
    # Exact on accelerators too, so that what is exported is what has been trained.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).reshape(shape)
