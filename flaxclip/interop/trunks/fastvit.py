"""timm's FastViT (`models/fastvit.py`), while it is trained, and with its branches merged.

timm merges them by `timm.utils.reparameterize_model`. open_clip builds no merged ones: their state
dicts are read, and not written.
"""

import dataclasses
from collections.abc import Mapping

from flaxclip.interop.name_table import Binding
from flaxclip.interop.trunks.conv_names import (
    batch_norm,
    channel_scale,
    conv,
    conv_norm,
    dense,
    named,
    norm,
)
from flaxclip.interop.trunks.timm_trunk import TimmTrunk
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.trunks.fastvit import ATTENTION_FROM, HEAD_WIDTH, FastViTConfig
from flaxclip.models.trunks.fastvit_downsampling import SPATIAL_SIZE, gate_width
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.models.variants import VARIANTS

_TOWERS = {
    name: VARIANTS[ours].model.vision
    for name, ours in {
        "fastvit_mci0": "MobileCLIP2-S0",
        "fastvit_mci1": "MobileCLIP-S1",
        "fastvit_mci2": "MobileCLIP-S2",
        "fastvit_mci3": "MobileCLIP2-S3",
        "fastvit_mci4": "MobileCLIP2-S4",
    }.items()
}


def _branches(
    ours: str, theirs: str, merged: bool, channels: tuple[int, int], size: int,
    scale: bool = True, identity: bool = False, depthwise: bool = False, layers: int | None = None,
) -> list[Binding]:  # fmt: skip
    """A `MobileOneBlock`, with branches of `size` and, if `scale`, of one pixel."""
    reads = (1 if depthwise else channels[0], channels[1])
    if merged:
        name = "depthwise" if depthwise else "conv"
        return conv(f"{ours}/{name}", f"{theirs}.reparam_conv", reads, size, layers)
    bindings = conv_norm(
        f"{ours}/size{size}", f"{theirs}.conv_kxk.0", reads, size, depthwise, layers
    )
    if scale:
        bindings += conv_norm(f"{ours}/size1", f"{theirs}.conv_scale", reads, 1, depthwise, layers)
    if identity:
        bindings += batch_norm(f"{ours}/identity", f"{theirs}.identity", channels[1], layers)
    return bindings


def _gates(ours: str, theirs: str, width: int, hidden: int) -> list[Binding]:
    return [
        *dense(f"{ours}/fc1", f"{theirs}.fc1", (width, hidden), as_conv=True),
        *dense(f"{ours}/fc2", f"{theirs}.fc2", (hidden, width), as_conv=True),
    ]


def _downsample(vision: FastViTConfig, index: int, ours: str, theirs: str) -> list[Binding]:
    before, width = vision.widths[index - 1], vision.widths[index]
    proj = f"{theirs}.downsample.proj"
    bindings = []
    if vision.merged:
        bindings += conv(
            f"{ours}/spatial/depthwise", f"{proj}.0.reparam_conv", (1, width), SPATIAL_SIZE
        )
    else:
        for name, size in (("large_conv", SPATIAL_SIZE), ("small_conv", 3)):
            bindings += conv_norm(
                f"{ours}/spatial/size{size}", f"{proj}.0.{name}", (1, width), size, True
            )
    assert width == 2 * before, "an output reads one channel"
    if vision.has_gates(index):
        bindings += _gates(f"{ours}/squeeze", f"{proj}.0.se", width, gate_width(width))
    bindings += _branches(
        f"{ours}/pointwise", f"{proj}.1", vision.merged, (width, width), 1, scale=False,
        identity=True,
    )  # fmt: skip
    if index >= ATTENTION_FROM:
        name = "reparam_conv" if vision.merged else "pos_enc"
        bindings += conv(
            f"{ours}/position_depthwise", f"{theirs}.pos_emb.{name}", (1, width), SPATIAL_SIZE
        )
    return bindings


def _mixer(ours: str, theirs: str, width: int, layers: int, merged: bool) -> list[Binding]:
    theirs = f"{theirs}.token_mixer"
    if merged:
        name = f"{theirs}.reparam_conv"
        return conv(f"{ours}/mixer/depthwise", name, (1, width), 3, layers)
    return [
        *_branches(f"{ours}/mixer", f"{theirs}.mixer", False, (width, width), 3, identity=True,
                   depthwise=True, layers=layers),
        *batch_norm(f"{ours}/mixer_norm", f"{theirs}.norm.identity", width, layers),
        channel_scale(f"{ours}/mixer_scale", f"{theirs}.layer_scale.gamma", width, layers),
    ]  # fmt: skip


