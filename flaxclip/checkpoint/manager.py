"""Saving a run's states in the background, and keeping those worth keeping."""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from flaxclip.checkpoint.checksum import tree_checksums
from flaxclip.checkpoint.layout import CHECKPOINTS, one_line, saved_steps, sealed_metadata
from flaxclip.errors import InputError
from flaxclip.storage import absolute

_RETRY_SECONDS = 30.0
"""Delay after a save that failed, e.g. on a full disk."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Intervals between saves, and retention of checkpoints. The last step is always saved."""

    every_steps: int = 1000
    every_minutes: float | None = 30.0
    """Also save if the last save began this long ago. If None, steps alone decide."""
    keep: int = 3
    """Latest checkpoints that are kept; older ones are deleted."""
    keep_every: int | None = None
    """Checkpoints of steps that this divides are never deleted. If None, disabled."""
    keep_best: Literal["loss", "image_to_text_accuracy", "text_to_image_accuracy"] | None = None
    """Also keep the checkpoint with the best value of this metric, a median over the last hundred
    steps."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "every_minutes", "keep", "keep_every"):
            value = getattr(self, name)
            least = 0 if name == "every_minutes" else 1
            if value is not None and (value < least or value == 0):
                raise InputError(f"checkpoint.{name} is {value}\nit must be positive")


class CheckpointManager:
    """Saves states in the background, each whole or not at all, and deletes old ones.

    A save that fails is reported through `warn`, counted, and repeated; the run goes on.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        config: CheckpointConfig,
        record: dict[str, Any],
        warn: Callable[[str], None] = print,
        timeout_seconds: float = 300.0,
    ):
        self.failed_saves = 0
        self._stall_seconds = 0.0
        self._workdir = absolute(workdir)
        self._config = config
        self._record = record
        self._warn = warn
        self._saving: tuple[int, Any] | None = None
        self._last_failed = self._error_lingers = False
        self._save_due = self._next_save()
        context = ocp.Context()
        context.asynchronous.timeout_secs = int(timeout_seconds)
        # Each host saves a slice of the arrays that all hold. Slicing compiles a program for each
        # shape and device, which makes the first save block training for longer: so not within one
        # host, nor for small arrays.
        context.array.saving.use_replica_parallel = jax.process_count() > 1
        context.array.saving.min_slice_bytes_for_replica_parallel = 2**16
        self._manager = ocp.training.Checkpointer(
            self._workdir / CHECKPOINTS,
            context=context,
            preservation_policy=_preservation_policy(config),
            cleanup_tmp_directories=True,  # what a killed save has left behind
        )

    def take_stall_seconds(self) -> float:
        """Return for how long saves have blocked the training loop since the last call."""
        seconds, self._stall_seconds = self._stall_seconds, 0.0
        return seconds

    def holds(self, step: int) -> bool:
        """True if the state of `step` is saved; waits for the save that is under way."""
        self._settle(wait=True)
        return step in saved_steps(self._workdir)

    def due(self) -> bool:
        """True if it is time to save by this host's clock, whatever the step."""
        self._settle(wait=False)
        return time.monotonic() >= self._save_due

    def save(self, step: int, trees: dict[str, Any], metrics: dict[str, float]) -> None:
        """Start saving; returns as soon as the arrays may be overwritten.

        Must be called on every host at the same step.
        """
        start = time.perf_counter()
        self._settle(wait=True)
        if self._last_failed:
            self._remove_leftovers()
        self._save_due = self._next_save()
        metadata = sealed_metadata({"run": self._record, "checksums": tree_checksums(trees)})

        def begin() -> Any:
            return self._manager.save_checkpointables_async(
                step, trees, force=True, metrics=metrics, custom_metadata=metadata
            )

        try:
            with jax.transfer_guard("allow"):  # how Orbax moves arrays is its own affair
                try:
                    response = begin()
                except Exception:
                    if not self._error_lingers:
                        raise
                    # What ended the save before: Orbax raises it here once more, and forgets.
                    response = begin()
            self._saving = step, response
        except Exception as error:  # Orbax raises what its storage raises, of many kinds
            self._failed(step, error)
        self._error_lingers = False
        self._stall_seconds += time.perf_counter() - start

    def close(self) -> bool:
        """Wait for the save that is under way; returns whether the last one succeeded."""
        start = time.perf_counter()
        self._settle(wait=True)
        if self.failed_saves:
            self._remove_leftovers()
        self._stall_seconds += time.perf_counter() - start
        return not self._last_failed

    def finish(self, step: int) -> None:
        """Wait until `step`, the last one to save, is saved.

        Raises:
            InputError: it could not be saved.
        """
        if not self.close():
            raise InputError(
                f"step {step} could not be saved into {self._workdir}\n"
                "the message above says why; when that is fixed, the same command goes on"
            )

    def _settle(self, wait: bool) -> None:
        """Record the result of the save under way, if it has ended."""
        if self._saving is None:
            return
        step, response = self._saving
        try:
            response.result(timeout=None if wait else 0)
            self._last_failed = False
        except Exception as error:
            # A timeout of this waiting has no text; one that has ended the save says of what.
            if isinstance(error, TimeoutError) and not error.args and not wait:
                return
            self._error_lingers = True
            self._failed(step, error)
        self._saving = None

    def _failed(self, step: int, error: Exception) -> None:
        self.failed_saves += 1
        self._last_failed = True
        self._saving = None
        self._save_due = time.monotonic() + _RETRY_SECONDS
        kept = max(saved_steps(self._workdir), default="none")
        self._warn(
            f"saving step {step} failed: {one_line(error)}\n"
            f"  the last whole checkpoint is that of step {kept}; "
            f"the run goes on and tries again in {_RETRY_SECONDS:.0f} s"
        )
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Delete the remains of failed saves, which take room on a full disk."""
        if jax.process_index() == 0:
            for leftover in (self._workdir / CHECKPOINTS).glob("*tmp*"):
                with contextlib.suppress(OSError):  # still being written: once more later, then
                    leftover.rmtree(missing_ok=True)

    def _next_save(self) -> float:
        minutes = self._config.every_minutes
        return float("inf") if minutes is None else time.monotonic() + 60 * minutes


def _preservation_policy(config: CheckpointConfig) -> Any:
    policies = ocp.training.preservation_policies
    kept = [policies.LatestN(config.keep)]
    if config.keep_every is not None:
        kept.append(policies.EveryNSteps(config.keep_every))
    if (metric := config.keep_best) is not None:
        kept.append(
            policies.BestN(
                get_metric_fn=lambda metrics: metrics[metric],
                reverse=metric == "loss",  # Orbax keeps the end of the sorted list
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    return policies.AnyPreservationPolicy(kept)
