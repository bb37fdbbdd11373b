"""timm's image tower of MobileCLIP-B (`models/vision_transformer_hybrid.py`)."""

from flaxclip.interop.name_table import Axes, Binding, bind, prefixed
from flaxclip.interop.trunks.conv_names import batch_norm, named
from flaxclip.interop.trunks.timm_trunk import (
    BLOCKS,
    CLASS_TOKEN,
    HEAD,
    POSITIONS,
    TimmTrunk,
    norm,
)
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.trunks.mobile_vit import MobileViTConfig

_RULES = (CLASS_TOKEN, POSITIONS, *BLOCKS, *norm("ln_post", "norm"), *HEAD)


def _bindings(config: CLIPConfig) -> list[Binding]:
    vision = config.vision
    assert isinstance(vision, MobileViTConfig), "it is the family's only class"
    narrow, theirs = vision.width // 4, "trunk.patch_embed.backbone"
    bindings = []
    for number, (name, inputs, size, outputs) in enumerate((
        ("patch_embedding", 3, 4, narrow),
        ("join1", narrow, 2, narrow),
        ("join2", narrow, 2, vision.width),
    )):  # fmt: skip
        sizes: Axes = {"i": inputs, "o": outputs, "p": size, "q": size}
        bindings.append(
            named(f"stem/{name}/kernel", f"{theirs}.{number}.conv.weight",
                  "o i p q -> (p q i) o", sizes)
        )  # fmt: skip
    bindings.append(
        named("stem/join2/bias", f"{theirs}.2.conv.bias", "o -> o", {"o": vision.width})
    )
    for number in range(2):
        bindings += batch_norm(f"stem/bn{number + 1}", f"{theirs}.{number}.bn", narrow)
    axes: Axes = {
        "position": vision.grid**2,
        "layer": range(vision.layers),
        "qkv": 3,
        "w": vision.width,
        "head": vision.heads,
        "k": vision.width // vision.heads,
        "mlp": 4 * vision.width,
        "embed": config.embed_dim,
    }
    return [*bindings, *bind(prefixed(_RULES, "params/vision/", "visual.trunk."), axes)]


TRUNKS = (
    TimmTrunk(
        ("mobile_vit",), {"vit_base_mci_224": MobileViTConfig()}, "token", (None, ""), _bindings
    ),
)
