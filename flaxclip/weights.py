"""A model's weights wherever they are: of a run of ours, or in another library's files."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from flaxclip.checkpoint import load_config, load_variables, resolve_checkpoint
from flaxclip.interop.foreign import find_foreign
from flaxclip.models.clip import CLIPConfig, abstract_variables


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model that is found, and whose numbers are not read yet."""

    kind: str
    """Whose format it is, for people."""
    stored: str
    """Types of the numbers, for people."""
    config: CLIPConfig
    read: Callable[[Any], Iterator[tuple[str, Float[Array | np.ndarray, "..."]]]]
    """Path and numbers of each variable, float32, one after the other. The argument is a tree of
    shardings like the variables, or one for all: what is read by Orbax lies there."""


def open_weights(path: str, model: str | None = None) -> Weights:
    """What `path` holds: everything is checked but the numbers themselves.

    Args:
        path: as `flaxclip.load` takes it.
        model: the architecture's name, for a file that does not tell.

    Raises:
        InputError: there is no such model, it is not whole, of no architecture that we have, or
            cannot tell how it was trained.
    """
    foreign = find_foreign(path, model)
    if foreign is not None:
        foreign.table.check(foreign.tensors)
        types = dict.fromkeys(str(tensor.dtype) for tensor in foreign.tensors.values())
        return Weights(
            foreign.kind, ", ".join(types), foreign.config, lambda _: foreign.variables()
        )
    workdir, step = resolve_checkpoint(path)
    config = _our_config(workdir)

    def read(shardings: Any) -> Iterator[tuple[str, Array]]:
        shapes = abstract_variables(config)
        if isinstance(shardings, jax.sharding.Sharding):
            shardings = jax.tree.map(lambda _, one=shardings: one, shapes)
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        yield from flatten_dict(load_variables(workdir, step, abstract), sep="/").items()

    return Weights(f"flaxclip, step {step}", "float32", config, read)


def _our_config(workdir: epath.Path) -> CLIPConfig:
    config = load_config(workdir, "model", CLIPConfig)
    # A workdir is moved as a whole, so the copy in it counts.
    if config.tokenizer_file is not None:
        copy = workdir / Path(config.tokenizer_file).name
        if copy.exists():
            config = dataclasses.replace(config, tokenizer_file=str(copy))
    return config
