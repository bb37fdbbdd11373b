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
from collections.abc import Iterable, Sequence

if __name__ == "__main__":
    print("importing JAX, Flax, Orbax", flush=True)  # some seconds, in which nothing else is seen

import jax

from flaxclip.checkpoint.manager import CheckpointManager
from flaxclip.checkpoint.restore import steps_on_host_0
from flaxclip.compile_cache import keep_compiled_programs
from flaxclip.config import TrainConfig
from flaxclip.data.device_feed import LoadedBatch, until_lost
from flaxclip.data.loader import load_batches
from flaxclip.errors import exit_on_input_error
from flaxclip.exit_codes import PreemptedError, exit_with_code
from flaxclip.hosts.connections import connect_hosts, join_hosts
from flaxclip.hosts.coordination import Requests
from flaxclip.hosts.stop_signals import StopSignals, exit_on_signals
from flaxclip.hosts.watchdog import Watchdog
from flaxclip.malloc import keep_freed_memory
from flaxclip.planning.advice import refusal_explained
from flaxclip.planning.compute_choice import choose_compute
from flaxclip.run.announcement import announce, compiling, explain_out_of_memory
from flaxclip.run.command_line import TrainCommand, parse
from flaxclip.run.parts import StartingState, open_parts, restore_or_init
from flaxclip.run.process import (
    StartupClock,
    no_hidden_transfers,
)
from flaxclip.run.progress import ProgressReport
from flaxclip.run.provenance import run_record
from flaxclip.run.report import RunReport
from flaxclip.run.step_monitor import StepMonitor
from flaxclip.run.step_profile import StepProfile, parse_profile_steps
from flaxclip.run.workdir import claim_workdir, hold_workdir
from flaxclip.standard_streams import say
from flaxclip.step_shapes import step_shapes
from flaxclip.train_step import TrainStep, compile_train_step


def train(
    config: TrainConfig, resume_with_changes: Sequence[str] = (), profile_steps: str | None = None
) -> None:
    """Run `config` to its last step, from its workdir's latest intact checkpoint or from the start.

    `config` may differ from the run in the workdir in the fields `resume_with_changes`. The updates
    that `profile_steps` names (`parse_profile_steps`) are profiled.

    Raises:
        InputError: something given cannot be used here; nothing has been written then.
        PreemptedError: a signal has stopped the run; its state is saved.
        TrainingFailedError: the numbers went bad.
    """
    clock = StartupClock()
    profiled = parse_profile_steps(profile_steps, config.steps)
    parts = open_parts(config)
    mesh, source, tx, schedule, abstract_state, _, teachers, stored = parts
    timeout = config.health.host_timeout_seconds
    with hold_workdir(config.workdir), jax.set_mesh(mesh), Watchdog(timeout) as watchdog:
        claim_workdir(config, resume_with_changes)
        saved_step = max(steps_on_host_0(config.workdir, "the start"), default=0)
        announce(config, mesh, source, abstract_state, saved_step)
        if saved_step >= config.steps:
            return
        clock.finished("data and checkpoints")
        progress = ProgressReport(saved_step, config.steps)
        record = run_record(config, source)
        shapes = step_shapes(config)
        connect_hosts(mesh, [shape.pairs for shape in shapes])
        config = choose_compute(config, tx, schedule, mesh, stored)
        start = restore_or_init(config, parts, record, resume_with_changes, progress)
        clock.finished("state")
        checkpoints = CheckpointManager(
            config.workdir, config.checkpoint, start.record, progress.warn, timeout
        )
        batches = load_batches(
            config.data, config.spec, source, mesh, batch_size=config.batch_size,
            seed=config.seed, start_step=start.step, stop_step=config.steps,
            teachers=[teacher.spec for teacher in teachers], lengths=config.lengths,
        )  # fmt: skip
        with contextlib.closing(batches):  # its processes start while the step is compiled
            progress.say(compiling(shapes))
            with refusal_explained(config, mesh):
                train_step = compile_train_step(config, tx, schedule, mesh, start.state, stored)
            clock.finished("compilation")
            report = RunReport(config, source, mesh, start.step, progress, checkpoints, clock)
            monitor = StepMonitor(config, mesh, source, report, progress, watchdog)
            profile = StepProfile(profiled, start.step, config.workdir, progress, watchdog)
            run_steps(
                config, start, train_step, batches, checkpoints, report, monitor, profile, watchdog
            )


