"""A model's weights, from a run of ours or another library's files."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from flaxclip.checkpoint.layout import (
    CHECKPOINTS,
    CONFIG_FILE,
    keeps_average,
    load_config,
    load_variables,
    resolve_checkpoint,
)
from flaxclip.config_json import RunFields
from flaxclip.errors import InputError
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.interop.files import COMPANIONS, fetch_tree
from flaxclip.interop.foreign import find_foreign
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.variants import ModelSpec

_READ_IN_PLACE = ("gs", "s3", "az")
"""Protocols that etils and Orbax read themselves; a run elsewhere is copied first."""

_HOW_TO_CHOOSE = (
    "take either with --weights ema or raw (--init-weights in training; weights= in Python)"
)

_BESIDE = (CONFIG_FILE, *COMPANIONS)


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model whose files are found, and whose numbers are not read yet."""

    kind: str
    """The format, and the choice among the weights in it, for people."""
    stored: str
    """Types of the numbers, for people."""
    spec: ModelSpec
    read: Callable[[Any], Iterator[tuple[str, Float[Array | np.ndarray, "..."]]]]
    """Path and numbers of each variable, float32, one after the other. The argument is a tree of
    shardings like the variables, or one for all; Orbax reads arrays with these shardings."""
    file: str = ""
    """The other library's file that they are read from, or that lists those files."""
    notice: str = ""
    """A note that the file also holds other weights, if the choice was made by default; may be
    empty."""
    compute: ComputeConfig = ComputeConfig()
    """Computation settings of the run, if a run of ours holds it."""
    workdir: epath.Path | None = None
    """The workdir of a run of ours that is read where it lies."""
    step: int | None = None
    """The step of its checkpoint."""


def open_weights(path: str, model: str | None = None, which: WhichWeights | None = None) -> Weights:
    """Open the weights at `path` and check everything but their numbers.

    Args:
        path: as `flaxclip.load` takes it.
        model: the architecture's name, for a file that does not say.
        which: of weights and their average, where both are there. If None, the average.

    Raises:
        InputError: there is no such model, it is not whole, of no architecture that we have, or
            cannot tell how it was trained; or does not have the weights that are asked for.
    """
    foreign = find_foreign(path, model, which)
    if foreign is not None:
        foreign.table.check(foreign.tensors)
        types = dict.fromkeys(str(tensor.dtype) for tensor in foreign.tensors.values())
        return Weights(
            foreign.kind,
            ", ".join(types),
            foreign.spec,
            lambda _: foreign.variables(),
            foreign.file,
            f"{foreign.file} holds weights and their average, which is taken\n{_HOW_TO_CHOOSE}"
            if foreign.has_both
            else "",
        )
    is_fetched = "://" in path and path.split("://", 1)[0] not in _READ_IN_PLACE
    if is_fetched:
        path = str(_fetch_run(path))
    workdir, step = resolve_checkpoint(path)
    config = load_config(workdir)
    spec = _spec_of_run(config, workdir)
    has_average = keeps_average(workdir, step)
    if which == "ema" and not has_average:
        raise InputError(f"the run in {workdir} keeps no average of its weights (optim.ema_decay)")
    kind = {None: "", "ema": ", averaged weights", "raw": ", weights without averaging"}[
        (which or "ema") if has_average else None
    ]

    def read(shardings: Any) -> Iterator[tuple[str, Array]]:
        shapes = abstract_variables(spec.model)
        if isinstance(shardings, jax.sharding.Sharding):
            shardings = jax.tree.map(lambda _, one=shardings: one, shapes)
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        yield from flatten_dict(
            load_variables(workdir, step, abstract, which != "raw"), sep="/"
        ).items()

    compute = config.get("compute", ComputeConfig, ComputeConfig())
    found = Weights(f"flaxclip, step {step}{kind}", "float32", spec, read, compute=compute)
    return found if is_fetched else dataclasses.replace(found, workdir=workdir, step=step)


def _fetch_run(url: str) -> Path:
    """A local copy of the workdir at `url`, with one step: its latest, or the one that it names."""
    parts = re.fullmatch(rf"(.*)/{CHECKPOINTS}/(\d+)/?", url)
    workdir, only = parts.groups() if parts else (url.rstrip("/"), r"\d+")

    def choose(names: Sequence[str]) -> list[str]:
        complete = re.compile(rf"{CHECKPOINTS}/({only})/commit_success.txt")
        steps = [int(found[1]) for name in names if (found := complete.fullmatch(name))]
        if not steps or CONFIG_FILE not in names:
            raise InputError(
                f"no model at {url}\nexpected the workdir of a run with a checkpoint, weights of "
                "another library, or the directory of one"
            )
        step = f"{CHECKPOINTS}/{max(steps)}/"
        # A vocabulary keeps the name that it had.
        return [
            name
            for name in names
            if name in _BESIDE
            or name.startswith(step)
            or ("/" not in name and name.endswith((".model", ".txt")))
        ]

    return fetch_tree(workdir, choose)


def _spec_of_run(config: RunFields, workdir: epath.Path) -> ModelSpec:
    tokenizer = config.get("tokenizer", TokenizerConfig)
    # A workdir is moved as a whole, so the copy in it counts.
    if tokenizer.file is not None and (copy := workdir / Path(tokenizer.file).name).exists():
        tokenizer = dataclasses.replace(tokenizer, file=str(copy))
    return ModelSpec(
        config.get("model", CLIPConfig),
        config.get("preprocess", ImageTransform),
        tokenizer,
    )
