"""What an architecture costs, from shapes alone: nothing is allocated or compiled."""

import functools
from typing import NamedTuple

import jax

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
def model_cost(config: CLIPConfig) -> Cost:
    """Parameters and forward FLOPs a pair of `config`."""
    variables = abstract_variables(config)
    return Cost(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        forward_flops=count_flops(CLIP(config).apply, variables, *example_inputs(config)),
    )
