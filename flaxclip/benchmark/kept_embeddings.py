"""Embeddings on disk, and the name of the model that made them."""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from flaxclip.api import CLIPModel
from flaxclip.errors import InputError
from flaxclip.storage import whole_file


class Embedded(NamedTuple):
    """Unit embeddings in order, and what is to be said about some of them."""

    z: Float[np.ndarray, "n d"]
    remarks: tuple[str, ...]
    """Of images: those that could not be decoded, and why. Of texts: those that were too long for
    the model and lost their end."""


def check_finite(z: Float[np.ndarray, "n d"], of: str) -> None:
    """Refuse embeddings that have no direction: no similarity with them is above any other, nor
    below, so that each would be found before all others, or behind them.

    Raises:
        InputError: one holds NaN or infinity; `of` says what they are embeddings of.
    """
    if broken := int((~np.isfinite(z).all(axis=1)).sum()):
        raise InputError(
            f"{broken:,} of {len(z):,} embeddings of {of} are not finite\n"
            "weights are NaN or infinite, or activations too large for their type: take an earlier "
            "step of the run, or activations of float32"
        )


def model_digest(model: CLIPModel) -> str:
    """A hash of the parameters, the architecture and the type of activations."""
    spec = repr((model.spec, model.compute.dtype))
    if model.spec.preprocess.max_patches is not None:
        spec += f" {model.spec.preprocess.max_patches} patches"
    digest = hashlib.sha256(spec.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.variables):
        digest.update(jax.tree_util.keystr(path).encode())
        # As bytes without a copy of them, which would take longer than the hash.
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def load_embedded(path: Path) -> Embedded | None:
    """What `save_embedded` has written; None if it has not.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with np.load(path) as arrays:
            return Embedded(arrays["z"], tuple(json.loads(str(arrays["remarks"]))))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"embeddings in {path} are damaged: {error}\ndelete the file; they are made again"
        ) from None


def save_embedded(path: Path, part: Embedded) -> None:
    """Write a part, whole or not at all.

    Raises:
        InputError: the disk is full, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A run may be killed while it writes, or the disk be full.
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez(file, z=part.z, remarks=json.dumps(part.remarks))
    except OSError as error:
        raise InputError(
            f"cannot keep embeddings in {path.parent}: {error.strerror}\n"
            "name another folder with --cache"
        ) from None
