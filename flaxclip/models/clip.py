"""CLIP: two towers, one embedding space, and the temperature that scales their similarities."""

import dataclasses
import functools
import math
import operator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from flaxclip.errors import InputError
from flaxclip.models.compute import KERNEL_CHANNELS, KERNEL_POSITIONS, ComputeConfig
from flaxclip.models.inputs import ImageTransform
from flaxclip.models.layers import check_sizes
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.patches import ImagePatches
from flaxclip.models.text_transformer import TextConfig, TextTransformer
from flaxclip.models.trunks.registry import TRUNKS
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.models.vision_transformer import ViTConfig

if TYPE_CHECKING:
    VisionConfig = TrunkConfig
else:  # what reads a configuration from JSON needs to know all that it can be
    VisionConfig = functools.reduce(operator.or_, (ViTConfig, ResNetConfig, *TRUNKS))

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""Radford et al. 2021, section 2.5; after Wu et al. 2018."""


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Architecture of the two towers, and the initial scale and bias of the logits."""

    vision: VisionConfig = ViTConfig()
    text: TextConfig = TextConfig()
    embed_dim: int = 512
    """Dimensions of the shared embedding space."""
    init_logit_scale: float = INITIAL_LOGIT_SCALE
    """Initial value of the logarithm of the factor on cosine similarities."""
    init_logit_bias: float | None = None
    """Initial value of the bias on the scaled similarities, for the sigmoid loss. If None, the
    model has no such parameter."""

    @property
    def most_blocks(self) -> int:
        """Number of blocks in the longest stack of a tower."""
        return max(self.vision.deepest_stack, self.text.layers)

    def is_scanned(self, compute: ComputeConfig) -> bool:
        """True if a tower loops over its blocks; false if `unroll` is all of them."""
        return (compute.unroll or 1) < self.most_blocks

    def __post_init__(self) -> None:
        check_sizes("model", {"embed_dim": self.embed_dim})
        width = self.vision.width
        if not self.vision.has_projection and width != self.embed_dim:
            raise InputError(
                f"embed_dim {self.embed_dim} is not the image tower's width {width}\n"
                f'with family "{self.vision.family}" that tower has no projection: the two must '
                "be the same"
            )
        if self.text.traits.projection == "none" and self.text.width != self.embed_dim:
            raise InputError(
                f"embed_dim {self.embed_dim} is not the text tower's width {self.text.width}\n"
                f'with family "{self.text.family}" that tower has no projection: the two must be '
                "the same"
            )


def check_tensor_divides(config: CLIPConfig, tensor: int) -> None:
    """Raise `InputError` unless `tensor` devices get equally many heads and MLP channels."""
    divided = {
        "vision": config.vision.tensor_divides,
        "text": {"heads": config.text.heads, "MLP channels": config.text.mlp_width},
    }
    counts = {
        f"the {tower} tower's {count} {what}": count
        for tower, parts in divided.items()
        for what, count in parts.items()
    }
    for what, count in counts.items():
        if count % tensor:
            common = math.gcd(*counts.values())
            fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
            raise InputError(
                f"{what} are not divisible by mesh.tensor {tensor}\n"
                f"--mesh.tensor can be {', '.join(fitting)} with this model"
            )


