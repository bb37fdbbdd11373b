"""What an architecture costs, from shapes alone: nothing is allocated or compiled."""

import functools
from collections.abc import Container
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxclip.flops import count_flops
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, example_inputs
from flaxclip.models.modified_resnet import ResNetConfig


class Cost(NamedTuple):
    """Size and work of one model."""

    parameters: int
    """Numbers that training changes; running statistics are not among them."""
    image_flops: int
    """Of one picture through its tower, forward."""
    text_flops: int
    """Of one caption, likewise."""

    @property
    def forward_flops(self) -> int:
        """Of one image–caption pair through both towers, the loss left out."""
        return self.image_flops + self.text_flops

    def training_flops(self, frozen: Container[str] = ()) -> int:
        """Of a pair in an update: the backward pass takes twice those of the forward pass.

        `frozen` holds `vision` or `text` where all of that tower is: it has no backward pass.
        """
        image = self.image_flops * (1 if "vision" in frozen else 3)
        return image + self.text_flops * (1 if "text" in frozen else 3)


@functools.cache
def model_cost(config: CLIPConfig, kept_patches: int | None = None) -> Cost:
    """Parameters and forward FLOPs a pair of `config`, whose image tower sees all patches or so
    many.
    """
    variables = abstract_variables(config)
    images, tokens = example_inputs(config)
    kept = None if kept_patches is None else jax.ShapeDtypeStruct((1, kept_patches), jnp.int32)

    def encode_image(variables, images, kept):
        return CLIP(config).apply(variables, images, kept=kept, method="encode_image")

    def encode_text(variables, tokens):
        return CLIP(config).apply(variables, tokens, method="encode_text")

    return Cost(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        image_flops=count_flops(encode_image, variables, images, kept),
        text_flops=count_flops(encode_text, variables, tokens),
    )


def published_flops(config: CLIPConfig) -> int:
    """Forward FLOPs of a pair as open_clip counts them (`docs/model_profile.csv`).

    Its ResNets' attention pooling attends from every position and then keeps the first one; ours
    attends from that one alone.
    """
    flops = model_cost(config).forward_flops
    if not isinstance(config.vision, ResNetConfig):
        return flops
    positions, width = config.vision.grid**2, 32 * config.vision.width
    projections = width**2 + width * config.embed_dim
    return flops + 2 * positions * (projections + 2 * (positions + 1) * width)
