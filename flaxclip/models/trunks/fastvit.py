"""FastViT (Vasu et al. 2023), the image tower of MobileCLIP's and MobileCLIP2's S0 to S4.

Its convolutions are sums of branches, each normed by its own batch norm. Once they are trained, a
sum is one convolution: `branches.py`. Blocks of the first three stages mix positions by such
sums, those of the further ones by attention; all have an MLP behind a convolution of 7 x 7.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from flaxclip.errors import InputError
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, logical
from flaxclip.models.layers import MLP, Attention, BlockConfig, check_sizes, gelu, layer_norm
from flaxclip.models.modified_resnet import BatchNorm, ConvNorm
from flaxclip.models.trunks.branches import Branches, BranchMode
from flaxclip.models.trunks.fastvit_downsampling import SPATIAL_SIZE, Downsample, Gates, Stem
from flaxclip.models.trunks.trunk import TrunkConfig

HEAD_WIDTH = 32
"""Channels of a head (timm, `models/fastvit.py`)."""

ATTENTION_FROM = 3
"""Index of the first stage with attention."""

LAYER_SCALE = 1e-5
"""Initial factor on what a block adds (Touvron et al. 2021, "Going deeper", section 2)."""

_KERNEL = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class FastViTConfig(TrunkConfig):
    """Shape of the image tower. The defaults are those of MobileCLIP2-S0."""

    image_size: int = 256
    """Side of the square input, pixels."""
    width: int = 64
    """Channels of the first stage; each further one has twice as many."""
    layers: tuple[int, ...] = (2, 6, 10, 2)
    """Blocks of the four or five stages."""
    mlp_ratio: float = 3.0
    """Hidden width of the MLPs over that of their stage."""
    frozen_statistics: bool = False
    """Normalise with the running statistics in training too, and leave them unchanged."""
    merged: bool = False
    """True if every sum of branches is one convolution, which is faster; False for training."""
    family: Literal["fastvit", "fastvit_large"] = "fastvit"
    """S0 to S2 of MobileCLIP, or S3 and S4 ("fastvit_large"): with layer norms before attention in
    place of batch norms, no gates of channels between stages, and one branch in the stem."""

    is_transformer = False

    def __post_init__(self) -> None:
        sizes = {"image_size": self.image_size, "width": self.width, "mlp_ratio": self.mlp_ratio}
        check_sizes("vision", sizes)
        for layers in self.layers:
            check_sizes("vision", {"layers": layers})
        if len(self.layers) not in (4, 5):
            raise InputError(f"vision layers are of {len(self.layers)} stages\nexpected 4 or 5")
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size {self.image_size} is not divisible by {self.patch_size}\n"
                f"this FastViT halves its input {len(self.layers) + 1} times: choose a multiple of "
                f"{self.patch_size}"
            )
        if self.width * 2**ATTENTION_FROM % HEAD_WIDTH:
            raise InputError(
                f"vision width {self.width} makes heads of less than {HEAD_WIDTH} channels\n"
                f"choose a multiple of {HEAD_WIDTH // 2**ATTENTION_FROM}"
            )

    @property
    def patch_size(self) -> int:
        return 2 ** (len(self.layers) + 1)

    @property
    def deepest_stack(self) -> int:
        return max(self.layers)

    @property
    def averages_statistics(self) -> bool:
        return not self.frozen_statistics

    @property
    def architecture(self) -> "FastViTConfig":
        return dataclasses.replace(self, frozen_statistics=False)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width * 2**stage for stage in range(len(self.layers)))

    def mlp_width(self, stage: int) -> int:
        """Hidden width of a stage's MLPs."""
        return int(self.widths[stage] * self.mlp_ratio)

    def has_gates(self, stage: int) -> bool:
        """True if channels are scaled by gates before that stage."""
        return self.family == "fastvit" and stage >= 2

    @property
    def tensor_divides(self) -> Mapping[str, int]:
        heads = self.width * 2**ATTENTION_FROM // HEAD_WIDTH
        return {"heads": heads, "MLP channels": self.mlp_width(0)}

    def describe(self) -> str:
        merged = ", branches merged" if self.merged else ""
        return f"FastViT, blocks {'-'.join(map(str, self.layers))}, width {self.width}{merged}"

    def make_tower(self, embed_dim: int, compute: ComputeConfig) -> nn.Module:
        return FastViT(self, embed_dim, compute)