def check_kernel(
    config: CLIPConfig, compute: ComputeConfig, device_kind: str, patches: int | None = None
) -> None:
    """Raise `InputError` if attention is to be by a kernel that a device or a tower has not.

    `device_kind` is JAX's name of the devices. Images have `patches` at most; if None, those of the
    model's square.
    """
    if compute.attention != "pallas":
        return
    if device_kind not in KERNEL_POSITIONS:
        raise InputError(
            f"--compute.attention pallas is for TPUs, and the devices are {device_kind}\n"
            f"it is for {', '.join(KERNEL_POSITIONS)}; leave it out, or say auto"
        )
    text, vision = config.text, config.vision
    sizes = {"text": {"positions": text.context_length, "channels": text.width // text.heads}}
    if isinstance(vision, ViTConfig):
        places = patches or vision.grid**2
        positions = places + vision.class_tokens + vision.traits.registers
        sizes["vision"] = {"positions": positions, "channels": vision.width // vision.heads}
    limits = {"positions": KERNEL_POSITIONS[device_kind], "channels": KERNEL_CHANNELS}
    for tower, size in sizes.items():
        for what, most in limits.items():
            if size[what] > most:
                raise InputError(
                    f"the {tower} tower has {size[what]} {what}{' a head' * (what == 'channels')}, "
                    f"and --compute.attention pallas has room for {most} on {device_kind}\n"
                    "leave it out, or say auto"
                )


class CLIP(nn.Module):
    """`apply(variables, x, method=...)` with `encode_image` or `encode_text`."""

    config: CLIPConfig
    compute: ComputeConfig = ComputeConfig()
    preprocess: ImageTransform = ImageTransform()

    def setup(self) -> None:
        c = self.config
        self.vision: Any = c.vision.make_tower(c.embed_dim, self.compute)
        self.text = TextTransformer(c.text, c.embed_dim, self.compute)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(c.init_logit_scale), ()
        )
        if c.init_logit_bias is not None:
            self.logit_bias = self.param(
                "logit_bias", nn.initializers.constant(c.init_logit_bias), ()
            )

    def encode_image(
        self,
        images: UInt8[Array, "b h w 3"] | ImagePatches,
        train: bool = False,
        patch_ids: Int[Array, "b k"] | None = None,
        pooled_only: bool = False,
    ) -> Float[Array, "b d"]:
        """Unit embeddings of uint8 images: a quarter of the bytes of floats to transfer.

        Pixels are normalised on the device. With `train`, batch norms use the batch's statistics
        and update `batch_stats`. With `patch_ids` a vision transformer sees those patches alone
        (FLIP). A vision transformer takes images at their own aspect ratio, too: `ImagePatches`.
        With `pooled_only`, for inference, it computes in its last block only what is pooled.
        """
        only: dict[str, Any] = {} if patch_ids is None else {"patch_ids": patch_ids}
        if pooled_only and isinstance(self.config.vision, ViTConfig):
            only["pooled_only"] = True
        if isinstance(images, ImagePatches):
            patches = rearrange(images.patches, "b n (pixel rgb) -> b n pixel rgb", rgb=3)
            pixels = rearrange(
                _normalise(patches, self.preprocess), "b n pixel rgb -> b n (pixel rgb)"
            )
            return l2_normalise(self.vision(pixels, train, grid=images.grid, **only))
        return l2_normalise(self.vision(_normalise(images, self.preprocess), train, **only))

    def encode_text(
        self, tokens: Int[Array, "b l"], pooled_only: bool = False
    ) -> Float[Array, "b d"]:
        """Unit vectors of captions; `pooled_only` as of `encode_image`."""
        return l2_normalise(self.text(tokens, pooled_only))

    def __call__(
        self,
        images: UInt8[Array, "b h w 3"] | ImagePatches,
        tokens: Int[Array, "b l"],
        train: bool = False,
        patch_ids: Int[Array, "b k"] | None = None,
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"], Float[Array, ""]]:
        """Both embeddings and the log of the logit scale."""
        zimg = self.encode_image(images, train, patch_ids)
        return zimg, self.encode_text(tokens), self.logit_scale


def _normalise(
    pixels: UInt8[Array, "b y x 3"], preprocess: ImageTransform
) -> Float[Array, "b y x 3"]:
    mean, std = (
        jnp.array(statistic).reshape(1, 1, 1, 3) for statistic in (preprocess.mean, preprocess.std)
    )
    return (pixels.astype(jnp.float32) / 255 - mean) / std


def l2_normalise(z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale to unit length, in float32."""
    z = z.astype(jnp.float32)
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def example_inputs(
    config: CLIPConfig, batch_size: int = 1, patches: int | None = None
) -> tuple[Any, Any]:
    """Shapes and types of a batch's images and tokens.

    The images are squares, or, with `patches`, `ImagePatches` with room for so many.
    """
    side = config.vision.image_size
    images: Any = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)
    if patches is not None:
        pixels = 3 * config.vision.patch_size**2
        shapes: Any = (
            jax.ShapeDtypeStruct((batch_size, patches, pixels), jnp.uint8),
            jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
        )
        images = ImagePatches(*shapes)
    tokens = jax.ShapeDtypeStruct((batch_size, config.text.context_length), jnp.int32)
    return images, tokens


def init_variables(key: Array, config: CLIPConfig) -> dict[str, Any]:
    """Initialize `CLIP.apply`'s variables in float32: `params`, and of a ResNet `batch_stats`."""
    inputs = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example_inputs(config))
    return nn.unbox(CLIP(config).init(key, *inputs))


def init_params(key: Array, config: CLIPConfig) -> dict[str, Any]:
    """Initialize the parameters alone, as a plain nested dict of arrays."""
    return init_variables(key, config)["params"]


@functools.cache
def _abstract_boxed(config: CLIPConfig) -> dict[str, Any]:
    return jax.eval_shape(CLIP(config).init, jax.random.key(0), *example_inputs(config))


def abstract_variables(config: CLIPConfig) -> dict[str, Any]:
    """Shapes and types of `init_variables`, nothing allocated."""
    return nn.unbox(_abstract_boxed(config))


def logical_axes(config: CLIPConfig) -> dict[str, Any]:
    """The tree of `init_params` with a `PartitionSpec` of logical axis names at each leaf."""
    return nn.get_partition_spec(_abstract_boxed(config)["params"])
