"""Reports of the training loop: metric files, the terminal, and counts of faults."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

from flaxclip.checkpoint.manager import CheckpointManager
from flaxclip.config import TrainConfig
from flaxclip.data.device_feed import LoadedBatch
from flaxclip.data.sources.source import Source, reads_remotely
from flaxclip.data.storage.repeated_requests import Counts
from flaxclip.metrics import MetricWriter, Throughput
from flaxclip.run.announcement import peak_memory
from flaxclip.run.images import RunImages
from flaxclip.run.process import StartupClock
from flaxclip.run.progress import ProgressReport
from flaxclip.run.work_done import WorkDone
from flaxclip.step_shapes import pairs_until
from flaxclip.teachers.weights import teacher_flops
from flaxclip.train_state import TrainState
from flaxclip.train_step import Metrics, step_flops

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
        self._meter = Throughput(start_step, jax.devices())
        self._work = WorkDone(config, start_step)
        self._pairs_in_all = pairs_until(config, config.steps)
        self._of_teachers = {}
        if config.teacher:
            self._of_teachers["teacher_flops_share"] = teacher_flops(config) / step_flops(config)
        self._writer = MetricWriter(
            config.workdir, start_step, config.wandb, dataclasses.asdict(config), progress.warn
        )
        self._images = RunImages(config, source, mesh)
        self._truncated = self._truncated_for_teachers = 0  # on this host
        self._replaced = Replacements()
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
        self._work.loaded(step, batch.patches)
        self._truncated += batch.truncated
        self._truncated_for_teachers += batch.truncated_for_teachers
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
        work = self._work.lap(step)
        rates = self._meter.lap(step, work.pairs, work.flops)
        counts = (
            *(self._truncated, self._truncated_for_teachers, self._replaced.total),
            self._checkpoints.failed_saves,
        )
        on_hosts = process_allgather(np.array([counts]), tiled=True)
        truncated, for_teachers, replaced, failed_saves = map(int, on_hosts.sum(axis=0))
        scalars = dict(metrics) | {
            **rates,
            **self._of_length(step, work.padding),
            "save_stall_seconds": self._checkpoints.take_stall_seconds(),
            "truncated_captions": truncated,
            **({"teacher_truncated_captions": for_teachers} if self._config.teacher else {}),
            "replaced_records": replaced,
            "failed_saves": failed_saves,
            **self._of_teachers,
            **({} if self._reads is None else self._reads.lap(step, self._latest_reads)),
        }
        self._writer.write(step, scalars)
        speed = rates["images_per_second"]
        assert speed is not None, "only the MFU may be unknown"
        pairs_left = self._pairs_in_all - pairs_until(self._config, step)
        self._progress.report(step, scalars, pairs_left / speed)

    def _of_length(self, step: int, padding: float | None) -> dict[str, float | None]:
        """At native aspect ratio, the shape of this step, and the padding since the last report."""
        lengths = self._config.lengths
        if lengths is None:
            return {}
        length = lengths.at(step - 1)
        return {
            "sequence_length": length.patches,
            "step_pairs": length.pairs,
            "padding_share": padding,
        }

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
