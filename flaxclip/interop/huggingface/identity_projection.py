"""SigLIP's SO400M of a hundred languages for transformers, whose class has no tower without one.

Its text tower has no projection. transformers' own conversion of it puts an identity there (5.24,
`models/siglip/convert_siglip_to_hf.py`), which changes no number, and so do we.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from flaxclip.models.spec import ModelSpec


def lacks_projection(spec: ModelSpec) -> bool:
    """True if `with_identity` gives transformers' class what it needs."""
    return spec.model.text.family == "siglip_i18n"


def with_identity(
    spec: ModelSpec, variables: Mapping[str, Any]
) -> tuple[ModelSpec, dict[str, Any]]:
    """The same function of images and texts as a SigLIP whose texts are projected."""
    text = dataclasses.replace(spec.model.text, family="siglip")
    width = text.width
    identity = {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}
    params = dict(variables["params"])
    params["text"] = params["text"] | {"projection": identity}
    model = dataclasses.replace(spec.model, text=text)
    return spec._replace(model=model), {**variables, "params": params}
