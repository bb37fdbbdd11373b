"""The vision transformer: CLIP's, SigLIP's, the original one, and those of `trunks/`."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Int32

from flaxclip.errors import InputError
from flaxclip.models.attention.pooling import MAPHead
from flaxclip.models.attention.rotary import rotation_angles
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import logical, sincos_2d
from flaxclip.models.layers import (
    Activation,
    BlockConfig,
    check_sizes,
    check_transformer,
    layer_norm,
)
from flaxclip.models.patches import is_patch, resample_positions, with_registers
from flaxclip.models.transformer import Transformer
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.models.trunks.vit_family import ViTFamily
from flaxclip.models.vision_families import FAMILIES, Family
from flaxclip.sharding import embedding_lookup


@dataclasses.dataclass(frozen=True)
class ViTConfig(TrunkConfig):
    """Shape of the image tower. The defaults are ViT-B/32 (Radford et al. 2021, section 2.4)."""

    image_size: int = 224
    """Side of the square input, pixels."""
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`; the product is rounded."""
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    family: Family = "clip"
    """CLIP's tower, SigLIP's, or the original vision transformer ("vit"), which is LiT's; others
    are described in `models/trunks/`. Sets tokens, norms, pooling, biases and initial values, as
    in `FAMILIES`."""
    head: bool = False
    """With family "vit": whether a projection with a bias follows. LiT-B16B has one, later LiTs
    have none."""
    rotary_grid: int | None = None
    """With rotary position embeddings: patches along one side of the grid that they were learned
    on, over which those of another resolution are spread. If None, becomes that of this image
    size."""

    is_transformer = True

    def __post_init__(self) -> None:
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size}
        check_sizes("vision", sizes)
        if self.grid < 1:
            raise InputError(
                f"image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )
        if self.image_size % self.patch_size and self.traits.whole_patches:
            raise InputError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}\n"
                "choose an image size that is a multiple of the patch size"
            )
        if self.head and self.traits.projection != "optional":
            raise InputError(
                f'vision head is set, and family is "{self.family}"\n'
                'only with family "vit" there is a choice: leave it out'
            )
        check_transformer(
            "vision", self.width, self.layers, self.heads, self.mlp_ratio, self.norm_eps
        )
        rotary, pool_heads = self.traits.rotary, self.traits.pool_heads
        if self.rotary_grid is not None:
            check_sizes("vision", {"rotary_grid": self.rotary_grid})
            if rotary is None:
                raise InputError(
                    f'vision rotary_grid is {self.rotary_grid}, and family "{self.family}" has no '
                    "rotary position embeddings\nleave it out"
                )
        elif rotary is not None:
            # Written out, it stays when the image size is changed later.
            object.__setattr__(self, "rotary_grid", self.grid)
        if rotary is not None and self.width // self.heads % 4:
            raise InputError(
                f"vision width {self.width} makes {self.heads} heads of "
                f"{self.width // self.heads} channels\n"
                "with rotary position embeddings they must be a multiple of 4: pairs of channels "
                "turn with either coordinate"
            )
        if self.traits.sincos_positions and (self.width % 4 or self.width < 8):
            raise InputError(
                f"vision width {self.width} is not divisible by 4\n"
                f'positions of family "{self.family}" start as sines and cosines of both '
                "coordinates: choose a multiple of 4, from 8"
            )
        if pool_heads and self.width % pool_heads:
            raise InputError(
                f"vision width {self.width} is not divisible by the {pool_heads} heads of the "
                f'pooling of family "{self.family}"\nchoose a multiple of them'
            )

    @property
    def traits(self) -> ViTFamily:
        """The traits of the tower's family."""
        return FAMILIES[self.family]

    @property
    def mlp_width(self) -> int:
        return round(self.width * self.mlp_ratio)

    @property
    def class_tokens(self) -> int:
        """Positions before the patches: 1 or 0."""
        return int(self.traits.class_token)

    @property
    def has_projection(self) -> bool:
        return self.traits.projection == "always" or self.head

    @property
    def deepest_stack(self) -> int:
        return self.layers

    @property
    def tensor_divides(self) -> Mapping[str, int]:
        return {"heads": self.heads, "MLP channels": self.mlp_width} | (
            {"heads of the pooling": self.traits.pool_heads} if self.traits.pool_heads else {}
        )

    def check_patches(self, pixels: int | None = None) -> None:
        """Raise `InputError` unless the tower can take images at their own aspect ratio, in patches
        of so many values.
        """
        if self.traits.rotary is not None:
            raise InputError(
                f'a tower of family "{self.family}" has rotary position embeddings of a square\n'
                "it cannot take images at their own aspect ratio: choose a tower without them"
            )
        expected = 3 * self.patch_size**2
        if pixels not in (None, expected):
            raise InputError(
                f"patches have {pixels} values\nexpected {expected}: {self.patch_size} x "
                f"{self.patch_size} pixels of 3 colours, as this tower has learned"
            )

    def describe(self) -> str:
        return (
            f"{self.layers} layers, width {self.width}, {self.heads} heads, {self.activation}, "
            f"family {self.family}"
        )

    def make_tower(self, embed_dim: int, compute: ComputeConfig) -> nn.Module:
        return VisionTransformer(self, embed_dim, compute)


