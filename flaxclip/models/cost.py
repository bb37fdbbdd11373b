"""What an architecture costs, from shapes alone: nothing is allocated or compiled."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxclip.flops import count_flops
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, example_inputs


class Cost(NamedTuple):
    """Size and work of one model."""

    parameters: int
    """Numbers that training changes; running statistics are not among them."""
    forward_flops: int
    """Of one image–caption pair through both towers, the loss left out."""

    @property
    def training_flops(self) -> int:
        """Of a pair in an update: the backward pass takes twice those of the forward pass."""
        return 3 * self.forward_flops


@functools.cache
def model_cost(config: CLIPConfig, kept_patches: int | None = None) -> Cost:
    """Parameters and forward FLOPs a pair of `config`, whose image tower sees all patches or so
    many.
    """
    variables = abstract_variables(config)
    kept = None if kept_patches is None else jax.ShapeDtypeStruct((1, kept_patches), jnp.int32)

    def forward(variables, kept, *inputs):
        return CLIP(config).apply(variables, *inputs, kept=kept)

    return Cost(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        forward_flops=count_flops(forward, variables, kept, *example_inputs(config)),
    )
