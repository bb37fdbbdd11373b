"""Pretrain CLIP.

    python -m flaxclip.train                                     the built-in data, some minutes
    python -m flaxclip.train EXPERIMENT.py --optim.peak-lr 1e-3
    python -m flaxclip.train EXPERIMENT.py --model ViT-B-16      another architecture

The same command again resumes where the run stopped.
"""

import argparse
import ctypes
import dataclasses
import difflib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from etils import epath
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from flaxclip.checkpoint import CONFIG_FILE, CheckpointWriter
from flaxclip.config import TrainConfig, differing_fields, load_experiment
from flaxclip.config_json import from_json, to_json
from flaxclip.data.loader import load_batches, open_source
from flaxclip.data.source import Source
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.metrics import MetricWriter, Throughput
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.cost import model_cost
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import make_optimizer, make_schedule
from flaxclip.progress import ProgressReport
from flaxclip.sharding import check_batch_divides, join_hosts, make_mesh
from flaxclip.train_state import TrainState, abstract_train_state, init_train_state
from flaxclip.train_step import Metrics, make_train_step


def train(config: TrainConfig) -> None:
    """Run `config` from its workdir's latest checkpoint, or from the start, to its last step.

    Raises:
        InputError: something in `config` cannot be used here; nothing has been written then.
    """
    mesh = make_mesh(config.mesh)
    check_batch_divides(config.batch_size, mesh, config.accumulate)
    source = open_source(config.data, config.model.vision.image_size)
    tx = make_optimizer(config.optim, config.steps)
    claim_workdir(config)
    checkpoints = CheckpointWriter(config.workdir, config.keep_checkpoints)
    start_step = checkpoints.latest_step() or 0
    announce(config, mesh, source, start_step)

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
                checkpoints.save(step, state.variables, _without_variables(state))
        report(*pending)
    writer.close()


def _without_variables(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one update: the backward pass takes twice those of the forward pass."""
    return 3 * config.batch_size * model_cost(config.model).forward_flops


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


@dataclasses.dataclass(frozen=True)
class Command:
    """Pretrain CLIP. The same command again resumes where the run stopped."""

    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")]
    """Python file with get_config(), or the name of one that comes with flaxclip. Its values are
    the defaults of all flags below."""
    model: Annotated[str | None, tyro.conf.arg(metavar="NAME")]
    """Architecture to start from, in place of the experiment's."""
    config: Annotated[TrainConfig, tyro.conf.arg(name="")]


def parse(args: Sequence[str]) -> TrainConfig:
    """The configuration that a command line asks for.

    Flags default to the values of the experiment, so that is looked at first; likewise `--model`,
    whose architecture is what the flags `--model.…` change.

    Raises:
        InputError: no such experiment or model.
        SystemExit: flags that do not exist or do not parse, with code 2; `--help`, with 0.
    """
    experiment = args[0] if args and not args[0].startswith("-") else "quickstart"
    config = load_experiment(experiment)
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--model")
    name = peek.parse_known_args(args)[0].model
    if name is not None:
        config = dataclasses.replace(config, model=variant(name))
    command = tyro.cli(
        Command,
        args=args,
        default=Command(experiment, None, config),
        prog="python -m flaxclip.train",
        # A model's image tower is of the kind that the default has: --model chooses the kind.
        config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
    )
    return command.config


def variant(name: str) -> CLIPConfig:
    """The architecture of that name; raises InputError with those that there are."""
    if name not in VARIANTS:
        close = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.4)
        raise InputError(
            f"unknown model {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
            + f"\nknown: {', '.join(VARIANTS)}"
        )
    return VARIANTS[name]


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
    with exit_on_input_error("flaxclip.train"):
        config = parse(sys.argv[1:])
        join_hosts()
        train(config)
    if jax.process_index() == 0:
        print(f"done. To measure it:\n  python -m flaxclip.benchmark {config.workdir}")


if __name__ == "__main__":
    main()