class _Block(nn.Module):
    """Positions are mixed, then channels; each is added to the input after a scale."""

    config: BlockConfig
    compute: ComputeConfig
    mode: BranchMode

    def scaled(self, x: Float[Array, "b h w c"], name: str) -> Float[Array, "b h w c"]:
        """Multiplied by a parameter of its channels."""
        init = logical(nn.initializers.constant(LAYER_SCALE), "embed")
        return x * self.param(name, init, x.shape[-1:])[None, None, None].astype(x.dtype)

    def mix_channels(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """An MLP behind a convolution."""
        mode, channels = self.mode, x.shape[-1]
        h = ConvNorm(
            channels, SPATIAL_SIZE, mode.running, mode.dtype, depthwise=True, kernel_init=_KERNEL,
            name="spatial",
        )(x)  # fmt: skip
        h = MLP(self.config, self.compute, name="mlp")(rearrange(h, "b h w c -> b (h w) c"))
        return x + self.scaled(h.reshape(x.shape), "layer_scale")


class MixerBlock(_Block):
    """RepMixer: positions are mixed by convolutions of 3 x 3 (Vasu et al. 2023, section 3.1)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mode = self.mode
        mixed = Branches(x.shape[-1], (3, 1), mode, depthwise=True, name="mixer")(x)
        if not mode.merged:
            mixed = mixed - BatchNorm(mode.running, mode.dtype, name="mixer_norm")(x)
            mixed = x + self.scaled(mixed, "mixer_scale")
        return self.mix_channels(mixed)


class AttentionBlock(_Block):
    """Positions attend to each other. `batch_norm` precedes that, or a layer norm."""

    batch_norm: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        if self.batch_norm:
            h = BatchNorm(self.mode.running, self.mode.dtype, name="bn")(x)
        else:
            h = layer_norm("ln", self.config.norm_eps)(x).astype(self.mode.dtype)
        attention = Attention(self.config, self.compute, name="attention")
        h = attention(rearrange(h, "b h w c -> b (h w) c")).reshape(x.shape)
        return self.mix_channels(x + self.scaled(h, "attention_scale"))


class Stage(nn.Module):
    """A downsampling, except for the first, then equal blocks, stacked and scanned."""

    config: FastViTConfig
    index: int
    compute: ComputeConfig
    mode: BranchMode

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        c, index, mode = self.config, self.index, self.mode
        width, mlp_width = c.widths[index], c.mlp_width(index)
        attends = index >= ATTENTION_FROM
        if index:
            x = Downsample(width, c.has_gates(index), attends, mode, name="downsample")(x)
        args = (
            BlockConfig(
                heads=max(1, width // HEAD_WIDTH),
                mlp_width=mlp_width,
                activation="gelu",
                init=BlockInit.truncated_normal(width, mlp_width),
                qkv_bias=False,
            ),
            self.compute,
            mode,
        )
        stack = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=c.layers[index],
            unroll=min(self.compute.unroll or 1, c.layers[index]),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        if attends:
            block: nn.Module = AttentionBlock(*args, c.family == "fastvit", name="rest")
        else:
            block = MixerBlock(*args, name="rest")
        return stack(block, x, None)[0]


class FastViT(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` an image out (not yet unit norm)."""

    config: FastViTConfig
    embed_dim: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"], train: bool = False) -> Float[Array, "b d"]:
        """`train`: normalise with the batch's statistics, and update the running ones."""
        c, dtype = self.config, self.compute.activation_dtype
        mode = BranchMode(c.frozen_statistics or not train, c.merged, dtype)
        sizes = (3, 1) if c.family == "fastvit" else (3,)
        x = Stem(c.width, sizes, mode, name="stem")(pixels)
        for index in range(len(c.layers)):
            x = Stage(c, index, self.compute, mode, name=f"stage{index + 1}")(x)
        width = 2 * c.widths[-1]
        x = Branches(width, (3, 1), mode, depthwise=True, name="final")(x)
        x = gelu(Gates(width // 16, dtype, name="final_squeeze")(x))
        return nn.Dense(
            self.embed_dim,
            dtype=jnp.float32,
            kernel_init=logical(_KERNEL, "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name="projection",
        )(x.astype(jnp.float32).mean(axis=(1, 2)))
