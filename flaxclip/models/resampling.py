"""Position embeddings for another resolution or context length, as open_clip resizes them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig


def resize_grid(
    embedding: Float[Array | np.ndarray, "positions w"], old_grid: int, new_grid: int
) -> Float[Array, "new_positions w"]:
    """Embeddings of `new_grid`² patches from those of `old_grid`²; what stands before stays.

    Bicubic with antialiasing: open_clip's `resize_pos_embed`.
    """
    others = embedding.shape[0] - old_grid**2
    grid = rearrange(embedding[others:], "(h w) c -> h w c", h=old_grid)
    resized = jax.image.resize(grid, (new_grid, new_grid, grid.shape[-1]), "cubic")
    resized = rearrange(resized, "h w c -> (h w) c")
    return jnp.concatenate([embedding[:others], resized.astype(embedding.dtype)])


def resize_context(
    embedding: Float[Array | np.ndarray, "positions w"], length: int
) -> Float[Array, "length w"]:
    """Embeddings of `length` tokens, by linear interpolation: open_clip's `resize_text_pos_embed`.

    All positions move, so a causal tower should be trained on after this.
    """
    shape = (length, embedding.shape[-1])
    resized = jax.image.resize(embedding, shape, "linear", antialias=False)
    return resized.astype(embedding.dtype)


def resample_positions(params: dict[str, Any], old: CLIPConfig, new: CLIPConfig) -> dict[str, Any]:
    """Parameters of a model like `old`, for one like `new`, which may see another resolution and
    context length; only position embeddings are changed.

    Raises:
        InputError: the two differ in what cannot be resampled, such as a width.
    """
    _check_same_but_for_positions(old, new)
    vision, text = params["vision"], params["text"]
    if new.vision.grid != old.vision.grid:
        positions = resize_grid(vision["position_embedding"], old.vision.grid, new.vision.grid)
        vision = vision | {"position_embedding": positions}
    if new.text.context_length != old.text.context_length:
        positions = resize_context(text["position_embedding"], new.text.context_length)
        text = text | {"position_embedding": positions}
    return params | {"vision": vision, "text": text}


# Fields of a tower that change no shape but that of its position embedding, or none at all.
_FREE_FIELDS = ("image_size", "context_length", "activation", "norm_eps", "frozen_statistics")


def _check_same_but_for_positions(old: CLIPConfig, new: CLIPConfig) -> None:
    def shape_fields(config: CLIPConfig) -> dict[str, Any]:
        fields = {"embed_dim": config.embed_dim, "logit_bias": config.init_logit_bias is not None}
        for name in ("vision", "text"):
            tower = getattr(config, name)
            fields[f"{name} kind"] = type(tower).__name__
            fields |= {
                f"{name}.{field.name}": getattr(tower, field.name)
                for field in dataclasses.fields(tower)
                if field.name not in _FREE_FIELDS
            }
        return fields

    ours, theirs = shape_fields(new), shape_fields(old)
    differing = [
        f"{name}: {theirs.get(name)!r} in the weights, {ours.get(name)!r} asked for"
        for name in sorted(ours | theirs)
        if ours.get(name) != theirs.get(name)
    ]
    if differing:
        raise InputError(
            "\n".join(
                [
                    "the weights are of another architecture than the configuration",
                    *differing,
                    "only the resolution and the context length of given weights can be changed",
                ]
            )
        )
