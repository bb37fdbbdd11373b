"""Reports of the training loop: metric files, the terminal, and counts of faults."""

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from flaxclip.checkpoint.manager import CheckpointManager
from flaxclip.config import TrainConfig
from flaxclip.data.device_feed import LoadedBatch
from flaxclip.data.order import describe_storage_order, repeated_in_batches
from flaxclip.data.sources.source import Source, reads_remotely
from flaxclip.data.storage.repeated_requests import Counts
from flaxclip.errors import InputError
from flaxclip.losses.pairs import choose_implementation
from flaxclip.metrics import MetricWriter, Throughput
from flaxclip.models.cost import model_cost
from flaxclip.run.images import RunImages
from flaxclip.run.process import StartupClock
from flaxclip.run.progress import ProgressReport
from flaxclip.train_state import TrainState, bytes_per_device
from flaxclip.train_step import Metrics, step_flops
from flaxclip.xla_errors import is_out_of_memory

_NAMED_EXAMPLES = 20  # of the unreadable; with more, a log would hold little else
_NAMED_SHARDS = 10  # in a summary of them


class RunReport:
    """Context manager around the training loop: collects and reports its metrics."""

    def __init__(
        self,
        config: TrainConfig,
        source: Source,
        mesh: Mesh,
        start_step: int,
        progress: ProgressReport,
        checkpoints: CheckpointManager,
        clock: StartupClock,
    ):
        self._config = config
        self._progress = progress
        self._checkpoints = checkpoints
        self._clock = clock
        self._first_step = start_step + 1
        self._meter = Throughput(start_step, config.batch_size, step_flops(config), jax.devices())
        self._writer = MetricWriter(
            config.workdir, start_step, config.wandb, dataclasses.asdict(config), progress.warn
        )
        self._images = RunImages(config, source, mesh)
        self._truncated, self._replaced = 0, Replacements()  # on this host
        self._reads = StorageReads(start_step) if reads_remotely(source) else None
        self._latest_reads = Counts()

    def __enter__(self) -> "RunReport":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._progress.__exit__(*error)

    def dispatching(self, step: int) -> None:
        """Note that the batch of `step` is loaded, and that its update comes next."""
        if step == self._first_step:
            self._clock.finished("first batch")

    def dispatched(self, step: int, batch: LoadedBatch, metrics: Metrics) -> None:
        """Note that the update is dispatched, and report the unreadable examples of its batch.

        Waits for the first update, to report the time of the start.
        """
        if step == self._first_step:
            jax.block_until_ready(metrics)
            self._clock.finished("step")
            self._progress.say(self._clock.summary())
            if memory := peak_memory(jax.local_devices()[0].memory_stats()):
                self._progress.say(memory)
        self._progress.advance(step)
        self._meter.waited_for_data(batch.wait_seconds)
        self._truncated += batch.truncated
        self._latest_reads = batch.reads
        for line in self._replaced.add(step, batch.replaced):
            self._progress.warn(line)

    def done(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note that `step` is done; every `log_every`-th is reported. Every host must call this."""
        steps = self._config.steps
        if step % self._config.log_every and step not in (self._first_step, steps):
            return
        for line in self._replaced.recent():
            self._progress.warn(line)
        rates = self._meter.lap(step)
        on_hosts = process_allgather(
            np.array([[self._truncated, self._replaced.total, self._checkpoints.failed_saves]]),
            tiled=True,
        )
        truncated, replaced, failed_saves = (int(count) for count in on_hosts.sum(axis=0))
        scalars = dict(metrics) | {
            **rates,
            "save_stall_seconds": self._checkpoints.take_stall_seconds(),
            "truncated_captions": truncated,
            "replaced_records": replaced,
            "failed_saves": failed_saves,
            **({} if self._reads is None else self._reads.lap(step, self._latest_reads)),
        }
        self._writer.write(step, scalars)
        speed = rates["images_per_second"]
        assert speed is not None, "only the MFU may be unknown"
        seconds_left = (steps - step) * self._config.batch_size / speed
        self._progress.report(step, scalars, seconds_left)

    def images(self, step: int, state: TrainState) -> None:
        """Log images of the model's view of a few pairs after `step`. Every host must call this."""
        if self._config.shown_pairs:
            self._writer.write_images(step, self._images.draw(state))

    def close(self) -> None:
        """Flush and close the files; report the number of unreadable examples of this host."""
        for line in self._replaced.summary():
            self._progress.warn(line)
        self._writer.close()


class StorageReads:
    """What the hosts ask of object storage, a step."""

    def __init__(self, start_step: int) -> None:
        self._step, self._before = start_step, Counts()

    def lap(self, step: int, reads: Counts) -> dict[str, float]:
        """Sums over all hosts since the last call, divided by the steps since then.

        `reads` are those of this host since loading began. Every host must call this.
        """
        steps, counts = step - self._step, reads.since(self._before)
        self._step, self._before = step, reads
        # A step at a time, since JAX gathers 32 bits: a host's bytes in all have more.
        means = process_allgather(np.array([counts], np.float32) / steps, tiled=True).sum(axis=0)
        return dict(
            zip((f"storage_{name}" for name in Counts._fields), means.tolist(), strict=True)
        )


class Replacements:
    """Unreadable examples that were replaced by others, counted by shard, on one host of a run.

    An example that is drawn again in a later epoch counts again.
    """

    def __init__(self) -> None:
        self.total = 0
        self._by_shard: collections.Counter[str] = collections.Counter()
        self._unreported: collections.Counter[str] = collections.Counter()

    def add(self, step: int, examples: Iterable[str]) -> list[str]:
        """Count `examples` (name, colon, reason); returns lines to log immediately."""
        lines = []
        for example in examples:
            shard = _shard(example)
            self.total += 1
            self._by_shard[shard] += 1
            if self.total <= _NAMED_EXAMPLES:
                lines.append(f"step {step}: unreadable example, replaced by another: {example}")
            else:
                self._unreported[shard] += 1
            if self.total == _NAMED_EXAMPLES:
                lines.append("further unreadable examples are only counted, by shard")
        return lines

    def recent(self) -> list[str]:
        """Lines to report on those that `add` has not named since the last call."""
        unreported, self._unreported = self._unreported, collections.Counter()
        if not unreported:
            return []
        return [f"{unreported.total():,} more unreadable examples replaced: {_listed(unreported)}"]

    def summary(self) -> list[str]:
        """Lines to report at the end of the run."""
        if not self.total:
            return []
        return [f"{self.total:,} unreadable examples were replaced: {_listed(self._by_shard)}"]


def _shard(example: str) -> str:
    """The shard or folder in an example's name: see `Source.name`."""
    name = example.split(": ", 1)[0]
    return name.rpartition("/")[0] or name


def _listed(counts: collections.Counter[str]) -> str:
    named = [f"{shard} {count:,}" for shard, count in counts.most_common(_NAMED_SHARDS)]
    others = len(counts) - len(named)
    return ", ".join(named) + (f", and {others:,} other shards" if others else "")


def announce(
    config: TrainConfig, mesh: Mesh, source: Source, state: TrainState, start_step: int
) -> None:
    """Print a summary of the run before anything slow happens; `state` may be abstract."""
    if jax.process_index() != 0:
        return
    c, optim = config.model, config.optim
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    seen = config.steps * config.batch_size
    flops = step_flops(config)
    every = f"every {config.checkpoint.every_steps:,} steps"
    if config.checkpoint.every_minutes is not None:
        every += f" and every {config.checkpoint.every_minutes:g} minutes"
    implementation = choose_implementation(config.loss_form, config.batch_size, mesh.size)
    parts = "" if config.accumulate == 1 else f" in {config.accumulate} parts"
    start = f"at step {start_step:,}, where its last checkpoint is" if start_step else "at step 0"
    if start_step >= config.steps:
        start = f"not at all: step {start_step:,} of {config.steps:,}: this run is finished"
    order = describe_storage_order(source, config.data.order, config.batch_size)
    lines = {
        "model": f"{model_cost(c).parameters / 1e6:.1f} M parameters, "
        f"{c.vision.image_size} px in patches of {c.vision.patch_size}, "
        f"image {c.vision.layers} x {c.vision.width}, text {c.text.layers} x {c.text.width}, "
        f"{config.compute.dtype} activations",
        "data": f"{config.data.corpora}: {len(source):,} pairs, "
        f"{seen:,} seen in the run ({seen / len(source):.3g} epochs)",
        "order": "; ".join(order) or None,
        "batch": f"{config.batch_size:,} pairs{parts}, {config.loss} loss over all of them, "
        f"{implementation}",
        "optim": f"{optim.optimizer}, rate {optim.peak_lr:g} after {optim.warmup_steps:,} steps, "
        f"then {optim.schedule}; weight decay {optim.weight_decay:g}",
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} host(s), mesh {axes}",
        "memory": f"{_mebibytes(bytes_per_device(state))} of state a device{_memory_limit()}, "
        "activations beside it",
        "work": f"{config.steps:,} steps of {flops / 1e12:.3g} TFLOP, "
        f"{config.steps * flops / 1e18:.3g} EFLOP in all; saved {every}",
        "workdir": config.workdir,
        "start": start,
    }
    for name, text in lines.items():
        if text is not None:
            print(f"{name:8} {text}", flush=True)
    for text in repeated_in_batches(source, config.batch_size):
        print(f"warning  {text}", flush=True)


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _memory_limit() -> str:
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return "" if limit is None else f" of {_mebibytes(limit)}"


def peak_memory(stats: Mapping[str, int] | None) -> str | None:
    """Peak memory of a device, from its `memory_stats()`; None if it keeps none."""
    if not stats or "peak_bytes_in_use" not in stats:
        return None
    text = f"memory of a device at the peak: {_mebibytes(stats['peak_bytes_in_use'])}"
    return text + (f" of {_mebibytes(stats['bytes_limit'])}" if "bytes_limit" in stats else "")


@contextlib.contextmanager
def explain_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turn XLA's error about too little memory into an `InputError` with remedies."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"the devices' memory is too small for batch size {config.batch_size:,}\n"
            f"{str(error).splitlines()[0]}\n"
            f"in order of cost: --compute.remat full (now {config.compute.remat or 'names'}), "
            f"--accumulate {2 * config.accumulate}, a larger --mesh.fsdp (now {config.mesh.fsdp}), "
            "or a smaller --batch-size; python -m flaxclip.plan says beforehand what fits"
        ) from error
