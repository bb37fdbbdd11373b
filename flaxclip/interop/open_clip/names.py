"""open_clip's and OpenAI's tensors by one table of names, which both share.

Image towers: OpenAI's vision transformers and ResNets; those of timm are in `trunks/`.
"""

from collections.abc import Mapping
from typing import Any

from flaxclip.errors import InputError
from flaxclip.interop.name_table import (
    Axes,
    Binding,
    NameTable,
    Rule,
    bind,
    prefixed,
    text_axes,
    vision_axes,
)
from flaxclip.interop.text_trunks.registry import HF_TRUNKS
from flaxclip.interop.trunks.registry import trunk_of
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.vision_transformer import ViTConfig

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = (
    Rule("ln_1/scale", "ln_1.weight", "w -> layer w"),
    Rule("ln_1/bias", "ln_1.bias", "w -> layer w"),
    Rule("attention/qkv/kernel", "attn.in_proj_weight", "(qkv head k) w -> layer w head qkv k"),
    Rule("attention/qkv/bias", "attn.in_proj_bias", "(qkv head k) -> layer head qkv k"),
    Rule("attention/out/kernel", "attn.out_proj.weight", "w (head k) -> layer head k w"),
    Rule("attention/out/bias", "attn.out_proj.bias", "w -> layer w"),
    Rule("ln_2/scale", "ln_2.weight", "w -> layer w"),
    Rule("ln_2/bias", "ln_2.bias", "w -> layer w"),
    Rule("mlp/fc1/kernel", "mlp.c_fc.weight", "mlp w -> layer w mlp"),
    Rule("mlp/fc1/bias", "mlp.c_fc.bias", "mlp -> layer mlp"),
    Rule("mlp/fc2/kernel", "mlp.c_proj.weight", "w mlp -> layer mlp w"),
    Rule("mlp/fc2/bias", "mlp.c_proj.bias", "w -> layer w"),
)
_BLOCKS = prefixed(_BLOCK, "transformer/blocks/", "transformer.resblocks.{layer}.")

TEXT_TRANSFORMER = (
    Rule("token_embedding", "token_embedding.weight", "vocab w -> vocab w"),
    Rule("position_embedding", "positional_embedding", "position w -> position w"),
    *_BLOCKS,
    Rule("ln_final/scale", "ln_final.weight", "w -> w"),
    Rule("ln_final/bias", "ln_final.bias", "w -> w"),
)
"""Without a projection."""

_PROJECTION = (Rule("projection/kernel", "text_projection", "w embed -> w embed"),)
_PROJECTIONS: dict[str, tuple[Rule, ...]] = {
    "siglip": (
        Rule("projection/kernel", "text_projection.weight", "embed w -> w embed"),
        Rule("projection/bias", "text_projection.bias", "embed -> embed"),
    ),
    "siglip_i18n": (),
}

_VIT = (
    Rule("class_embedding", "class_embedding", "w -> w"),
    Rule("patch_embedding/kernel", "conv1.weight", "w rgb p q -> (p q rgb) w"),
    Rule("position_embedding", "positional_embedding", "position w -> position w"),
    Rule("ln_pre/scale", "ln_pre.weight", "w -> w"),
    Rule("ln_pre/bias", "ln_pre.bias", "w -> w"),
    *_BLOCKS,
    Rule("ln_post/scale", "ln_post.weight", "w -> w"),
    Rule("ln_post/bias", "ln_post.bias", "w -> w"),
    Rule("projection/kernel", "proj", "w embed -> w embed"),
)

OWN_FAMILIES: dict[str, dict[str, Any]] = {
    "clip": {"no_ln_pre": False, "pool_type": "tok", "final_ln_after_pool": False},
    "clipa": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
}
"""Our families of open_clip's own vision transformers, and their settings in `vision_cfg`."""

