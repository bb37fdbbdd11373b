"""The parts of a run, opened and checked before anything is written."""

from typing import NamedTuple

import optax
from jax.sharding import Mesh

from flaxclip.checkpoint.layout import saved_steps
from flaxclip.config import TrainConfig
from flaxclip.data.loader import open_source
from flaxclip.data.sources.source import Source
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.metrics import check_wandb
from flaxclip.models.clip import abstract_variables, check_tensor_divides
from flaxclip.optim import check_optim_patterns, make_optimizer
from flaxclip.run.initial_weights import InitialWeights, open_initial_weights
from flaxclip.sharding import check_batch_divides, make_mesh
from flaxclip.train_state import TrainState, abstract_train_state


class RunParts(NamedTuple):
    """Parts that all others are made from."""

    mesh: Mesh
    source: Source
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    """The learning rate that `tx` follows."""
    abstract_state: TrainState
    """Shapes and shardings of the state."""
    initial: InitialWeights | None
    """Weights to start from, where there is no checkpoint yet; None for random ones."""


def open_parts(config: TrainConfig) -> RunParts:
    """The parts that `config` names.

    Raises:
        InputError: something in `config` cannot be used here.
    """
    check_wandb(config.wandb)
    mesh = make_mesh(config.mesh)
    check_batch_divides(config.batch_size, mesh, config.accumulate)
    check_tensor_divides(config.model, config.mesh.tensor)
    source = open_source(config.data, config.model.vision.image_size)
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
