"""The parts of a run, opened and checked before anything is written; and its first state."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from flaxclip.checkpoint.layout import saved_steps
from flaxclip.checkpoint.restore import restore_latest
from flaxclip.config import TrainConfig
from flaxclip.data.loader import open_source, teacher_views
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.data.sources.source import Source
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.fine_tuning.lora import check_lora
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
from flaxclip.sharding import make_mesh
from flaxclip.step_shapes import check_steps_divide
from flaxclip.storage import absolute
from flaxclip.teachers.stored import teachers_of_corpus
from flaxclip.teachers.weights import Variables, check_same_teachers, load_teachers, open_teachers
from flaxclip.train_state import TrainState, abstract_train_state, init_train_state
from flaxclip.weights import Weights


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
    teachers: tuple[Weights, ...]
    """Teachers that run beside the student, not yet read."""
    stored: tuple[StoredTeacher, ...]
    """Teachers whose vectors are stored with the examples of `source`."""


def open_parts(config: TrainConfig) -> RunParts:
    """Open the parts that `config` names.

    Raises:
        InputError: something in `config` cannot be used here.
    """
    check_wandb(config.wandb)
    mesh = make_mesh(config.mesh)
    check_steps_divide(config, mesh)
    check_tensor_divides(config.model, config.mesh.tensor)
    sharing = None
    if jax.process_count() > 1:
        folder = str(absolute(config.workdir) / "index")
        sharing = IndexSharing(folder, jax.process_index(), jax.process_count())
    source = open_source(config.data, config.model.vision.image_size, sharing)
    stored = teachers_of_corpus(config, source)
    text = config.model.text
    # So that a missing vocabulary is said in time.
    load_tokenizer(config.tokenizer, text.context_length, text.vocab_size)
    tx, schedule = make_optimizer(config.optim, config.steps)
    if config.adapters is not None:
        check_lora(config.adapters, abstract_variables(config.model)["params"])
    ema = config.optim.ema_decay is not None
    abstract = abstract_train_state(config.model, tx, mesh, ema, config.adapters)
    check_optim_patterns(config.optim, abstract.params)
    initial = None
    if config.init_from is not None and not saved_steps(config.workdir):
        initial = open_initial_weights(config)
    teachers = open_teachers(config)
    teacher_views(config.spec, [teacher.spec for teacher in teachers])  # the same of theirs
    return RunParts(mesh, source, tx, schedule, abstract, initial, teachers, stored)


class StartingState(NamedTuple):
    """The start of the training loop."""

    step: int
    """Updates that are done already."""
    state: TrainState
    record: dict[str, Any]
    """The run record, with the weights that the run began with and its teachers', for the
    checkpoints to come."""
    teachers: tuple[Variables, ...]


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
    checkpoint, and only with "teacher" the teachers.

    Raises:
        InputError: no checkpoint is whole, or it is of other data or other teachers, or the weights
            are damaged.
    """
    teachers = load_teachers(parts.teachers, config, parts.mesh)
    if teachers.record:
        record |= {"teachers": teachers.record}
    restored = restore_latest(config.workdir, parts.abstract_state.trees, progress.warn)
    if restored is not None:
        check_same_data(record["data"], restored.record["data"], restored.step, resume_with_changes)
        check_same_teachers(
            teachers.record, restored.record.get("teachers"), restored.step, resume_with_changes
        )
        initial_weights = restored.record.get("initial_weights")
        state = TrainState.from_trees(restored.trees)
        record |= {"initial_weights": initial_weights}
        return StartingState(restored.step, state, record, teachers.variables)
    ema = config.optim.ema_decay is not None
    state = init_train_state(
        jax.random.key(config.seed), config.model, parts.tx, parts.mesh, ema, config.adapters
    )
    initial_weights = None
    if config.init_from is not None:
        # This host may have seen checkpoints that host 0 does not.
        initial = parts.initial or open_initial_weights(config)
        state, initial_weights = start_from(initial, config, parts.mesh, state)
        progress.say(describe(initial_weights, initial.weights.notice))
    record |= {"initial_weights": initial_weights}
    return StartingState(0, state, record, teachers.variables)
