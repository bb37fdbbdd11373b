"""The metrics of a run's updates: read one update later, reported, and checked."""

from typing import NoReturn

import jax
from jax.sharding import Mesh

from flaxclip.checkpoint.manager import CheckpointManager
from flaxclip.config import TrainConfig
from flaxclip.data.batch import Batch
from flaxclip.data.order import batch_names
from flaxclip.data.sources.source import Source
from flaxclip.exit_codes import TrainingFailedError
from flaxclip.fine_tuning.lora import merged
from flaxclip.health import ANOMALIES_FILE, LossMonitor, check_replicas
from flaxclip.hosts.coordination import broadcast_from_host_0
from flaxclip.hosts.watchdog import Watchdog
from flaxclip.models.clip import CLIP
from flaxclip.models.find_nonfinite import find_nonfinite
from flaxclip.run.progress import ProgressReport
from flaxclip.run.report import RunReport
from flaxclip.train_state import TrainState
from flaxclip.train_step import Metrics


class StepMonitor:
    """Reads the metrics of each update, and ends a run whose updates are no longer finite.

    The metrics are read after the next update has been dispatched, or on request (`settle`). All
    hosts read the same ones, so they make the same decisions.
    """

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        source: Source,
        report: RunReport,
        progress: ProgressReport,
        watchdog: Watchdog,
    ):
        lengths = config.lengths

        def names(step: int) -> list[str]:
            # The update after which `step` are done is the update of step - 1.
            order = config.data.order
            return batch_names(source, order, config.seed, config.batch_size, step - 1, lengths)

        self._config = config
        self._mesh = mesh
        self._report = report
        self._watchdog = watchdog
        length_of = None if lengths is None else lambda step: lengths.at(step - 1).patches
        self._losses = LossMonitor(config.health, config.workdir, names, progress.warn, length_of)
        self._unread: tuple[int, Metrics] | None = None

    def dispatched(self, step: int, metrics: Metrics) -> None:
        """Read the metrics of the previous update, now that the update of `step` is dispatched."""
        self.settle()
        self._unread = step, metrics

    def settle(self) -> None:
        """Wait until the last update dispatched is done, and check its metrics."""
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        self._watchdog.doing(f"waiting for the devices to finish step {step}")
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._watchdog.step_done()
        self._report.done(step, scalars)
        self._losses.check(step, scalars)

    @property
    def is_skipping(self) -> bool:
        """True if the last update read, whose result a save would hold, was skipped."""
        return self._losses.skipped_in_a_row > 0

    @property
    def must_stop(self) -> bool:
        """True if the last updates read were skipped, as many in a row as a run may have."""
        return self._losses.skipped_in_a_row >= self._config.health.max_skipped

    @property
    def may_have_to_stop(self) -> bool:
        """True if the run must stop in case the update that is not read yet was skipped."""
        return self._losses.skipped_in_a_row + 1 >= self._config.health.max_skipped

    def check_replicas(self, step: int, state: TrainState) -> None:
        """Compare the copies of `state` on different devices, every so many steps.

        Raises:
            TrainingFailedError: they are not the same.
        """
        if step % self._config.health.check_replicas_every == 0:
            check_replicas(state, self._mesh, step)

    def medians(self) -> dict[str, float]:
        """Medians of each metric over the last hundred finite updates."""
        return self._losses.medians()

    def stop(
        self, step: int, state: TrainState, batch: Batch, checkpoints: CheckpointManager
    ) -> NoReturn:
        """Save the state before the skipped updates, and end the run.

        `state` and `batch` are those of `step`, the last skipped update. Skipped updates change
        nothing but the counts of steps, so `state` with these set back is the one before.

        Raises:
            TrainingFailedError: always; it names the layer where `batch` overflows.
        """
        # Op by op, the search for the layer and the arithmetic move numbers to the devices.
        with jax.transfer_guard("allow"):
            self._watchdog.exempt("saving the state before the updates that were skipped")
            skipped = self._losses.skipped_in_a_row
            before = step - skipped
            # All hosts save, or none: what a host sees of shared storage may be late.
            is_saved = broadcast_from_host_0(f"step {before} is saved", checkpoints.holds(before))
            if not is_saved:
                good = state._replace(step=state.step - skipped, skipped=state.skipped - skipped)
                checkpoints.save(before, good.trees, self.medians())
                is_saved = checkpoints.holds(before)
            checkpoints.close()
            self._watchdog.exempt("looking for what is not finite")
            config = self._config
            model = CLIP(config.model, config.compute, config.preprocess)
            params = merged(config.adapters, state.params)
            inputs = batch.images, batch.tokens
            where = find_nonfinite(model, params, state.batch_stats, inputs)
        saved = "is saved" if is_saved else "could not be saved, for which see above"
        raise TrainingFailedError(
            f"the last {skipped} updates, up to step {step}, were not finite; not finite in the "
            f"last: {where}\nstep {before}, before the first of them, {saved}; their examples are "
            f"named in {ANOMALIES_FILE}"
        )
