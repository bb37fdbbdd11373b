"""A model between others: WiSE-FT's line between two, and soups, which are means of several.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3; Wortsman et al. 2022,
"Model soups", section 2. Numbers are mixed in float32 as they are stored: the logit scale in its
logarithm, so that a scale is the geometric mean of the others'.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxclip.config import differing_fields
from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.errors import InputError
from flaxclip.interop.name_table import unflatten
from flaxclip.models.inputs import TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.weights import Weights

# They say how weights began, or where a file lies, and nothing about the model that there is.
_FREE = ("model.init_logit_scale", "model.vision.frozen_statistics", "tokenizer.file")


def shares_of(count: int, weight: float | None) -> list[float]:
    """The share of each of `count` models: 1 - weight and weight for two, or the same for all.

    Raises:
        InputError: fewer than two, a weight for more than two, or one that is not in [0, 1].
    """
    if count < 2:
        raise InputError(f"{count} model to mix\nname two or more")
    if weight is None:
        return [1 / count] * count
    if count > 2:
        raise InputError(
            f"a weight, and {count} models\nit is the second one's share of two; without it, all "
            "have the same"
        )
    if not 0 <= weight <= 1:
        raise InputError(f"weight is {weight}\nit is the second model's share: from 0 to 1")
    return [1 - weight, weight]


def mix(paths: Sequence[str], models: Sequence[Weights], shares: Sequence[float]) -> dict[str, Any]:
    """The variables of the model that has these shares of each; `paths` are for messages.

    Models are read one after the other: two of them are in memory, never all.

    Raises:
        InputError: two are not of one architecture, preprocessing and tokenizer; or one is damaged.
    """
    for path, weights in zip(paths[1:], models[1:], strict=True):
        _check_alike(paths[0], models[0].spec, path, weights.spec)
    on_host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    total: dict[str, np.ndarray] = {}
    for weights, share in zip(models, shares, strict=True):
        for name, value in weights.read(on_host):
            part = np.float32(share) * np.asarray(value, np.float32)
            total[name] = np.asarray(total[name] + part if name in total else part)
    return unflatten({name: jnp.asarray(value) for name, value in total.items()})


def _check_alike(first: str, ours: ModelSpec, second: str, theirs: ModelSpec) -> None:
    differing = {
        field: change
        for name, one in ours._asdict().items()
        for field, change in _differences(name, one, theirs._asdict()[name]).items()
        if field not in _FREE
    }
    bias = (ours.model.init_logit_bias is None, theirs.model.init_logit_bias is None)
    if bias[0] == bias[1]:  # the value that it had at first says nothing
        differing.pop("model.init_logit_bias", None)
    if differing:
        raise InputError(
            "\n".join(
                [
                    f"{first} and {second} are not models of one kind, so nothing lies between",
                    *(f"{field}: {change}" for field, change in differing.items()),
                ]
            )
        )


def _differences(name: str, one: Any, other: Any) -> dict[str, str]:
    assert dataclasses.is_dataclass(one), "each part of a spec is a config"
    if isinstance(one, TokenizerConfig):  # that of the tokenizer may be said, or left to it
        one, other = (
            dataclasses.replace(x, cleaning=cleaning_of(x.name, x.cleaning)) for x in (one, other)
        )
    return differing_fields(other, one, name)
