"""A trained FastViT -> the same function with one convolution in place of each sum of branches."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from flaxclip.errors import InputError
from flaxclip.models.trunks.branches import Convolution, identity_kernel, merged_branches
from flaxclip.models.trunks.branches import norm_as_affine as affine
from flaxclip.models.trunks.fastvit import ATTENTION_FROM, FastViTConfig

Tree = Mapping[str, Any]


def merge_tower(
    config: FastViTConfig, params: Tree, statistics: Tree
) -> tuple[FastViTConfig, dict[str, Any], dict[str, Any]]:
    """The tower with merged branches: configuration, parameters and running statistics.

    Computes what `config`'s does with running statistics. Norms before MLPs and attention remain.

    Raises:
        InputError: they are merged already.
    """
    if config.merged:
        raise InputError("the branches of this FastViT are merged already")
    new_params, new_statistics = dict(params), dict(statistics)
    new_params["stem"] = {
        name: _merged(part, statistics["stem"][name]) for name, part in params["stem"].items()
    }
    new_params["final"] = _merged(params["final"], statistics["final"])
    for name in ("stem", "final"):
        del new_statistics[name]
    for index in range(len(config.layers)):
        name = f"stage{index + 1}"
        new_params[name], new_statistics[name] = _merged_stage(
            params[name], statistics[name], index >= ATTENTION_FROM
        )
    return dataclasses.replace(config, merged=True), new_params, new_statistics


def _merged(params: Tree, statistics: Tree) -> dict[str, Any]:
    name, convolution = merged_branches(params, statistics)
    return {name: convolution._asdict()}


def _merged_stage(
    params: Tree, statistics: Tree, attends: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    blocks, kept = dict(params["rest"]), dict(statistics["rest"])
    if not attends:
        blocks["mixer"] = {"depthwise": _merged_mixer(blocks, kept)._asdict()}
        for name in ("mixer_norm", "mixer_scale"):
            del blocks[name]
        for name in ("mixer", "mixer_norm"):
            del kept[name]
    new_params, new_statistics = {"rest": blocks}, {"rest": kept}
    if "downsample" in params:
        downsample = dict(params["downsample"])
        for name, part in statistics["downsample"].items():
            downsample[name] = _merged(downsample[name], part)
        if attends:
            position = dict(downsample["position_depthwise"])
            position["kernel"] = position["kernel"] + identity_kernel(position["kernel"].shape)
            downsample["position_depthwise"] = position
        new_params["downsample"] = downsample
    return new_params, new_statistics


def _merged_mixer(params: Tree, statistics: Tree) -> Convolution:
    """Of x + scale * (branches(x) - norm(x))."""
    _, mixer = merged_branches(params["mixer"], statistics["mixer"])
    factor, bias = affine(params["mixer_norm"], statistics["mixer_norm"])
    identity, scale = identity_kernel(mixer.kernel.shape), params["mixer_scale"]

    def of_channels(vector: Any) -> Any:
        return jnp.asarray(vector)[..., None, None, None, :]

    kernel = mixer.kernel - identity * of_channels(factor)
    return Convolution(identity + of_channels(scale) * kernel, scale * (mixer.bias - bias))
