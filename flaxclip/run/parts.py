"""The parts of a run, opened and checked before anything is written; and its first state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from flaxclip.checkpoint.layout import saved_steps
from flaxclip.checkpoint.restore import restore_latest
from flaxclip.config import TrainConfig
from flaxclip.data.loader import open_source
from flaxclip.data.sources.source import Source
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.metrics import check_wandb
from flaxclip.models.clip import abstract_variables, check_tensor_divides
from flaxclip.optim import check_optim_patterns, make_optimizer
from flaxclip.run.initial_weights import (
    InitialWeights,
    describe,
    open_initial_weights,
    start_from,
)
from flaxclip.run.progress import ProgressReport
from flaxclip.run.workdir import check_same_data
from flaxclip.sharding import check_batch_divides, make_mesh
from flaxclip.storage import absolute
from flaxclip.train_state import TrainState, abstract_train_state, init_train_state


class RunParts(NamedTuple):
    """Parts from which all others are made."""

    mesh: Mesh
    source: Source
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    """The learning rate that `tx` follows."""
    abstract_state: TrainState
    """Shapes and shardings of the state."""
    initial: InitialWeights | None
    """Weights to start from if there is no checkpoint yet. If None, random initialization."""


def open_parts(config: TrainConfig) -> RunParts:
    """Open the parts that `config` names.

    Raises:
        InputError: something in `config` cannot be used here.
    """
    check_wandb(config.wandb)
    mesh = make_mesh(config.mesh)
    check_batch_divides(config.batch_size, mesh, config.accumulate)
    check_tensor_divides(config.model, config.mesh.tensor)
    sharing = None
    if jax.process_count() > 1:
        folder = str(absolute(config.workdir) / "index")
        sharing = IndexSharing(folder, jax.process_index(), jax.process_count())
    source = open_source(config.data, config.model.vision.image_size, sharing)
    text = config.model.text
    # So that a missing vocabulary is said in time.
    load_tokenizer(config.tokenizer, text.context_length, text.vocab_size)
    tx, schedule = make_optimizer(config.optim, config.steps)
    check_optim_patterns(config.optim, abstract_variables(config.model)["params"])
    abstract = abstract_train_state(config.model, tx, mesh, config.optim.ema_decay is not None)
    initial = None
    if config.init_from is not None and not saved_steps(config.workdir):
        initial = open_initial_weights(config)
    return RunParts(mesh, source, tx, schedule, abstract, initial)


class StartingState(NamedTuple):
    """The start of the training loop."""

    step: int
    """Updates that are done already."""
    state: TrainState
    record: dict[str, Any]
    """The run record, with the weights that the run began with, for the checkpoints to come."""


def restore_or_init(
    config: TrainConfig,
    parts: RunParts,
    record: dict[str, Any],
    resume_with_changes: Sequence[str],
    progress: ProgressReport,
) -> StartingState:
    """Restore the newest intact checkpoint, or initialize a state. Must be called on every host.

    `parts` are those of `config`, and `record` is the run record of this start; `progress` reports
    what was found. Only with "data" in `resume_with_changes` may the data differ from that of the
    checkpoint.

    Raises:
        InputError: no checkpoint is whole, or it is of other data, or the weights are damaged.
    """
    restored = restore_latest(config.workdir, parts.abstract_state.trees, progress.warn)
    if restored is not None:
        check_same_data(record["data"], restored.record["data"], restored.step, resume_with_changes)
        initial_weights = restored.record.get("initial_weights")
        state = TrainState.from_trees(restored.trees)
        return StartingState(restored.step, state, record | {"initial_weights": initial_weights})
    ema = config.optim.ema_decay is not None
    state = init_train_state(jax.random.key(config.seed), config.model, parts.tx, parts.mesh, ema)
    initial_weights = None
    if parts.initial is not None:
        state, initial_weights = start_from(parts.initial, config, parts.mesh, state)
        progress.say(describe(initial_weights, parts.initial.weights.notice))
    return StartingState(0, state, record | {"initial_weights": initial_weights})
