"""Long-CLIP's weights (Zhang et al. 2024): OpenAI's names, and positions in two tensors.

beichenzbc/Long-CLIP, `model/model_longclip.py`. It keeps CLIP's first 20 positions fixed in one
tensor, and trains the others, stretched to 248 in all, in a second one of the same shape.
"""

from collections.abc import Mapping

import numpy as np

from flaxclip.errors import InputError
from flaxclip.interop.archives.stored_tensor import StoredTensor

FIXED = 20
"""Positions that are those of the first tensor."""

_FIRST, _SECOND = "positional_embedding", "positional_embedding_res"


def is_long_clip(tensors: Mapping[str, StoredTensor]) -> bool:
    """True if the weights have positions in two tensors."""
    return _SECOND in tensors and _FIRST in tensors


def long_clip_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors with all positions in one, as those of a CLIP.

    Raises:
        InputError: the two have different shapes.
    """
    first, second = tensors[_FIRST], tensors[_SECOND]
    if first.shape != second.shape or len(first.shape) != 2:
        raise InputError(
            f"tensor {_SECOND} is of shape {list(second.shape)}, and {_FIRST} of "
            f"{list(first.shape)}\nexpected both to hold all positions of a Long-CLIP"
        )

    def read() -> np.ndarray:
        return np.concatenate([np.asarray(first)[:FIXED], np.asarray(second)[FIXED:]])

    others = {name: tensor for name, tensor in tensors.items() if name != _SECOND}
    return others | {_FIRST: StoredTensor(_FIRST, first.shape, second.dtype, read)}