TEXT_FAMILIES: dict[str, dict[str, Any]] = {
    name: {
        "pool_type": pool,
        "no_causal_mask": not causal,
        "proj_bias": bias,
        "proj_type": projection,
    }
    for name, pool, causal, bias, projection in (
        ("clip", "argmax", True, False, "linear"),
        ("siglip", "last", False, True, "linear"),
        ("siglip_i18n", "last", False, False, "none"),
        ("clipa", "last", False, False, "linear"),
        ("mobileclip", "argmax", False, False, "linear"),
    )
}
"""Our families of its text towers, and their settings in `text_cfg`."""

_RESNET_POOL = (
    Rule("params/vision/position_embedding", "positional_embedding", "position w -> position w"),
    Rule("params/vision/pool/{part}/kernel", "{qkv}_proj.weight", "(head k) w -> w head k"),
    Rule("params/vision/pool/{part}/bias", "{qkv}_proj.bias", "(head k) -> head k"),
    Rule("params/vision/pool/out/kernel", "c_proj.weight", "embed (head k) -> head k embed"),
    Rule("params/vision/pool/out/bias", "c_proj.bias", "embed -> embed"),
)

_COUNTERS = r"\.num_batches_tracked$|\.embeddings\.position_ids$"


def has_open_clip(config: CLIPConfig) -> bool:
    """True if open_clip's classes can represent models like `config`."""
    is_plain_vit = isinstance(config.vision, ViTConfig) and config.vision.family == "vit"
    return not is_plain_vit and config.text.family not in ("bert", "tips")


def has_custom_text(config: CLIPConfig) -> bool:
    """True if open_clip's own configurations of such models set `custom_text`."""
    trunk = trunk_of(config.vision)
    return (
        config.text.family in ("siglip", "siglip_i18n")
        or config.text.family in HF_TRUNKS
        or (trunk is not None and trunk.custom_text)
    )


def open_clip_table(
    config: CLIPConfig, shapes: Shapes | None = None, native: bool = False
) -> NameTable:
    """The tensors of the open_clip model that is this architecture; if `native`, of NaFlex.

    open_clip has two layouts and two shapes of the logit scale. For reading, `shapes` decides
    between them; for writing, open_clip's own choice for the exported configuration.

    Raises:
        InputError: open_clip has no such model.
    """
    if "tips" in (config.text.family, config.vision.family.removesuffix("_gated")):
        raise InputError("open_clip 3.3 has no TIPSv2\nexport it to huggingface instead")
    if not has_open_clip(config):
        raise InputError(
            "open_clip has no model with LiT's towers: its BERT has no bias in the projection, and "
            "its vision transformer norms before the blocks\nconvert it to flaxclip instead"
        )
    custom_text = has_custom_text(config)
    trunk = HF_TRUNKS.get(config.text.family)
    if shapes is not None and trunk is None:
        custom_text = "text.token_embedding.weight" in shapes
    prefix = "text." if custom_text else ""
    projection = _PROJECTIONS.get(config.text.family, _PROJECTION)
    text = (*TEXT_TRANSFORMER, *projection) if trunk is None else trunk.rules
    scalars = ["logit_scale"] + ["logit_bias"] * (config.init_logit_bias is not None)
    bindings = [
        *bind(prefixed(text, "params/text/", prefix), text_axes(config)),
        *_vision_bindings(config, native),
    ]
    for name in scalars:
        one = shapes is not None and shapes.get(name) == (1,)
        bindings.append(Binding(Rule(f"params/{name}", name, "1 ->" if one else "->"), {}))
    return NameTable("an open_clip model", bindings, _COUNTERS)


def _vision_bindings(config: CLIPConfig, native: bool) -> list[Binding]:
    if (trunk := trunk_of(config.vision, native)) is not None:
        return trunk.bindings(config)
    if native:
        raise InputError(
            f'an image tower of family "{config.vision.family}" for images at their own aspect '
            "ratio\nof such towers open_clip has those of SigLIP 2: convert it to flaxclip instead"
        )
    if isinstance(config.vision, ResNetConfig):
        return _resnet_bindings(config, config.vision)
    own = OWN_FAMILIES[config.vision.family]
    rules = [rule for rule in _VIT if not (own["no_ln_pre"] and rule.ours.startswith("ln_pre/"))]
    return bind(prefixed(rules, "params/vision/", "visual."), vision_axes(config))


