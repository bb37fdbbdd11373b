"""Detection of losses that are not finite, or that jump."""

import collections
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from flaxclip.checkpoint.checksum import diverged_replicas
from flaxclip.errors import InputError
from flaxclip.exit_codes import TrainingFailedError
from flaxclip.storage import append_text

ANOMALIES_FILE = "anomalies.jsonl"

_WINDOW = 100  # losses that the running median is of
_LEAST = 20  # of them before anything is called a spike
_NAMED = 3  # examples named on the terminal; the file has all


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """Thresholds at which a run warns, or stops itself."""

    max_skipped: int = 10
    """Updates in a row that may be skipped because the loss or a gradient is not finite."""
    spike_deviations: float = 10.0
    """Running deviations above the running median from which a loss is a spike."""
    check_replicas_every: int = 1000
    """Steps between comparisons of the copies of the state on different devices."""
    host_timeout_seconds: float = 300.0
    """Seconds after which the others stop if a host is dead or hangs."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise InputError(
                    f"health.{field.name} is {getattr(self, field.name)}\nit must be positive"
                )


class LossMonitor:
    """Checks the metrics of every step, in order; all hosts have the same metrics, and so agree."""

    def __init__(
        self,
        config: HealthConfig,
        workdir: epath.PathLike,
        batch_names: Callable[[int], Sequence[str]],
        warn: Callable[[str], None],
        length_of: Callable[[int], int] | None = None,
    ):
        """`batch_names` gives the names of the examples that a step has learned from, and
        `length_of` the length of its images, if steps have several: losses of batches of different
        numbers of pairs are not alike, and compared with those of the same alone.
        """
        self._config = config
        self._file = epath.Path(workdir) / ANOMALIES_FILE
        self._batch_names = batch_names
        self._warn = warn
        self._length_of = length_of or (lambda _: 0)
        self._losses: dict[int, collections.deque[float]] = collections.defaultdict(
            lambda: collections.deque(maxlen=_WINDOW)
        )
        self._recent: dict[str, collections.deque[float]] = collections.defaultdict(
            lambda: collections.deque(maxlen=_WINDOW)
        )
        self.skipped_in_a_row = 0
        """Updates up to the last one checked that were not finite."""

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn about a bad `step`, and note the examples of its batch."""
        loss, grad_norm = metrics["loss"], metrics["grad_norm"]
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self.skipped_in_a_row += 1
            what = f"update skipped: loss {loss:.4g}, gradient norm {grad_norm:.4g}"
            self._note(step, what, metrics)
            return
        self.skipped_in_a_row = 0
        alike = self._losses[self._length_of(step)]
        if (limit := self._spike_limit(alike)) is not None and loss > limit:
            median = statistics.median(alike)
            self._note(step, f"loss spike: {loss:.4g} where the median is {median:.4g}", metrics)
        alike.append(loss)
        for name, value in metrics.items():
            self._recent[name].append(value)

    def medians(self) -> dict[str, float]:
        """Medians of each metric over the last hundred finite steps."""
        return {name: statistics.median(values) for name, values in self._recent.items()}

    def _spike_limit(self, losses: Collection[float]) -> float | None:
        if len(losses) < _LEAST:
            return None
        median = statistics.median(losses)
        # The median absolute deviation, scaled to the standard deviation of a normal distribution
        # (Rousseeuw and Croux 1993): spikes themselves hardly move it. A loss that stands still has
        # none, so a hundredth of the median is the least.
        deviation = 1.4826 * statistics.median(abs(loss - median) for loss in losses)
        return median + self._config.spike_deviations * max(deviation, 0.01 * abs(median))

    def _note(self, step: int, what: str, metrics: Mapping[str, float]) -> None:
        if jax.process_index() != 0:
            return
        names = list(self._batch_names(step))
        first = ", ".join(names[:_NAMED])
        self._warn(f"step {step}: {what}\n  its batch: {first}, ... (all in {self._file})")
        line = {"step": step, "what": what, "records": names}
        line |= {name: str(value) for name, value in metrics.items()}
        try:
            append_text(self._file, json.dumps(line) + "\n")
        except OSError as error:  # e.g. a full disk, which must not stop the run
            self._warn(f"cannot write {self._file}: {error.strerror or error}")


def check_replicas(state: Any, mesh: Mesh, step: int) -> None:
    """Raise `TrainingFailedError` if copies of an array differ between devices."""
    if diverged := diverged_replicas(state, mesh):
        raise TrainingFailedError(
            "\n".join(
                [
                    f"at step {step} copies of the state differ between devices",
                    *diverged[:8],
                    f"{len(diverged)} arrays in all: a device computes wrongly, or the program is "
                    "not the same on all hosts; this step is not saved",
                ]
            )
        )
