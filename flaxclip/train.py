"""Pretrain CLIP.

    python -m flaxclip.train                                     the built-in data, some minutes
    python -m flaxclip.train EXPERIMENT.py --optim.peak-lr 1e-3
    python -m flaxclip.train EXPERIMENT.py --model ViT-B-16      another architecture

The same command again resumes where the run stopped. `exit_codes.py` says how it may end.
With `--debug`, an error says where in the code it arose.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated

import jax
import tyro
from jax.sharding import Mesh

from flaxclip.checkpoint import saved_steps
from flaxclip.checkpoint_manager import CheckpointManager
from flaxclip.command_line import RunCommand, parse
from flaxclip.config import TrainConfig
from flaxclip.coordination import Requests
from flaxclip.data.batch import Batch
from flaxclip.data.loader import load_batches, open_source
from flaxclip.data.model_tokenizer import model_tokenizer
from flaxclip.data.order import batch_records
from flaxclip.data.source import Source
from flaxclip.data.worker_pool import WorkerError
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.exit_codes import PREEMPTED, TRAINING_FAILED, PreemptedError, TrainingFailedError
from flaxclip.health import ANOMALIES_FILE, LossMonitor, check_replicas
from flaxclip.host_connections import connect_hosts
from flaxclip.initial_weights import describe, open_initial_weights, start_from
from flaxclip.metrics import check_wandb
from flaxclip.models.clip import abstract_variables, check_tensor_divides
from flaxclip.models.find_nonfinite import find_nonfinite
from flaxclip.optim import check_optim_patterns, make_optimizer
from flaxclip.planning.advice import refusal_explained
from flaxclip.progress import ProgressReport
from flaxclip.provenance import run_record
from flaxclip.restore import restore_latest
from flaxclip.run_report import RunReport, announce, explain_out_of_memory, peak_memory
from flaxclip.sharding import check_batch_divides, join_hosts, make_mesh
from flaxclip.startup import StartupClock, keep_compiled_programs, keep_freed_memory
from flaxclip.stop_signals import StopSignals, exit_on_signals
from flaxclip.train_state import TrainState, abstract_train_state, init_train_state
from flaxclip.train_step import Metrics, choose_remat, make_train_step, step_fits
from flaxclip.watchdog import Watchdog
from flaxclip.workdir import check_same_data, claim_workdir, hold_workdir


def train(
    config: TrainConfig, *, resume_with_changes: Sequence[str] = (), debug_nans: bool = False
) -> None:
    """Run `config` from its workdir's latest whole checkpoint, or from the start, to its last step.

    `config` may differ from the run in the workdir in the fields `resume_with_changes`. With
    `debug_nans` the first loss or gradient that is not finite stops the run.

    Raises:
        InputError: something in `config` cannot be used here; nothing has been written then.
        PreemptedError: a signal has stopped the run; its state is saved.
        TrainingFailedError: the numbers went bad.
    """
    clock = StartupClock()
    check_wandb(config.wandb)
    mesh = make_mesh(config.mesh)
    check_batch_divides(config.batch_size, mesh, config.accumulate)
    check_tensor_divides(config.model, config.mesh.tensor)
    source = open_source(config.data, config.model.vision.image_size)
    model_tokenizer(config.model)  # so that a missing vocabulary is said in time
    tx, schedule = make_optimizer(config.optim, config.steps)
    check_optim_patterns(config.optim, abstract_variables(config.model)["params"])
    initial = None
    if config.init_from is not None and not saved_steps(config.workdir):
        initial = open_initial_weights(config)
    with (
        hold_workdir(config.workdir),
        jax.set_mesh(mesh),
        Watchdog(config.health.host_timeout_seconds) as watchdog,
    ):
        claim_workdir(config, resume_with_changes)
        start_step = max(saved_steps(config.workdir), default=0)
        ema = config.optim.ema_decay is not None
        like = abstract_train_state(config.model, tx, mesh, ema)
        announce(config, mesh, source, like, start_step)
        if start_step >= config.steps:
            return
        clock.finished("data and checkpoints")
        progress = ProgressReport(start_step, config.steps)
        record = run_record(config, source)
        connect_hosts(mesh, config.batch_size)
        platform = mesh.devices.flat[0].platform
        config = choose_remat(config, platform, lambda tried: step_fits(tried, tx, schedule, mesh))
        restored = restore_latest(config.workdir, like.trees, progress.warn)
        if restored is None:
            start_step, started_from = 0, None
            state = init_train_state(jax.random.key(config.seed), config.model, tx, mesh, ema)
            if initial is not None:
                state, started_from = start_from(initial, config, mesh, state)
                progress.say(describe(started_from))
        else:
            start_step = restored.step
            started_from = restored.record.get("initial_weights")
            check_same_data(
                record["data"], restored.record["data"], start_step, resume_with_changes
            )
            state = TrainState.from_trees(restored.trees)
        clock.finished("state")
        checkpoints = CheckpointManager(
            config.workdir,
            config.checkpoint,
            record | {"initial_weights": started_from},
            progress.warn,
            config.health.host_timeout_seconds,
        )
        run_steps(
            config,
            mesh,
            source,
            state,
            start_step,
            checkpoints,
            progress,
            watchdog,
            clock,
            debug_nans,
        )


def run_steps(
    config: TrainConfig,
    mesh: Mesh,
    source: Source,
    state: TrainState,
    start_step: int,
    checkpoints: CheckpointManager,
    progress: ProgressReport,
    watchdog: Watchdog,
    clock: StartupClock,
    debug_nans: bool = False,
) -> None:
    """The loop, in an order that keeps the devices busy.

    The numbers of a step are read only after the next one has been dispatched, and batches arrive
    on the devices two steps ahead. All hosts read the same numbers, so they decide alike.
    """
    tx, schedule = make_optimizer(config.optim, config.steps)
    train_step = make_train_step(config, tx, schedule, mesh, state)
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
    health = config.health
    max_skipped = 1 if debug_nans else health.max_skipped
    report = RunReport(config, source, mesh, start_step, progress, checkpoints)
    monitor = LossMonitor(
        health,
        config.workdir,
        lambda step: batch_records(source, config.data.order, config.seed, config.batch_size, step),
        progress.warn,
    )

    def settle(step: int, metrics: Metrics) -> None:
        """Wait until `step` is done, and look at its numbers."""
        watchdog.doing(f"waiting for the devices to finish step {step}")
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        watchdog.step_done()
        report.done(step, scalars)
        monitor.check(step, scalars)

    def save(step: int, state: TrainState) -> None:
        watchdog.exempt(f"saving step {step}")
        checkpoints.save(step, state.trees, monitor.medians())

    def give_up(step: int, state: TrainState, batch: Batch) -> None:
        """Save the moment before the updates that were skipped, and stop."""
        skipped = monitor.skipped_in_a_row
        before = step - skipped
        if before not in saved_steps(config.workdir):
            steps_back = {"step": state.step - skipped, "skipped": state.skipped - skipped}
            save(before, state._replace(**steps_back))
        checkpoints.close()
        where = find_nonfinite(config.model, state.params, state.batch_stats, batch)
        raise TrainingFailedError(
            f"the last {skipped} updates, up to step {step}, were not finite; not finite in the "
            f"last: {where}\nstep {before}, before the first of them, is saved; their records are "
            f"named in {ANOMALIES_FILE}"
        )

    pending, save_wanted, request = None, False, None
    with (
        progress,
        contextlib.closing(batches),
        contextlib.closing(report),
        Requests(health.host_timeout_seconds) as requests,
        StopSignals(requests),
    ):
        for step, loaded in enumerate(batches, start_step + 1):
            last, first = step == config.steps, step == start_step + 1
            if first:
                clock.finished("first batch")
            with refusal_explained(config, mesh):
                state, metrics = train_step(state, loaded.batch)
            if first:
                clock.finished("compilation")
                jax.block_until_ready(metrics)
                clock.finished("step")
                progress.say(clock.summary())
                if memory := peak_memory(jax.local_devices()[0].memory_stats()):
                    progress.say(memory)
            report.loaded(step, loaded)
            if pending is not None:
                settle(*pending)
            pending = step, metrics

            if checkpoints.due() and jax.process_index() == 0:
                requests.make("save")
            request = requests.agreed(step, last)
            save_wanted |= last or request is not None or step % config.checkpoint.every_steps == 0
            if save_wanted or monitor.skipped_in_a_row + 1 >= max_skipped:
                settle(*pending)
                pending = None
            if monitor.skipped_in_a_row >= max_skipped:
                give_up(step, state, loaded.batch)
            if step % health.check_replicas_every == 0:
                check_replicas(state, mesh, step)
            # While updates are skipped, the latest checkpoint stays the moment before.
            if save_wanted and (not monitor.skipped_in_a_row or last or request == "stop"):
                save(step, state)
                save_wanted = False
                if request != "stop":
                    report.pictures(step, state)
            if request == "stop":
                break
            watchdog.doing(f"waiting for the data of step {step + 1}")
        watchdog.exempt("waiting for the last save")
        if not checkpoints.close():
            raise InputError(
                f"step {step} could not be saved into {config.workdir}\n"
                "the message above says why; when that is mended, the same command goes on"
            )
    if not last:
        raise PreemptedError(f"stopped after step {step}, which is saved; the same command goes on")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(RunCommand):
    """Pretrain CLIP. The same command again resumes where the run stopped."""

    resume_with_changes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD")] = ()
    """Fields, such as optim.peak_lr, in which this run may differ from what its workdir holds.
    `data` also lets the corpus be another one."""
    debug_nans: bool = False
    """Stop at the first loss or gradient that is not finite, and say in which layer it arises."""


def main() -> None:
    """The command line."""
    keep_freed_memory()
    keep_compiled_programs()
    with exit_on_input_error("flaxclip.train"):
        command = parse(Command, sys.argv[1:], "flaxclip.train", __doc__)
        config = command.config
        join_hosts(config.health.host_timeout_seconds)
        exit_on_signals()
        try:
            with explain_out_of_memory(config):
                train(
                    config,
                    resume_with_changes=command.resume_with_changes,
                    debug_nans=command.debug_nans,
                )
        except (PreemptedError, WorkerError) as stop:
            _leave(stop, PREEMPTED)
        except TrainingFailedError as failure:
            _leave(failure, TRAINING_FAILED)
    if jax.process_index() == 0:
        print(f"done. To measure it:\n  python -m flaxclip.benchmark {config.workdir}")


def _leave(reason: Exception, code: int) -> None:
    print(f"flaxclip.train: {reason}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