def _resnet_bindings(config: CLIPConfig, resnet: ResNetConfig) -> list[Binding]:
    """Their blocks are numbered; ours are the first of each stage and a stack of the rest."""
    width, bindings = resnet.width, []

    def add(
        ours: str, conv: str, norm: str, kernel: int, channels: tuple[int, int], blocks: range
    ) -> None:
        layer = "layer " if len(blocks) else ""
        axes: Axes = {
            "kh": kernel,
            "kw": kernel,
            "i": channels[0],
            "o": channels[1],
            "layer": blocks,
        }
        rules = [
            Rule(f"params/vision/{ours}/conv/kernel", f"visual.{conv}.weight",
                 f"o i kh kw -> {layer}kh kw i o"),
            Rule(f"params/vision/{ours}/bn/scale", f"visual.{norm}.weight", f"o -> {layer}o"),
            Rule(f"params/vision/{ours}/bn/bias", f"visual.{norm}.bias", f"o -> {layer}o"),
            Rule(f"batch_stats/vision/{ours}/bn/mean", f"visual.{norm}.running_mean",
                 f"o -> {layer}o"),
            Rule(f"batch_stats/vision/{ours}/bn/var", f"visual.{norm}.running_var",
                 f"o -> {layer}o"),
        ]  # fmt: skip
        bindings.extend(bind(rules, axes))

    none = range(0)
    for n, sizes in enumerate(((3, width // 2), (width // 2, width // 2), (width // 2, width)), 1):
        add(f"stem/conv{n}", f"conv{n}", f"bn{n}", 3, sizes, none)
    entering = width
    for stage, layers in enumerate(resnet.layers, 1):
        narrow, wide = width * 2 ** (stage - 1), 4 * width * 2 ** (stage - 1)
        for name, number, channels, blocks in (
            ("first", "0", entering, none),
            ("rest", "{layer}", wide, range(1, layers)),
        ):
            if name == "rest" and layers == 1:
                continue
            for n, kernel, sizes in (
                (1, 1, (channels, narrow)),
                (2, 3, (narrow, narrow)),
                (3, 1, (narrow, wide)),
            ):
                theirs = f"layer{stage}.{number}"
                add(f"stage{stage}/{name}/conv{n}", f"{theirs}.conv{n}", f"{theirs}.bn{n}",
                    kernel, sizes, blocks)  # fmt: skip
        shortcut = f"layer{stage}.0.downsample"
        add(f"stage{stage}/first/shortcut", f"{shortcut}.0", f"{shortcut}.1", 1,
            (entering, wide), none)  # fmt: skip
        entering = wide

    parts = ("query", "key", "value")
    pool_axes: Axes = {
        "position": resnet.grid**2 + 1,
        "w": entering,
        "head": resnet.heads,
        "k": entering // resnet.heads,
        "part": parts,
        "qkv": ("q", "k", "v"),
        "embed": config.embed_dim,
    }
    # The same three, called by two sets of labels.
    pool = [
        rule._replace(ours=rule.ours.format(part=part), theirs=rule.theirs.format(qkv=part[0]))
        for part in parts
        for rule in _RESNET_POOL
        if "{" in rule.ours
    ]
    pool += [rule for rule in _RESNET_POOL if "{" not in rule.ours]
    return [*bindings, *bind(prefixed(pool, "", "visual.attnpool."), pool_axes)]


def layers_in(shapes: Shapes, pattern: str) -> int:
    """Count `pattern.format(0)`, `pattern.format(1)`, ... in `shapes`.

    Raises:
        InputError: there is none.
    """
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    if count == 0:
        raise InputError(
            f"the file has no tensor {pattern.format(0)}\n"
            "expected the weights of a CLIP, named as OpenAI and open_clip name them"
        )
    return count
