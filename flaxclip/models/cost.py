"""What an architecture costs, from shapes alone: nothing is allocated or compiled."""

import functools
from collections.abc import Container
from typing import NamedTuple

import jax

from flaxclip.flops import count_flops
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, example_inputs


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
def model_cost(config: CLIPConfig) -> Cost:
    """Parameters and forward FLOPs a pair of `config`."""
    variables = abstract_variables(config)
    images, tokens = example_inputs(config)

    def flops(method: str, inputs: jax.ShapeDtypeStruct) -> int:
        encode = functools.partial(CLIP(config).apply, method=method)
        return count_flops(encode, variables, inputs)

    return Cost(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        image_flops=flops("encode_image", images),
        text_flops=flops("encode_text", tokens),
    )
