"""timm's ViTamin (`models/vitamin.py`), and the projection that open_clip puts on it."""

from flaxclip.interop.name_table import Axes, Binding, Rule, bind, prefixed
from flaxclip.interop.trunks.conv_names import conv
from flaxclip.interop.trunks.conv_names import dense as dense_names
from flaxclip.interop.trunks.conv_names import norm as norm_names
from flaxclip.interop.trunks.timm_trunk import BLOCKS, POSITIONS, TimmTrunk, norm
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.models.trunks.vitamin import EXPANSION, STAGES, ViTaminConfig
from flaxclip.models.variants import VARIANTS

_NAMES = {"S": "small", "B": "base", "L": "large", "L2": "large2"}


def _towers(names: dict[str, str]) -> dict[str, TrunkConfig]:
    return {
        f"vitamin_{name}_{vision.image_size}": vision
        for size, name in names.items()
        for vision in (
            spec.model.vision
            for ours, spec in VARIANTS.items()
            if ours.split("-")[:2] == ["ViTamin", size]
        )
    }


_BLOCKS = (
    *(rule for rule in BLOCKS if "/mlp/" not in rule.ours),
    *prefixed(
        (
            *norm("mlp/ln", "mlp.norm", "layer "),
            *(
                rule
                for ours, theirs in (("gate", "w0"), ("fc1", "w1"))
                for rule in (
                    Rule(f"mlp/{ours}/kernel", f"mlp.{theirs}.weight", "mlp w -> layer w mlp"),
                    Rule(f"mlp/{ours}/bias", f"mlp.{theirs}.bias", "mlp -> layer mlp"),
                )
            ),
            Rule("mlp/fc2/kernel", "mlp.w2.weight", "w mlp -> layer mlp w"),
            Rule("mlp/fc2/bias", "mlp.w2.bias", "w -> layer w"),
        ),
        "transformer/blocks/",
        "blocks.{layer}.",
    ),
)


def _stem(vision: ViTaminConfig, theirs: str) -> list[Binding]:
    width = vision.stem_width
    bindings = [
        *conv("stem/pixel_projection", f"{theirs}.stem.conv1", (3, width), 3),
        *norm_names("stem/ln_pixels", f"{theirs}.stem.norm1", width),
        *conv("stem/conv", f"{theirs}.stem.conv2", (width, width), 3),
    ]
    before = width
    for stage, blocks in enumerate(STAGES):
        after = width * 2**stage
        wide = EXPANSION * after
        for block in range(blocks):
            ours, name = f"stem/stage{stage + 1}_{block}", f"{theirs}.stages.{stage}.{block}"
            bindings += [
                *norm_names(f"{ours}/ln", f"{name}.pre_norm", before),
                *conv(f"{ours}/widen_conv", f"{name}.conv1_1x1", (before, wide), 1),
                *conv(f"{ours}/depthwise", f"{name}.conv2_kxk", (1, wide), 3),
                *conv(f"{ours}/narrow_conv", f"{name}.conv3_1x1", (wide, after), 1),
            ]
            if before != after:
                shortcut = f"{name}.shortcut.expand"
                bindings += conv(f"{ours}/shortcut_conv", shortcut, (before, after), 1)
            before = after
    return [
        *bindings,
        *norm_names("stem/ln_last", f"{theirs}.pool.norm", before),
        *conv("stem/last_conv", f"{theirs}.pool.proj", (before, vision.width), 3),
    ]


def _bindings(config: CLIPConfig) -> list[Binding]:
    vision = config.vision
    assert isinstance(vision, ViTaminConfig), "it is the family's only class"
    axes: Axes = {
        "position": vision.grid**2,
        "layer": range(vision.layers),
        "qkv": 3,
        "w": vision.width,
        "head": vision.heads,
        "k": vision.width // vision.heads,
        "mlp": 2 * vision.width,
    }
    positions = (POSITIONS,) * vision.positions
    rules = prefixed(
        (*positions, *_BLOCKS, *norm("ln_post", "fc_norm")), "params/vision/", "visual.trunk."
    )
    return [
        *_stem(vision, "trunk.patch_embed.backbone"),
        *bind(rules, axes),
        *dense_names("projection", "head.proj", (vision.width, config.embed_dim), bias=False),
    ]


TRUNKS = (
    TimmTrunk(("vitamin",), _towers(_NAMES), "", ("linear",), _bindings),
    # Without positions it takes any resolution, and open_clip has one of 384 for images of 256.
    TimmTrunk(("vitamin",), _towers({"XL": "xlarge"}), "", ("linear",), _bindings, any_size=True),
)
