"""Freeze parameters in fine-tuning, or give them learning rates of their own, by their names.

A parameter's name is its path, such as `vision/transformer/blocks/mlp/fc1/kernel`; a pattern is a
regular expression that may match anywhere in it. Layers are stacked, so one name stands for all of
them, and a rate may be an array with one number a layer.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxclip.errors import InputError

Rate = float | np.ndarray
"""Factor on the learning rate: one for the parameter, or one for each of its stacked layers."""

# Below all layers. A ResNet's position embedding is none of them: it belongs to its pooling.
INPUTS = re.compile(
    r"(patch_embedding|class_embedding|register_embedding|token_embedding|position_embedding"
    r"|segment_embedding|ln_embedding|ln_pre|stem)(/|$)"
)

# Of a stage, in the order of its layers; True for a stack.
_STAGE_PARTS = {"downsample": False, "first": False, "rest": True}
_STACKS = re.compile(r"(^|/)(transformer/blocks|stage\d+/rest)/")


def map_names(function: Callable[..., Any], params: Any, *others: Any) -> Any:
    """A tree like `params`: `function` of each name, its value and its values in `others`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(
            jax.tree_util.keystr(path, simple=True, separator="/"), *leaves
        ),
        params,
        *others,
    )


def is_stacked(name: str) -> bool:
    """True if a parameter's first axis is that of a stack's layers."""
    return _STACKS.search(name) is not None


def frozen_mask(patterns: Sequence[str], params: Any) -> Any:
    """A tree of booleans: True for parameters that a pattern freezes."""
    return map_names(lambda name, _: any(re.search(p, name) for p in patterns), params)


def stop_frozen_gradients(patterns: Sequence[str], params: Any) -> Any:
    """`params` with constants for the frozen ones, so that no gradient is computed for them."""
    return jax.tree.map(
        lambda frozen, leaf: jax.lax.stop_gradient(leaf) if frozen else leaf,
        frozen_mask(patterns, params),
        params,
    )


def rate_multipliers(
    multipliers: Sequence[tuple[str, float]],
    layer_decay: Sequence[tuple[str, float]],
    params: Mapping[str, Any],
) -> Any:
    """A tree of factors on the learning rate, each a number or of shape [layers, 1, ...].

    Args:
        multipliers: patterns and factors; the first pattern that is found in a name counts.
        layer_decay: patterns and factors a layer; likewise. The factor applies once to a tower's
            last layer, once more to each layer below it, most often to the embeddings, and not at
            all to what comes after the layers (Clark et al. 2020, "ELECTRA", appendix A; Bao et al.
            2022, "BEiT", appendix H).
        params: of a CLIP, or their shapes.
    """

    def first(rules: Sequence[tuple[str, float]], name: str) -> float:
        return next((value for pattern, value in rules if re.search(pattern, name)), 1.0)

    def rate(name: str, leaf: Any) -> Rate:
        decay = first(layer_decay, name)
        factor = first(multipliers, name)
        tower, _, rest = name.partition("/")
        if decay == 1.0 or not rest:  # scalars come after both towers
            return factor
        return factor * decay ** _layers_above(rest, leaf, params[tower])

    return map_names(rate, params)


def _layers_above(name: str, leaf: Any, tower: Mapping[str, Any]) -> Rate:
    """Number of layer decay steps between a parameter and the tower's output."""
    layers, count = _numbered_layers(tower)
    for prefix, (first, stacked) in layers.items():
        if name.startswith(prefix):
            if not stacked:
                return count + 1 - first
            above = np.float32(count + 1 - first) - np.arange(leaf.shape[0], dtype=np.float32)
            return above.reshape(-1, *[1] * (leaf.ndim - 1))
    is_input = INPUTS.match(name) and not (name == "position_embedding" and "stage1" in tower)
    return count + 1 if is_input else 0


def _numbered_layers(tower: Mapping[str, Any]) -> tuple[dict[str, tuple[int, bool]], int]:
    """By prefix, the number of its first layer, from 1, and True for a stack; and the depth."""

    def length(stack: Any) -> int:
        return jax.tree.leaves(stack)[0].shape[0]

    if "transformer" in tower:
        return {"transformer/blocks/": (1, True)}, length(tower["transformer"]["blocks"])
    layers, count = {}, 0
    for stage in sorted(name for name in tower if name.startswith("stage")):
        for part, stacked in _STAGE_PARTS.items():
            if part in tower[stage]:
                layers[f"{stage}/{part}/"] = (count + 1, stacked)
                count += length(tower[stage][part]) if stacked else 1
    return layers, count


def check_patterns(field: str, patterns: Iterable[str], params: Any) -> None:
    """Check that each pattern is a regular expression and matches a parameter's name.

    Raises:
        InputError: one is not, or matches none: a typo would train or freeze the wrong ones.
    """
    names: list[str] = []
    map_names(lambda name, _: names.append(name), params)
    for pattern in patterns:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise InputError(
                f"{field} has the pattern {pattern!r}, which is no regular expression: {error}"
            ) from None
        if not found:
            raise InputError(
                f"{field} has the pattern {pattern!r}, which is in the name of no parameter\n"
                "names are such as " + ", ".join(names[:: max(1, len(names) // 8)])
            )