class VisionTransformer(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` an image out (not yet unit norm)."""

    config: ViTConfig
    embed_dim: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self,
        pixels: Float[Array, "b h w 3"] | Float[Array, "b n pixels"],
        train: bool = False,
        patch_ids: Int[Array, "b k"] | None = None,
        grid: Int32[Array, "b 2"] | None = None,
        pooled_only: bool = False,
    ) -> Float[Array, "b d"]:
        """`train` has no effect on this tower; it sees all patches, or `patch_ids`. With
        `pooled_only`, for inference, its last block computes only what is pooled.

        With `grid`, images have an aspect ratio of their own: pixels are those of `ImagePatches`.
        """
        c, family, dtype = self.config, self.config.traits, self.compute.activation_dtype
        patches, padding_mask = pixels, None
        if grid is None:
            # A convolution whose stride is its kernel is a matrix product of flattened patches.
            side = c.grid * c.patch_size
            patches = rearrange(
                pixels[:, :side, :side],
                "b (h p) (w q) c -> b (h w) (p q c)",
                p=c.patch_size,
                q=c.patch_size,
            )
        else:
            assert patch_ids is None, "a square's patches have these ids"
            c.check_patches(pixels.shape[2])
            padding_mask = is_patch(grid, pixels.shape[1])
            if c.class_tokens:
                padding_mask = jnp.pad(padding_mask, ((0, 0), (1, 0)), constant_values=True)
        if patch_ids is not None:
            patches = jnp.take_along_axis(patches, patch_ids[:, :, None], axis=1)
        x = nn.Dense(
            c.width,
            use_bias=family.patch_bias,
            dtype=dtype,
            kernel_init=logical(
                nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), None, "embed"
            ),
            bias_init=logical(nn.initializers.zeros, "embed"),
            name="patch_embedding",
        )(patches)

        width_normal = nn.initializers.normal(c.width**-0.5)
        if family.class_token:
            init = nn.initializers.zeros if family.zero_class_token else width_normal
            class_embedding = self.param("class_embedding", logical(init, "embed"), (c.width,))
            class_token = jnp.broadcast_to(class_embedding, (x.shape[0], 1, c.width))
            x = jnp.concatenate([class_token.astype(x.dtype), x], axis=1)
        tokens = c.grid**2 + c.class_tokens
        init = sincos_2d(c.grid, c.class_tokens) if family.sincos_positions else width_normal
        position_embedding = self.param(
            "position_embedding", logical(init, None, "embed"), (tokens, c.width)
        )
        if grid is not None:
            position_embedding = self._resampled(position_embedding, grid, pixels.shape[1])
        else:
            position_embedding = position_embedding[None]
        positions, angles = position_embedding.astype(x.dtype), self._angles()
        if patch_ids is not None:
            # The class token, where there is one, comes first and is never left out.
            seen = jnp.pad(patch_ids + 1, ((0, 0), (1, 0))) if c.class_tokens else patch_ids
            positions = embedding_lookup(positions[0], seen)
            angles = None if angles is None else angles[0][seen]
        x = x + positions
        if family.registers:
            init = logical(width_normal, None, "embed")
            registers = self.param("register_embedding", init, (family.registers, c.width))
            x, padding_mask = with_registers(x, registers, c.class_tokens, padding_mask)
        if family.norm_before_blocks:
            x = layer_norm("ln_pre", c.norm_eps)(x).astype(dtype)

        block = BlockConfig(
            c.heads,
            c.mlp_width,
            c.activation,
            init=family.block_init(c.width, c.mlp_width),
            norm_eps=c.norm_eps,
        )
        transformer = Transformer(c.layers, block, self.compute, family.block, name="transformer")
        read = None
        if pooled_only and family.pooling == "class token":
            read = jnp.zeros(x.shape[0], jnp.int32)
        x = self._pool(transformer(x, padding_mask, angles, read), block, padding_mask)
        if not c.has_projection:
            return x
        return nn.Dense(
            self.embed_dim,
            use_bias=family.projection_bias,
            dtype=jnp.float32,
            kernel_init=logical(width_normal, "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name="projection",
        )(x)

    def _resampled(
        self, learned: Float[Array, "tokens w"], grid: Int32[Array, "b 2"], length: int
    ) -> Float[Array, "b l w"]:
        """Position embeddings for images of these grids; the class token keeps its own."""
        c = self.config
        first, square = learned[: c.class_tokens], learned[c.class_tokens :]
        square = rearrange(square, "(y x) w -> y x w", y=c.grid)
        positions = resample_positions(square, grid, length)
        first = jnp.broadcast_to(first[None], (len(grid), *first.shape))
        return jnp.concatenate([first, positions], axis=1)

    def _angles(self) -> Float[Array, "1 tokens half"] | None:
        """Of the rotary embeddings; a class token is not turned."""
        c, rotary = self.config, self.config.traits.rotary
        if rotary is None or c.rotary_grid is None:
            return None
        angles = rotation_angles(
            c.grid, c.rotary_grid, c.width // c.heads, rotary.column_first, rotary.offset
        )
        return jnp.pad(jnp.asarray(angles, jnp.float32), ((c.class_tokens, 0), (0, 0)))[None]

    def _pool(
        self,
        x: Float[Array, "b #l w"],
        block: BlockConfig,
        padding_mask: Bool[Array, "b l"] | None,
    ) -> Float[Array, "b w"]:
        """One vector an image, normed before or, of a mean, after the pooling; float32."""
        c, family = self.config, self.config.traits
        ln_post = layer_norm("ln_post", c.norm_eps)
        if family.pooling == "class token":
            return ln_post(x[:, 0])
        if family.pooling == "mean":
            seen = None if padding_mask is None else padding_mask[:, c.class_tokens :, None]
            patches = x[:, c.class_tokens :].astype(jnp.float32)
            return ln_post(patches.mean(axis=1, where=seen))
        if family.pool_heads is not None:
            heads, mlp_width = family.pool_heads, 4 * c.width
            block = dataclasses.replace(block, heads=heads, mlp_width=mlp_width)
        return MAPHead(block, self.compute, name="pool")(
            ln_post(x).astype(self.compute.activation_dtype), padding_mask
        )
