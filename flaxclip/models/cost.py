"""The cost of an architecture, from shapes alone: nothing is allocated or compiled."""

import functools
from collections.abc import Container
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from flaxclip.flops import count_flops
from flaxclip.models.clip import CLIP, CLIPConfig, example_inputs
from flaxclip.models.modified_resnet import ResNetConfig


class Cost(NamedTuple):
    """Size and work of one model."""

    parameters: int
    """Number of trainable parameters; running statistics are not among them."""
    image_flops: int
    """FLOPs of one image through its tower, forward."""
    text_flops: int
    """FLOPs of one caption through its tower, forward."""

    @property
    def forward_flops(self) -> int:
        """FLOPs of one image–caption pair through both towers, without the loss."""
        return self.image_flops + self.text_flops

    def training_flops(self, frozen: Container[str] = ()) -> int:
        """Of a pair in an update: the backward pass takes twice those of the forward pass.

        `frozen` holds `vision` or `text` where all of that tower is: it has no backward pass.
        """
        image = self.image_flops * (1 if "vision" in frozen else 3)
        return image + self.text_flops * (1 if "text" in frozen else 3)


def model_cost(
    config: CLIPConfig, kept_patches: int | None = None, patches: int | None = None
) -> Cost:
    """Parameters and forward FLOPs a pair of `config`, whose image tower sees all patches or so
    many; with `patches`, an image at its own aspect ratio that has so many.
    """
    images, tokens = example_inputs(config, patches=patches)
    patch_ids = None if kept_patches is None else jax.ShapeDtypeStruct((1, kept_patches), jnp.int32)
    # Each tower beside a default one, so that models that share it share its trace.
    alone = functools.partial(CLIPConfig, embed_dim=config.embed_dim)
    image = _tower_cost(alone(vision=config.vision), "vision", images=images, patch_ids=patch_ids)
    text = _tower_cost(alone(text=config.text), "text", tokens=tokens)
    scale_and_bias = 1 if config.init_logit_bias is None else 2
    return Cost(
        parameters=image.parameters + text.parameters + scale_and_bias,
        image_flops=image.flops,
        text_flops=text.flops,
    )


class _TowerCost(NamedTuple):
    parameters: int
    flops: int


@functools.cache
def _tower_cost(config: CLIPConfig, tower: Literal["vision", "text"], **inputs: Any) -> _TowerCost:
    """Cost of one tower, from one trace.

    Initialisers multiply no matrices, so the products of `init` are those of its forward pass.
    """
    methods: dict[str, Any] = {"vision": CLIP.encode_image, "text": CLIP.encode_text}
    init = functools.partial(CLIP(config).init, method=methods[tower])
    jaxpr, variables = jax.make_jaxpr(init, return_shape=True)(jax.random.key(0), **inputs)
    parameters = jax.tree.leaves(variables["params"][tower])
    return _TowerCost(sum(leaf.size for leaf in parameters), count_flops(jaxpr))


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
