"""timm's names of convolutions and norms, whose sizes differ from layer to layer.

Each function returns bindings of our variables at `ours`, a path in the image tower, and their
tensors at `theirs`, a name in timm's. `layers` counts those of a stack; `theirs` then has
`{layer}` in the place of their number.
"""

from flaxclip.interop.name_table import Axes, Binding, Rule


def named(
    ours: str, theirs: str, axes: str, sizes: Axes, layers: int | None = None,
    collection: str = "params",
) -> Binding:  # fmt: skip
    """One variable; `axes` are those of their tensor and of one layer of ours."""
    if layers is not None:
        axes = axes.replace("->", "-> layer")
        sizes = {**sizes, "layer": range(layers)}
    return Binding(Rule(f"{collection}/vision/{ours}", f"visual.{theirs}", axes), sizes)


def vector(ours: str, theirs: str, width: int, layers: int | None = None) -> Binding:
    """A bias, or a factor of channels."""
    return named(ours, theirs, "w -> w", {"w": width}, layers)


def channel_scale(ours: str, theirs: str, width: int, layers: int | None = None) -> Binding:
    """A factor of channels that timm holds as an image's."""
    return named(ours, theirs, "w 1 1 -> w", {"w": width}, layers)


def conv(
    ours: str, theirs: str, channels: tuple[int, int], size: int, layers: int | None = None,
    bias: bool = True,
) -> list[Binding]:  # fmt: skip
    """A convolution. `channels` are those that an output reads, and the outputs."""
    sizes = {"i": channels[0], "o": channels[1], "kh": size, "kw": size}
    kernel = named(f"{ours}/kernel", f"{theirs}.weight", "o i kh kw -> kh kw i o", sizes, layers)
    return [kernel, *([vector(f"{ours}/bias", f"{theirs}.bias", channels[1], layers)] * bias)]


def dense(
    ours: str, theirs: str, widths: tuple[int, int], layers: int | None = None, bias: bool = True,
    as_conv: bool = False,
) -> list[Binding]:  # fmt: skip
    """A matrix of `widths`; `as_conv` if it is a convolution of 1 x 1 in timm."""
    axes = "o i 1 1 -> i o" if as_conv else "o i -> i o"
    sizes = {"i": widths[0], "o": widths[1]}
    kernel = named(f"{ours}/kernel", f"{theirs}.weight", axes, sizes, layers)
    return [kernel, *([vector(f"{ours}/bias", f"{theirs}.bias", widths[1], layers)] * bias)]


def norm(ours: str, theirs: str, width: int, layers: int | None = None) -> list[Binding]:
    """Both parameters of a norm."""
    return [
        vector(f"{ours}/scale", f"{theirs}.weight", width, layers),
        vector(f"{ours}/bias", f"{theirs}.bias", width, layers),
    ]


def batch_norm(ours: str, theirs: str, width: int, layers: int | None = None) -> list[Binding]:
    """A batch norm's parameters and running statistics."""
    sizes = {"w": width}
    return [
        *norm(ours, theirs, width, layers),
        named(f"{ours}/mean", f"{theirs}.running_mean", "w -> w", sizes, layers, "batch_stats"),
        named(f"{ours}/var", f"{theirs}.running_var", "w -> w", sizes, layers, "batch_stats"),
    ]


def conv_norm(
    ours: str, theirs: str, channels: tuple[int, int], size: int, depthwise: bool,
    layers: int | None = None,
) -> list[Binding]:  # fmt: skip
    """A convolution without bias and the batch norm after it: timm's `ConvNormAct`."""
    name = "depthwise" if depthwise else "conv"
    return [
        *conv(f"{ours}/{name}", f"{theirs}.conv", channels, size, layers, bias=False),
        *batch_norm(f"{ours}/bn", f"{theirs}.bn", channels[1], layers),
    ]
