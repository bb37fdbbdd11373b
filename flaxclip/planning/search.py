"""Search for the fastest mesh, remat policy and batch that fit, compiling only a few."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from flaxclip.config import TrainConfig
from flaxclip.models.compute import Remat, remat_by_speed
from flaxclip.planning.compiled_step import CompiledStep, Refusal
from flaxclip.planning.estimate import estimated_memory, estimated_seconds
from flaxclip.planning.roofline import roofline
from flaxclip.planning.store import stored_or_compiled
from flaxclip.planning.topology import Topology

Dimension = Literal["mesh", "remat", "batch"]
MAX_PAIRS_PER_CHIP = 8192
HOPELESS = 1.5

_FIGURES = "searches are for machines of chips with published figures"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A configuration, and its compiled step or refusal."""

    config: TrainConfig
    step: CompiledStep | Refusal

    @property
    def used_bytes(self) -> float:
        """Bytes of a chip's memory used, or needed if there is less."""
        if isinstance(self.step, CompiledStep):
            return self.step.peak_bytes
        return self.step.needed_bytes


def search(
    config: TrainConfig,
    topology: Topology,
    vary: Iterable[Dimension],
    compiles: int,
    say: Callable[[str], None],
) -> list[Trial]:
    """Up to `compiles` trials, those that fit first, by pairs a second.

    Candidates are ranked by an estimate, and the best is compiled. The compiler's figure for its
    memory corrects the estimate, which then selects the next candidate. The estimate is optimistic
    at first, so the search approaches the largest batch that fits from above.

    Args:
        config: the start of the search; fields that do not vary are kept.
        topology: a machine of chips with published figures.
        vary: `mesh` for all divisions of the devices between `data` and `fsdp`; `remat` for what
            blocks keep for their backward pass; `batch` for all powers of two a chip.
        compiles: how many to compile at most.
        say: called with each line of progress.
    """
    candidates = list(_candidates(config, topology, frozenset(vary)))
    chip, available = topology.chip, _chip_memory(topology)
    assert chip is not None, _FIGURES
    arithmetic = {
        candidate: (
            estimated_memory(candidate, topology),
            estimated_seconds(candidate, topology, chip) / candidate.batch_size,
        )
        for candidate in candidates
    }
    # What the compiler saves beyond the arithmetic, or wastes, depends on what it may recompute.
    corrections: dict[Remat | None, float] = {}

    def corrected(candidate: TrainConfig) -> float:
        memory, _ = arithmetic[candidate]
        return memory.fixed + memory.growing * corrections.get(candidate.compute.remat, 1.0)

    trials: list[Trial] = []
    for number in range(1, compiles + 1):
        left = [
            candidate
            for candidate in candidates
            if candidate not in {trial.config for trial in trials}
            and corrected(candidate) <= available
            and not any(_is_harder(candidate, trial) for trial in trials)
        ]
        if not left:
            break
        best = min(left, key=lambda candidate: arithmetic[candidate][1])
        say(f"compiling {number} of at most {compiles}: {describe(best, topology)}")
        trial = Trial(best, stored_or_compiled(best, topology))
        trials.append(trial)
        memory, _ = arithmetic[best]
        growing = max(trial.used_bytes - memory.fixed, 0)
        corrections[best.compute.remat] = growing / memory.growing
    return sorted(trials, key=lambda trial: -pairs_per_second(trial, topology))


def largest_batch(
    config: TrainConfig, topology: Topology, say: Callable[[str], None]
) -> Trial | None:
    """The largest power of two of pairs a chip that compiles, all else as in `config`.

    None if not even one pair fits. An estimate suggests the first candidate, and the compiler's
    figures correct it. The next power is tried too, unless it would need `HOPELESS` times the
    available memory: a compiler that is short of memory finds some by recomputing.
    """
    chips, available = len(topology.devices), _chip_memory(topology)
    powers = _powers_of_two(MAX_PAIRS_PER_CHIP)
    correction = 1.0

    def needed(per_chip: int) -> float:
        memory = estimated_memory(_with_batch(config, per_chip * chips), topology)
        return memory.fixed + memory.growing * correction

    largest: Trial | None = None
    refused = 2 * powers[-1]
    per_chip = max((power for power in powers if needed(power) <= available), default=1)
    while True:
        trial_config = _with_batch(config, per_chip * chips)
        say(f"compiling {describe(trial_config, topology)}")
        trial = Trial(trial_config, stored_or_compiled(trial_config, topology))
        memory = estimated_memory(trial_config, topology)
        correction = max(trial.used_bytes - memory.fixed, 0) / memory.growing
        if isinstance(trial.step, Refusal):
            refused = per_chip
        else:
            largest = trial
        smaller = [power for power in powers if power < refused]
        if largest is None:
            if not smaller:
                return None
            per_chip = max((p for p in smaller if needed(p) <= available), default=smaller[0])
        else:
            per_chip = 2 * largest.config.batch_size // chips
            if per_chip >= refused or needed(per_chip) > HOPELESS * available:
                return largest


def pairs_per_second(trial: Trial, topology: Topology) -> float:
    """Pairs a second by the expected step time; 0 if the step does not fit."""
    if isinstance(trial.step, Refusal):
        return 0.0
    assert topology.chip is not None, _FIGURES
    return trial.config.batch_size / roofline(trial.step, topology.chip).expected


def _chip_memory(topology: Topology) -> float:
    assert topology.chip is not None, _FIGURES
    assert topology.chip.hbm_bytes is not None, _FIGURES
    return topology.chip.hbm_bytes


def describe(config: TrainConfig, topology: Topology) -> str:
    """The numbers that a search varies, as flags."""
    return (
        f"--mesh.fsdp {config.mesh.fsdp} --compute.remat {config.compute.remat} "
        f"--batch-size {config.batch_size} "
        f"({config.batch_size / len(topology.devices):g} pairs a chip)"
    )


def _candidates(
    config: TrainConfig, topology: Topology, vary: frozenset[Dimension]
) -> Iterator[TrainConfig]:
    chips = len(topology.devices)
    meshes = [config.mesh]
    if "mesh" in vary:
        meshes = [
            dataclasses.replace(config.mesh, data=-1, fsdp=fsdp)
            for fsdp in _powers_of_two(chips)
            if chips % (fsdp * config.mesh.tensor) == 0
        ]
    computes = [config.compute]
    if "remat" in vary:
        choices = remat_by_speed(
            topology.devices[0].platform, config.model.is_scanned(config.compute)
        )
        computes = [dataclasses.replace(config.compute, remat=remat) for remat in choices]
    batches = [config.batch_size]
    if "batch" in vary:
        batches = [chips * pairs for pairs in _powers_of_two(MAX_PAIRS_PER_CHIP)]
    for mesh, compute, batch_size in itertools.product(meshes, computes, batches):
        yield dataclasses.replace(config, mesh=mesh, compute=compute, batch_size=batch_size)


def _powers_of_two(largest: int) -> list[int]:
    return [2**power for power in range(largest.bit_length()) if 2**power <= largest]


def _with_batch(config: TrainConfig, batch_size: int) -> TrainConfig:
    return dataclasses.replace(config, batch_size=batch_size)


def _is_harder(config: TrainConfig, trial: Trial) -> bool:
    """True if `config` cannot fit, since a smaller batch of the same model and mesh did not."""
    return (
        isinstance(trial.step, Refusal)
        and (trial.config.mesh, trial.config.compute) == (config.mesh, config.compute)
        and trial.config.batch_size <= config.batch_size
    )
