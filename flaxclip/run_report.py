"""What the training loop says of itself: metric files, the terminal, and how much went wrong."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from flaxclip.checkpoint_manager import CheckpointManager
from flaxclip.config import TrainConfig
from flaxclip.data.loader import LoadedBatch
from flaxclip.data.replacements import Replacements
from flaxclip.data.source import Source
from flaxclip.metrics import MetricWriter, Throughput
from flaxclip.models.cost import model_cost
from flaxclip.optim import make_schedule
from flaxclip.progress import ProgressReport


class RunReport:
    """Gathers what is to be reported between two reports, and reports it."""

    def __init__(
        self,
        config: TrainConfig,
        start_step: int,
        progress: ProgressReport,
        checkpoints: CheckpointManager,
    ):
        self._config = config
        self._progress = progress
        self._checkpoints = checkpoints
        self._first_step = start_step + 1
        self._meter = Throughput(start_step, config.batch_size, step_flops(config), jax.devices())
        self._learning_rate = make_schedule(config.optim, config.steps)
        self._writer = MetricWriter(config.workdir, start_step)
        self._truncated, self._replaced = 0, Replacements()  # on this host

    def loaded(self, step: int, batch: LoadedBatch) -> None:
        """The batch of `step` has been taken; says which of its records were unreadable."""
        self._progress.advance(step)
        self._meter.waited_for_data(batch.wait_seconds)
        self._truncated += batch.truncated
        for line in self._replaced.add(step, batch.replaced):
            self._progress.warn(line)

    def done(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` is done; every `log_every`-th is reported. Every host must call this."""
        steps = self._config.steps
        if step % self._config.log_every and step not in (self._first_step, steps):
            return
        for line in self._replaced.recent():
            self._progress.warn(line)
        rates = self._meter.lap(step)
        stall, self._checkpoints.stall_seconds = self._checkpoints.stall_seconds, 0.0
        on_hosts = process_allgather(
            np.array([[self._truncated, self._replaced.total, self._checkpoints.failed_saves]]),
            tiled=True,
        )
        truncated, replaced, failed_saves = (int(count) for count in on_hosts.sum(axis=0))
        scalars = dict(metrics) | {
            "learning_rate": float(self._learning_rate(step - 1)),
            **rates,
            "save_stall_seconds": stall,
            "truncated_captions": truncated,
            "replaced_records": replaced,
            "failed_saves": failed_saves,
        }
        self._writer.write(step, scalars)
        seconds_left = (steps - step) * self._config.batch_size / rates["images_per_second"]
        self._progress.report(step, scalars, seconds_left)

    def close(self) -> None:
        """Flush and close the files; say how many records of this host were unreadable."""
        for line in self._replaced.summary():
            self._progress.warn(line)
        self._writer.close()


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one update."""
    return config.batch_size * model_cost(config.model, config.kept_patches).training_flops


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
        "data": f"{config.data.corpora}: {len(source):,} pairs, "
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
