"""A model's weights, from a run of ours or another library's files."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    run_record_of,
)
from flaxclip.config_json import RunFields
from flaxclip.errors import InputError
from flaxclip.fine_tuning.lora import PAIR, LoRA, abstract_with_pairs, merged
from flaxclip.interop.archives.state_dicts import WhichWeights
from flaxclip.interop.files import COMPANIONS, fetch_tree
from flaxclip.interop.foreign import find_foreign
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.spec import ModelSpec

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

    lora = adapters_of_run(config)
    if lora is not None:
        kind += f", LoRA of rank {lora.rank} merged"

    def read(shardings: Any) -> Iterator[tuple[str, Array]]:
        shapes = abstract_variables(spec.model)
        if isinstance(shardings, jax.sharding.Sharding):
            shardings = jax.tree.map(lambda _, one=shardings: one, shapes)
        abstract = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            shardings,
        )
        abstract["params"] = abstract_with_pairs(lora, abstract["params"])
        variables = load_variables(workdir, step, abstract, which != "raw")
        if lora is not None:
            layout = shardings["params"]
            variables["params"] = jax.jit(functools.partial(merged, lora), out_shardings=layout)(
                variables["params"]
            )
        yield from flatten_dict(variables, sep="/").items()

    compute = config.get("compute", ComputeConfig, ComputeConfig())
    found = Weights(f"flaxclip, step {step}{kind}", "float32", spec, read, compute=compute)
    return found if is_fetched else dataclasses.replace(found, workdir=workdir, step=step)


class TrainedPairs(NamedTuple):
    """What a run with `lora` has learned."""

    lora: LoRA
    pairs: dict[str, tuple[np.ndarray, np.ndarray]]
    """By a kernel's name, `params/...`: `lora_a` and `lora_b`."""
    initial_weights: dict[str, Any]
    """Record of the weights that it began with, as `start_from` returns it."""


def read_pairs(weights: Weights) -> TrainedPairs:
    """The low-rank pairs of a run, without the kernels that they are for.

    Raises:
        InputError: it is no run on this machine that has trained any, or it is damaged.
    """
    lora = None if weights.workdir is None else adapters_of_run(load_config(weights.workdir))
    if weights.workdir is None or weights.step is None or lora is None:
        raise InputError(
            f"{weights.kind}: no run with --lora\nan adapter is what such a run has learned: name "
            "its workdir, on this machine"
        )
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        abstract_variables(weights.spec.model),
    )
    shapes["params"] = abstract_with_pairs(lora, shapes["params"])
    averaged = ", averaged weights" in weights.kind
    variables = load_variables(weights.workdir, weights.step, shapes, averaged)
    flat = flatten_dict(variables, sep="/")
    roots = [name.removesuffix(PAIR[0]) for name in flat if name.endswith(f"/{PAIR[0]}")]
    found = {
        f"{root}kernel": (np.asarray(flat[root + PAIR[0]]), np.asarray(flat[root + PAIR[1]]))
        for root in roots
    }
    record = run_record_of(weights.workdir, weights.step)
    return TrainedPairs(lora, found, record["initial_weights"])


def adapters_of_run(config: RunFields) -> LoRA | None:
    """The pairs that a run has trained beside its parameters; None if it has trained these."""
    patterns = config.get("lora", list, [])
    if not patterns:
        return None
    rank, alpha = config.get("lora_rank", int), config.get("lora_alpha", float | None)
    return LoRA(tuple(patterns), rank, float(rank) if alpha is None else alpha)


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
            or ("/" not in name and name.endswith((".model", ".txt", ".json")))
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
