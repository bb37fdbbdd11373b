"""Search for the fastest mesh, remat policy and batch that fit, compiling only a few."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from flaxclip.chips import Chip
from flaxclip.config import TrainConfig
from flaxclip.models.compute import Remat, remat_by_speed
from flaxclip.planning.compiled_step import (
    CompiledStep,
    Refusal,
    ShapedStep,
    planned_teachers,
)
from flaxclip.planning.estimate import estimated_memory, estimated_seconds
from flaxclip.planning.roofline import roofline
from flaxclip.planning.store import steps_of_all_shapes
from flaxclip.planning.topology import Topology
from flaxclip.step_shapes import mean_pairs, token_budget

Dimension = Literal["mesh", "remat", "batch"]
MAX_PAIRS_PER_CHIP = 8192
HOPELESS = 1.5

_FIGURES = "searches are for machines of chips with published figures"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A configuration, and its compiled steps or refusal."""

    config: TrainConfig
    steps: tuple[ShapedStep, ...]
    """Of all shapes that batches have; without those after one that does not fit."""

    @property
    def step(self) -> CompiledStep | Refusal:
        """The one that needs the most memory."""
        return max(self.steps, key=lambda shaped: shaped.used_bytes).step

    @property
    def used_bytes(self) -> float:
        """Bytes of a chip's memory used, or needed if there is less."""
        return max(shaped.used_bytes for shaped in self.steps)

    def pairs_per_second(self, chip: Chip) -> float:
        """By the expected time of steps; 0 if one does not fit."""
        seconds = 0.0
        for _, step in self.steps:
            if isinstance(step, Refusal):
                return 0.0
            seconds += roofline(step, chip).expected
        return sum(shape.pairs for shape, _ in self.steps) / seconds


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
    stored = planned_teachers(config)
    arithmetic = {
        candidate: (
            estimated_memory(candidate, topology),
            estimated_seconds(candidate, topology, chip, stored) / mean_pairs(candidate),
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
        trial = Trial(best, steps_of_all_shapes(best, topology))
        trials.append(trial)
        memory, _ = arithmetic[best]
        growing = max(trial.used_bytes - memory.fixed, 0)
        corrections[best.compute.remat] = growing / memory.growing
    return sorted(trials, key=lambda trial: -pairs_per_second(trial, topology))


def largest_batch(
    config: TrainConfig, topology: Topology, say: Callable[[str], None]
) -> Trial | None:
    """The largest power of two of pairs a chip that compiles, all else as in `config`.

    None if not even the smallest fits: one pair a chip, or what has room for the longest images. An
    estimate suggests the first candidate, and the compiler's
    figures correct it. The next power is tried too, unless it would need `HOPELESS` times the
    available memory: a compiler that is short of memory finds some by recomputing.
    """
    chips, available = len(topology.devices), _chip_memory(topology)
    every = _powers_of_two(MAX_PAIRS_PER_CHIP)
    powers = [power for power in every if has_room(config, power * chips)]
    if not powers:
        return None
    correction = 1.0

    def needed(per_chip: int) -> float:
        memory = estimated_memory(with_batch(config, per_chip * chips), topology)
        return memory.fixed + memory.growing * correction

    largest: Trial | None = None
    refused = 2 * powers[-1]
    per_chip = max((p for p in powers if needed(p) <= available), default=powers[0])
    while True:
        trial_config = with_batch(config, per_chip * chips)
        say(f"compiling {describe(trial_config, topology)}")
        trial = Trial(trial_config, steps_of_all_shapes(trial_config, topology))
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
            per_chip = 2 * batch_of(largest.config) // chips
            if per_chip >= refused or needed(per_chip) > HOPELESS * available:
                return largest


def pairs_per_second(trial: Trial, topology: Topology) -> float:
    """Pairs a second by the expected step time; 0 if the step does not fit."""
    assert topology.chip is not None, _FIGURES
    return trial.pairs_per_second(topology.chip)


def _chip_memory(topology: Topology) -> float:
    assert topology.chip is not None, _FIGURES
    assert topology.chip.hbm_bytes is not None, _FIGURES
    return topology.chip.hbm_bytes


def describe(config: TrainConfig, topology: Topology) -> str:
    """The numbers that a search varies, as flags."""
    return (
        f"--mesh.fsdp {config.mesh.fsdp} --compute.remat {config.compute.remat} "
        f"{batch_flag(config)} ({mean_pairs(config) / len(topology.devices):g} pairs a chip)"
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
    batches = [batch_of(config)]
    if "batch" in vary:
        batches = [chips * pairs for pairs in _powers_of_two(MAX_PAIRS_PER_CHIP)]
    for mesh, compute, batch_size in itertools.product(meshes, computes, batches):
        changed = dataclasses.replace(config, mesh=mesh, compute=compute)
        if has_room(changed, batch_size):
            yield with_batch(changed, batch_size)


def _powers_of_two(largest: int) -> list[int]:
    return [2**power for power in range(largest.bit_length()) if 2**power <= largest]


def batch_of(config: TrainConfig) -> int:
    """Pairs of a step; at native aspect ratio, of images with as many patches as the square."""
    if config.lengths is None:
        return config.batch_size
    return token_budget(config) // config.model.vision.grid**2


def with_batch(config: TrainConfig, batch_size: int) -> TrainConfig:
    """The inverse of `batch_of`; at native aspect ratio it sets the budget alone."""
    if config.lengths is None:
        return dataclasses.replace(config, batch_size=batch_size)
    budget = batch_size * config.model.vision.grid**2
    return dataclasses.replace(config, data=dataclasses.replace(config.data, token_budget=budget))


def has_room(config: TrainConfig, batch_size: int) -> bool:
    """False if the budget for `batch_size` is below what the longest images take."""
    if config.lengths is None:
        return True
    longest = config.lengths.lengths[-1] * config.batch_divisor
    return batch_size * config.model.vision.grid**2 >= longest


def batch_flag(config: TrainConfig) -> str:
    """The flag of `batch_of`, with its value."""
    if config.lengths is None:
        return f"--batch-size {config.batch_size}"
    return f"--data.token-budget {token_budget(config)}"


def _is_harder(config: TrainConfig, trial: Trial) -> bool:
    """True if `config` cannot fit, since a smaller batch of the same model and mesh did not."""
    return (
        isinstance(trial.step, Refusal)
        and (trial.config.mesh, trial.config.compute) == (config.mesh, config.compute)
        and batch_of(trial.config) <= batch_of(config)
    )
