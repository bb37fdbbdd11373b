"""Pretrain CLIP.

    python -m flaxclip.train                                     the built-in data, some minutes
    python -m flaxclip.train EXPERIMENT.py --optim.peak-lr 1e-3
    python -m flaxclip.train EXPERIMENT.py --model ViT-B-16      another architecture

The same command again resumes where the run stopped.
"""

import ctypes
import dataclasses
import sys
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from flaxclip.checkpoint import CONFIG_FILE, CheckpointWriter
from flaxclip.command_line import RunCommand, parse
from flaxclip.config import TrainConfig, differing_fields
from flaxclip.config_json import from_json, to_json
from flaxclip.data.loader import load_batches, open_source
from flaxclip.data.source import Source
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.metrics import MetricWriter, Throughput
from flaxclip.models.cost import model_cost
from flaxclip.optim import make_optimizer, make_schedule
from flaxclip.progress import ProgressReport
from flaxclip.sharding import check_batch_divides, join_hosts, make_mesh
from flaxclip.startup import StartupClock, keep_compiled_programs
from flaxclip.train_state import TrainState, abstract_train_state, init_train_state
from flaxclip.train_step import Metrics, make_train_step


def train(config: TrainConfig) -> None:
    """Run `config` from its workdir's latest checkpoint, or from the start, to its last step.

    Raises:
        InputError: something in `config` cannot be used here; nothing has been written then.
    """
    clock = StartupClock()
    mesh = make_mesh(config.mesh)
    check_batch_divides(config.batch_size, mesh, config.accumulate)
    source = open_source(config.data, config.model.vision.image_size)
    tx = make_optimizer(config.optim, config.steps)
    claim_workdir(config)
    checkpoints = CheckpointWriter(config.workdir, config.keep_checkpoints)
    start_step = checkpoints.latest_step() or 0
    announce(config, mesh, source, start_step)
    clock.finished("data and checkpoints")

    ema = config.optim.ema_decay is not None
    with jax.set_mesh(mesh):
        if start_step == 0:
            state = init_train_state(jax.random.key(config.seed), config.model, tx, mesh, ema)
        elif start_step < config.steps:
            like = abstract_train_state(config.model, tx, mesh, ema)
            saved = checkpoints.restore(start_step, like.variables, _without_variables(like))
            training = saved.pop("training")
            state = TrainState(**({"batch_stats": {}, "ema": {}} | saved | training))
        else:
            return
        clock.finished("state")
        run_steps(config, mesh, source, state, start_step, checkpoints, clock)
    checkpoints.close()


def run_steps(
    config: TrainConfig,
    mesh: Mesh,
    source: Source,
    state: TrainState,
    start_step: int,
    checkpoints: CheckpointWriter,
    clock: StartupClock,
) -> None:
    """The loop, in an order that keeps the devices busy.

    A report reads the numbers of a step only after the next one has been dispatched, and batches
    arrive on the devices two steps ahead.
    """
    tx = make_optimizer(config.optim, config.steps)
    train_step = make_train_step(config, tx, mesh, state)
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
            is_first = step == start_step + 1
            if is_first:
                clock.finished("first batch")
            state, metrics = train_step(state, loaded.batch)
            if is_first:
                clock.finished("compilation")
                jax.block_until_ready(metrics)
                clock.finished("step")
                progress.say(clock.summary())
            progress.advance(step)
            if pending is not None:
                report(*pending)
                pending = None
            meter.waited_for_data(loaded.wait_seconds)
            truncated += loaded.truncated
            replaced += len(loaded.replaced)
            for record in loaded.replaced:
                progress.warn(f"step {step}: unreadable record, replaced by another: {record}")
            if step % config.log_every == 0 or is_first or step == config.steps:
                pending = step, metrics
            if step % config.checkpoint_every == 0 or step == config.steps:
                checkpoints.save(step, state.variables, _without_variables(state))
        report(*pending)
    writer.close()


def _without_variables(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one update."""
    return config.batch_size * model_cost(config.model).training_flops


def claim_workdir(config: TrainConfig) -> None:
    """Write `config.json` into the workdir, or check that the one there is of the same run.

    Raises:
        InputError: the workdir cannot be written, or belongs to a run with another configuration.
    """
    path = epath.Path(config.workdir) / CONFIG_FILE
    try:
        if path.exists():
            theirs = from_json(TrainConfig, path.read_text(), path)
            if differing := differing_fields(config, theirs):
                raise InputError(
                    "\n".join(
                        [
                            f"{config.workdir} holds a run with another configuration",
                            *differing,
                            "use another --workdir, or the configuration it was started with",
                        ]
                    )
                )
        elif jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            # By a rename, so that other hosts see no file or all of it.
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(to_json(config))
            unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write into workdir {config.workdir}: {error.strerror or error}\n"
            "name a folder that can be created and written with --workdir"
        ) from None


def announce(config: TrainConfig, mesh: Mesh, source: Source, start_step: int) -> None:
    """What is about to run, in a few lines, before anything slow happens."""
    if jax.process_index() != 0:
        return
    size = model_cost(config.model).parameters
    c = config.model
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    seen = config.steps * config.batch_size
    lines = {
        "model": f"{size / 1e6:.1f} M parameters, "
        f"{c.vision.image_size} px in patches of {c.vision.patch_size}, "
        f"image {c.vision.layers} x {c.vision.width}, text {c.text.layers} x {c.text.width}, "
        f"{c.dtype} activations",
        "data": f"{' '.join(config.data.path)}: {len(source):,} pairs, "
        f"{seen:,} seen in the run ({seen / len(source):.3g} epochs)",
        "batch": f"{config.batch_size:,} pairs, {step_flops(config) / 1e12:.3g} TFLOP a step",
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} host(s), mesh {axes}",
        "workdir": config.workdir,
        "start": f"step {start_step} of {config.steps}"
        + ("" if start_step < config.steps else ": this run is finished"),
    }
    for name, text in lines.items():
        print(f"{name:8} {text}", flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command(RunCommand):
    """Pretrain CLIP. The same command again resumes where the run stopped."""


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the next step.

    On the CPU a step's buffers come from malloc. Given back to the kernel after each step, their
    pages would be zeroed anew for the next: a quarter of the time of a small model's step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            for parameter, value in (
                (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: keep up to 2 GiB at the top of the heap
                (-4, 0),  # M_MMAP_MAX: no mappings of their own for large blocks
                (-8, 1),  # M_ARENA_MAX: one heap, since those of threads cannot grow large
            ):
                mallopt(parameter, value)


def main() -> None:
    """The command line."""
    keep_freed_memory()
    keep_compiled_programs()
    with exit_on_input_error("flaxclip.train"):
        config = parse(Command, sys.argv[1:], "flaxclip.train").config
        join_hosts()
        train(config)
    if jax.process_index() == 0:
        print(f"done. To measure it:\n  python -m flaxclip.benchmark {config.workdir}")


if __name__ == "__main__":
    main()
