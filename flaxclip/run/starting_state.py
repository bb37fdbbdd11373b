"""The state that a run starts from: its newest intact checkpoint, given weights, or random ones."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from flaxclip.checkpoint.restore import restore_latest
from flaxclip.config import TrainConfig
from flaxclip.run.initial_weights import describe, start_from
from flaxclip.run.parts import RunParts
from flaxclip.run.progress import ProgressReport
from flaxclip.run.workdir import check_same_data
from flaxclip.train_state import TrainState, init_train_state


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
    """The state on the mesh of `parts`, which `config` names. Must be called on every host.

    `record` is the run record of this start, and `progress` reports what was found. In the fields
    `resume_with_changes` the run may differ from that of its checkpoint.

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