def run_steps(
    config: TrainConfig,
    start: StartingState,
    train_step: TrainStep,
    batches: Iterable[LoadedBatch],
    checkpoints: CheckpointManager,
    report: RunReport,
    monitor: StepMonitor,
    profile: StepProfile,
    watchdog: Watchdog,
) -> None:
    """Run the training loop. The order of its parts matters.

    1. A batch is taken. It is on the devices already: a thread puts batches there, two ahead.
    2. The update is dispatched before all else: the host does its work while the devices compute.
       It donates the state, so that all readers of the state come after it and read the new one.
    3. The metrics of the previous update are read: those of this one would have to be waited for.
       All hosts read the same metrics, so they make the same decisions.
    4. The hosts agree on requests. Not before the dispatch: another host may be an update ahead,
       and wait for this one in the collectives of that update.
    5. Before a save, or if this update may end the run, its own metrics are read too: a state is
       checked before it is saved, and the batch to blame is still there.
    6. Copies of the state are compared before it is saved: if they differ, it must not be.
    7. Images are drawn last, when the save of the state is under way.
    """
    state, step, last, save_wanted = start.state, start.step, False, False
    taught_by = (start.teachers,) if start.teachers else ()
    lost: list[PreemptedError] = []
    with (
        report,
        profile,
        Requests(config.health.host_timeout_seconds) as requests,
        StopSignals(requests),
        no_hidden_transfers(),
    ):
        profile.reached(start.step, state)
        for step, loaded in enumerate(until_lost(batches, lost), start.step + 1):
            last = step == config.steps
            report.dispatching(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, loaded.batch, *taught_by)
            profile.reached(step, state)
            report.dispatched(step, loaded, metrics)
            monitor.dispatched(step, metrics)
            if checkpoints.due() and jax.process_index() == 0:
                requests.make("save")
            request = requests.agreed(step, last)
            save_wanted |= last or request is not None or step % config.checkpoint.every_steps == 0
            if save_wanted or monitor.may_have_to_stop:
                monitor.settle()
            if monitor.must_stop:
                monitor.stop(step, state, loaded.batch, checkpoints)
            monitor.check_replicas(step, state)
            # While updates are skipped, the latest checkpoint stays the moment before.
            if save_wanted and (not monitor.is_skipping or last or request == "stop"):
                watchdog.exempt(f"saving step {step}")
                checkpoints.save(step, state.trees, monitor.medians())
                save_wanted = False
                if request != "stop":
                    report.images(step, state)
            if request == "stop":
                break
            watchdog.doing(f"waiting for the data of step {step + 1}")
        if lost:
            monitor.settle()
            if step == start.step or monitor.is_skipping:
                raise lost[0]
            watchdog.exempt(f"saving step {step}")
            if not checkpoints.holds(step):
                checkpoints.save(step, state.trees, monitor.medians())
        watchdog.exempt("waiting for the last save")
        checkpoints.finish(step)
    if lost:
        raise PreemptedError(f"{lost[0]}\nstep {step} is saved") from lost[0]
    if not last:
        raise PreemptedError(f"stopped after step {step}, which is saved; the same command goes on")


def main() -> None:
    """The command line."""
    keep_freed_memory()
    keep_compiled_programs()
    with exit_on_input_error("flaxclip.train"), exit_with_code("flaxclip.train"):
        command = parse(TrainCommand, sys.argv[1:], "flaxclip.train", __doc__)
        config = command.config
        if command.debug_nans:
            health = dataclasses.replace(config.health, max_skipped=1)
            config = dataclasses.replace(config, health=health)
        join_hosts(config.health.host_timeout_seconds)
        exit_on_signals()
        with explain_out_of_memory(config):
            train(config, command.resume_with_changes, command.profile_steps)
        if jax.process_index() == 0:
            say(
                f"done. To measure it:\n  python -m flaxclip.benchmark {config.workdir}", sys.stdout
            )


if __name__ == "__main__":
    main()
