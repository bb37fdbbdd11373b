"""Pretrain CLIP.

    python -m flaxclip.train                                     the built-in data, some minutes
    python -m flaxclip.train EXPERIMENT.py --optim.peak-lr 1e-3
    python -m flaxclip.train EXPERIMENT.py --model ViT-B-16      another architecture

The same command again resumes where the run stopped.
"""

import sys
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from flaxclip.checkpoint import CheckpointWriter
from flaxclip.config import TrainConfig
from flaxclip.data.loader import load_batches, open_source
from flaxclip.data.source import Source
from flaxclip.errors import exit_on_input_error
from flaxclip.metrics import MetricWriter, Throughput
from flaxclip.optim import make_optimizer, make_schedule
from flaxclip.progress import ProgressReport
from flaxclip.sharding import check_batch_divides, make_mesh
from flaxclip.startup import announce, join_hosts, keep_freed_memory, step_flops
from flaxclip.train_command import parse
from flaxclip.train_state import TrainState, abstract_train_state, init_train_state
from flaxclip.train_step import Metrics, make_train_step
from flaxclip.workdir import claim_workdir


def train(config: TrainConfig) -> None:
    """Run `config` from its workdir's latest checkpoint, or from the start, to its last step.

    Raises:
        InputError: something in `config` cannot be used here; nothing has been written then.
    """
    mesh = make_mesh(config.mesh)
    check_batch_divides(config.batch_size, mesh)
    source = open_source(config.data, config.model.vision.image_size)
    tx = make_optimizer(config.optim, config.steps)
    claim_workdir(config)
    checkpoints = CheckpointWriter(config.workdir, config.keep_checkpoints)
    start_step = checkpoints.latest_step() or 0
    announce(config, mesh, source, start_step)

    with jax.set_mesh(mesh):
        if start_step == 0:
            state = init_train_state(jax.random.key(config.seed), config.model, tx, mesh)
        elif start_step < config.steps:
            like = abstract_train_state(config.model, tx, mesh)
            params, training = checkpoints.restore(start_step, like.params, _without_params(like))
            state = TrainState(params=params, **training)
        else:
            return
        run_steps(config, mesh, source, state, start_step, checkpoints)
    checkpoints.close()


def run_steps(
    config: TrainConfig,
    mesh: Mesh,
    source: Source,
    state: TrainState,
    start_step: int,
    checkpoints: CheckpointWriter,
) -> None:
    """The loop, in an order that keeps the devices busy.

    A report reads the numbers of a step only after the next one has been dispatched, and batches
    arrive on the devices two steps ahead.
    """
    tx = make_optimizer(config.optim, config.steps)
    train_step = make_train_step(config.model, tx, mesh, state)
    batches = load_batches(
        config.data,
        config.model,
        source,
        mesh,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        stop_step=config.steps,
    )
    meter = Throughput(start_step, config.batch_size, step_flops(config), jax.devices())
    learning_rate = make_schedule(config.optim, config.steps)
    writer = MetricWriter(config.workdir)
    truncated = replaced = 0  # on this host

    def report(step: int, metrics: Metrics) -> None:
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        rates = meter.lap(step)
        on_hosts = process_allgather(np.array([[truncated, replaced]]), tiled=True)
        scalars |= {
            "learning_rate": float(learning_rate(step - 1)),
            **rates,
            "truncated_captions": int(on_hosts[:, 0].sum()),
            "replaced_records": int(on_hosts[:, 1].sum()),
        }
        writer.write(step, scalars)
        seconds_left = (config.steps - step) * config.batch_size / rates["images_per_second"]
        progress.report(step, scalars, seconds_left)

    pending = None
    with ProgressReport(start_step, config.steps) as progress:
        for step, loaded in enumerate(batches, start_step + 1):
            state, metrics = train_step(state, loaded.batch)
            progress.advance(step)
            if pending is not None:
                report(*pending)
                pending = None
            meter.waited_for_data(loaded.wait_seconds)
            truncated += loaded.truncated
            replaced += len(loaded.replaced)
            for record in loaded.replaced:
                progress.warn(f"step {step}: unreadable record, replaced by another: {record}")
            if step % config.log_every == 0 or step in (start_step + 1, config.steps):
                pending = step, metrics
            if step % config.checkpoint_every == 0 or step == config.steps:
                checkpoints.save(step, state.params, _without_params(state))
        report(*pending)
    writer.close()


def _without_params(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params"}


def main() -> None:
    """The command line."""
    keep_freed_memory()
    with exit_on_input_error("flaxclip.train"):
        config = parse(sys.argv[1:])
        join_hosts()
        train(config)
    if jax.process_index() == 0:
        print(f"done. To measure it:\n  python -m flaxclip.benchmark {config.workdir}")


if __name__ == "__main__":
    main()
