"""Both towers as functions of inputs alone, for a batch of any size."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from flaxclip.models.clip import CLIP
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.spec import ModelSpec


class Tower(NamedTuple):
    """A tower with its parameters, and the input that it takes."""

    name: str
    """`image` or `text`."""
    encode: Callable[[Any], Any]
    """Pixels (uint8, [batch, height, width, 3]) or token ids (int32, [batch, length]) -> unit
    embeddings (float32). Pixels are normalised in it."""
    input: jax.ShapeDtypeStruct
    """Its first axis is `batch`, of any length."""


def towers(spec: ModelSpec, variables: Mapping[str, Any]) -> tuple[Tower, Tower]:
    """The image tower and the text tower of a model, in float32."""
    model = CLIP(spec.model, ComputeConfig(remat="none", attention="xla"), spec.preprocess)
    (batch,) = export.symbolic_shape("batch")
    side, length = spec.model.vision.image_size, spec.model.text.context_length
    inputs = {
        "image": jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((batch, length), jnp.int32),
    }

    def tower(name: str) -> Tower:
        def encode(x: Any) -> Any:
            return model.apply(variables, x, method=f"encode_{name}")

        return Tower(name, encode, inputs[name])

    return tower("image"), tower("text")
