"""CLIP: two towers, one embedding space, and the temperature that scales their similarities."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, UInt8

from flaxclip.errors import InputError
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.inputs import ImageTransform
from flaxclip.models.layers import check_sizes
from flaxclip.models.modified_resnet import ModifiedResNet, ResNetConfig
from flaxclip.models.text_transformer import TextConfig, TextTransformer
from flaxclip.models.vision_transformer import VisionTransformer, ViTConfig

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
"""Radford et al. 2021, section 2.5; after Wu et al. 2018."""


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Architecture of the two towers, and the initial scale and bias of the logits."""

    vision: ViTConfig | ResNetConfig = ViTConfig()
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
        image_layers = self.vision.layers
        deepest = max(image_layers) if isinstance(image_layers, tuple) else image_layers
        return max(deepest, self.text.layers)

    def is_scanned(self, compute: ComputeConfig) -> bool:
        """True if a tower loops over its blocks; false if `unroll` is all of them."""
        return (compute.unroll or 1) < self.most_blocks

    def __post_init__(self) -> None:
        check_sizes("model", {"embed_dim": self.embed_dim})
        if (
            isinstance(self.vision, ViTConfig)
            and not self.vision.has_projection
            and self.vision.width != self.embed_dim
        ):
            raise InputError(
                f"embed_dim {self.embed_dim} is not the image tower's width {self.vision.width}\n"
                f'with family "{self.vision.family}" that tower has no projection: the two must '
                "be the same"
            )


def check_tensor_divides(config: CLIPConfig, tensor: int) -> None:
    """Raise `InputError` unless `tensor` devices get equally many heads and MLP channels."""
    towers: dict[str, ViTConfig | ResNetConfig | TextConfig] = {
        "vision": config.vision,
        "text": config.text,
    }
    transformers = {name: c for name, c in towers.items() if not isinstance(c, ResNetConfig)}
    counts = {
        f"the {name} tower's {count} {what}": count
        for name, c in transformers.items()
        for what, count in (("heads", c.heads), ("MLP channels", c.mlp_width))
    }
    for what, count in counts.items():
        if count % tensor:
            common = math.gcd(*counts.values())
            fitting = [str(n) for n in range(1, common + 1) if common % n == 0]
            raise InputError(
                f"{what} are not divisible by mesh.tensor {tensor}\n"
                f"--mesh.tensor can be {', '.join(fitting)} with this model"
            )


class CLIP(nn.Module):
    """`apply(variables, x, method=...)` with `encode_image` or `encode_text`."""

    config: CLIPConfig
    compute: ComputeConfig = ComputeConfig()
    preprocess: ImageTransform = ImageTransform()

    def setup(self) -> None:
        c = self.config
        self.vision: ModifiedResNet | VisionTransformer
        if isinstance(c.vision, ResNetConfig):
            self.vision = ModifiedResNet(c.vision, c.embed_dim, self.compute)
        else:
            self.vision = VisionTransformer(c.vision, c.embed_dim, self.compute)
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
        images: UInt8[Array, "b h w 3"],
        train: bool = False,
        patch_ids: Int[Array, "b k"] | None = None,
    ) -> Float[Array, "b d"]:
        """Unit embeddings of uint8 images: a quarter of the bytes of floats to transfer.

        Pixels are normalised on the device. With `train`, batch norms use the batch's statistics
        and update `batch_stats`. With `patch_ids` a vision transformer sees those patches alone
        (FLIP).
        """
        mean, std = (
            jnp.array(statistic).reshape(1, 1, 1, 3)
            for statistic in (self.preprocess.mean, self.preprocess.std)
        )
        pixels = (images.astype(jnp.float32) / 255 - mean) / std
        only = {} if patch_ids is None else {"patch_ids": patch_ids}
        return l2_normalise(self.vision(pixels, train, **only))

    def encode_text(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Unit vectors of captions."""
        return l2_normalise(self.text(tokens))

    def __call__(
        self,
        images: UInt8[Array, "b h w 3"],
        tokens: Int[Array, "b l"],
        train: bool = False,
        patch_ids: Int[Array, "b k"] | None = None,
    ) -> tuple[Float[Array, "b d"], Float[Array, "b d"], Float[Array, ""]]:
        """Both embeddings and the log of the logit scale."""
        zimg = self.encode_image(images, train, patch_ids)
        return zimg, self.encode_text(tokens), self.logit_scale


def l2_normalise(z: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale to unit length, in float32."""
    z = z.astype(jnp.float32)
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def example_inputs(
    config: CLIPConfig, batch_size: int = 1
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch's images and tokens."""
    side = config.vision.image_size
    images = jax.ShapeDtypeStruct((batch_size, side, side, 3), jnp.uint8)
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