def _attention(
    ours: str, theirs: str, width: int, layers: int, batch_normed: bool
) -> list[Binding]:
    axes = {"w": width, "head": width // HEAD_WIDTH, "k": HEAD_WIDTH, "qkv": 3}
    attention = f"{ours}/attention"
    before = batch_norm if batch_normed else norm
    return [
        *before(f"{ours}/{'bn' if batch_normed else 'ln'}", f"{theirs}.norm", width, layers),
        named(f"{attention}/qkv/kernel", f"{theirs}.token_mixer.qkv.weight",
              "(qkv head k) w -> w head qkv k", axes, layers),
        named(f"{attention}/out/kernel", f"{theirs}.token_mixer.proj.weight",
              "w (head k) -> head k w", axes, layers),
        named(f"{attention}/out/bias", f"{theirs}.token_mixer.proj.bias", "w -> w", axes, layers),
        channel_scale(f"{ours}/attention_scale", f"{theirs}.layer_scale_1.gamma", width, layers),
    ]  # fmt: skip


def _blocks(vision: FastViTConfig, index: int, ours: str, theirs: str) -> list[Binding]:
    width, layers = vision.widths[index], vision.layers[index]
    mlp_width, attends = vision.mlp_width(index), index >= ATTENTION_FROM
    if attends:
        bindings = _attention(ours, theirs, width, layers, vision.family == "fastvit")
    else:
        bindings = _mixer(ours, theirs, width, layers, vision.merged)
    mlp, scale = f"{theirs}.mlp", "layer_scale_2" if attends else "layer_scale"
    return [
        *bindings,
        *conv_norm(f"{ours}/spatial", f"{mlp}.conv", (1, width), SPATIAL_SIZE, True, layers),
        *dense(f"{ours}/mlp/fc1", f"{mlp}.fc1", (width, mlp_width), layers, as_conv=True),
        *dense(f"{ours}/mlp/fc2", f"{mlp}.fc2", (mlp_width, width), layers, as_conv=True),
        channel_scale(f"{ours}/layer_scale", f"{theirs}.{scale}.gamma", width, layers),
    ]


def _bindings(config: CLIPConfig) -> list[Binding]:
    vision = config.vision
    assert isinstance(vision, FastViTConfig), "it is the families' only class"
    width, last, merged = vision.width, 2 * vision.widths[-1], vision.merged
    scale = vision.family == "fastvit"
    bindings = [
        *_branches("stem/conv1", "trunk.stem.0", merged, (3, width), 3, scale),
        *_branches("stem/conv2", "trunk.stem.1", merged, (width, width), 3, scale, depthwise=True),
        *_branches("stem/conv3", "trunk.stem.2", merged, (width, width), 1, False, identity=True),
    ]
    for index in range(len(vision.layers)):
        ours, theirs = f"stage{index + 1}", f"trunk.stages.{index}"
        if index:
            bindings += _downsample(vision, index, f"{ours}/downsample", theirs)
        bindings += _blocks(vision, index, f"{ours}/rest", theirs + ".blocks.{layer}")
    return [
        *bindings,
        *_branches("final", "trunk.final_conv", merged, (last // 2, last), 3, depthwise=True),
        *_gates("final_squeeze", "trunk.final_conv.se", last, last // 16),
        *dense("projection", "trunk.head.fc", (last, config.embed_dim)),
    ]


def _as_stored(vision: TrunkConfig, names: Mapping[str, tuple[int, ...]]) -> TrunkConfig:
    assert isinstance(vision, FastViTConfig), "it is the families' only class"
    merged = "visual.trunk.stem.0.reparam_conv.weight" in names
    return dataclasses.replace(vision, merged=merged)


TRUNKS = (
    TimmTrunk(
        families=("fastvit", "fastvit_large"),
        towers=_TOWERS,
        pool="avg",
        proj=(None, ""),
        bindings=_bindings,
        any_size=True,
        as_stored=_as_stored,
    ),
)
