"""timm's ConvNeXt (`models/convnext.py`) and the projections that open_clip puts on it."""

from flaxclip.interop.name_table import Axes, Binding, Rule, prefixed
from flaxclip.interop.trunks.timm_trunk import MLP, TimmTrunk, norm
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.trunks.convnext import STEM, ConvNeXtConfig

_STEM = (
    Rule("patch_embedding/kernel", "stem.0.weight", "w rgb p q -> (p q rgb) w"),
    Rule("patch_embedding/bias", "stem.0.bias", "w -> w"),
    *norm("ln_pre", "stem.1"),
)
_DOWNSAMPLE = (
    *norm("downsample/ln", "downsample.0", axis="half"),
    Rule("downsample/conv/kernel", "downsample.1.weight", "w half kh kw -> kh kw half w"),
    Rule("downsample/conv/bias", "downsample.1.bias", "w -> w"),
)
_BLOCK = (
    Rule("depthwise/kernel", "conv_dw.weight", "w 1 kernel_h kernel_w -> "
         "layer kernel_h kernel_w 1 w"),
    Rule("depthwise/bias", "conv_dw.bias", "w -> layer w"),
    *norm("ln", "norm", "layer "),
    *MLP,
    Rule("layer_scale", "gamma", "w -> layer w"),
)  # fmt: skip
_LINEAR = (Rule("projection/kernel", "proj.weight", "embed w -> w embed"),)
_MLP = (
    Rule("projection_hidden/kernel", "mlp.fc1.weight", "hidden w -> w hidden"),
    Rule("projection_hidden/bias", "mlp.fc1.bias", "hidden -> hidden"),
    Rule("projection/kernel", "mlp.fc2.weight", "embed hidden -> hidden embed"),
)


def _bindings(config: CLIPConfig) -> list[Binding]:
    vision = config.vision
    assert isinstance(vision, ConvNeXtConfig), "it is the family's only class"
    bindings: list[Binding] = []

    def add(rules: tuple[Rule, ...], ours: str, theirs: str, axes: Axes) -> None:
        under = prefixed(rules, f"params/vision/{ours}", f"visual.{theirs}")
        bindings.extend(Binding(rule, axes) for rule in under)

    add(_STEM, "", "trunk.", {"w": vision.width, "rgb": 3, "p": STEM, "q": STEM})
    width = vision.width
    for stage, layers in enumerate(vision.layers):
        ours, theirs = f"stage{stage + 1}/", f"trunk.stages.{stage}."
        if stage:
            add(_DOWNSAMPLE, ours, theirs, {"w": 2 * width, "half": width, "kh": 2, "kw": 2})
            width *= 2
        axes: Axes = {
            "w": width, "mlp": 4 * width, "kernel_h": 7, "kernel_w": 7, "layer": range(layers),
        }  # fmt: skip
        add(_BLOCK, f"{ours}rest/", theirs + "blocks.{layer}.", axes)
    add(norm("ln_post", "norm"), "", "trunk.head.", {"w": width})
    axes = {"w": width, "embed": config.embed_dim, "hidden": 2 * config.embed_dim}
    add(_MLP if vision.head == "mlp" else _LINEAR, "", "head.", axes)
    return bindings


_SIZES = {
    # timm's name: width of the first stage, blocks of the stages, epsilon of the norms
    "convnext_tiny": (96, (3, 3, 9, 3), 1e-6),
    "convnext_small": (96, (3, 3, 27, 3), 1e-6),
    "convnext_base": (128, (3, 3, 27, 3), 1e-6),
    "convnext_large": (192, (3, 3, 27, 3), 1e-6),
    "convnext_xlarge": (256, (3, 3, 27, 3), 1e-6),
    "convnext_xxlarge": (384, (3, 4, 30, 3), 1e-5),
}

TRUNKS = tuple(
    TimmTrunk(
        families=("convnext",),
        towers={
            name: ConvNeXtConfig(224, width, layers, eps, head)
            for name, (width, layers, eps) in _SIZES.items()
        },
        pool="",
        proj=(head,),
        bindings=_bindings,
        custom_text=False,
        any_size=True,
    )
    for head in ("linear", "mlp")
)
