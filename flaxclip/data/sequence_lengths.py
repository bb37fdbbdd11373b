"""(seed, step) -> the length of that step's images in patches, and how many pairs it has room for.

Steps are alike in patches, not in pairs: a step of short images has many (SigLIP 2's NaFlex,
Tschannen et al. 2025). A step's rows follow those of the step before in the stream of examples, so
that every example still comes once an epoch.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from flaxclip.errors import InputError

_BLOCK = 2**16  # steps whose lengths are drawn at a time


class StepLength(NamedTuple):
    """What one step trains on."""

    patches: int
    """Places for patches in each image."""
    pairs: int
    """Over all devices."""
    first: int
    """Position in the stream of the step's first row."""


@dataclasses.dataclass(frozen=True)
class LengthSchedule:
    """The lengths of a run, drawn for each step, all equally often."""

    lengths: tuple[int, ...]
    """In patches, from the shortest to the longest."""
    pairs: tuple[int, ...]
    """Pairs of a step of each length."""
    seed: int

    def at(self, step: int) -> StepLength:
        """What `step` trains on, where 0 is the first; on any host, and after any restart."""
        block, offset = divmod(step, _BLOCK)
        for before in range(block):  # each needs the one before it, and is remembered
            _draw_block(self, before)
        drawn, first = _draw_block(self, block)
        choice = drawn[offset]
        return StepLength(self.lengths[choice], self.pairs[choice], int(first[offset]))

    def step_at(self, position: int) -> int:
        """The step that trains on this position of the stream."""
        block = 0
        while position >= (first := _draw_block(self, block)[1])[-1]:
            block += 1
        return block * _BLOCK + int(np.searchsorted(first, position, side="right")) - 1

    @functools.cached_property
    def usual_pairs(self) -> int:
        """Pairs of a step on average, as a multiple of `_columns`."""
        mean = sum(self.pairs) / len(self.pairs)
        return self._columns * max(1, round(mean / self._columns))

    def by_columns(self, position: int) -> int:
        """Where a position of the stream lies if every step had `usual_pairs`, and hosts theirs.

        For an order in which each row of a batch has its own part of the corpus: a host then loads
        the same rows at every step, however many these are. The batch is cut into columns, as many
        as divide the pairs of every length, and a step takes as many rows of each as it has. So
        this is a permutation of the stream, in which none moves by more than two large batches.
        """
        length = self.at(self.step_at(position))
        column, row = divmod(position - length.first, length.pairs // self._columns)
        rows = self.usual_pairs // self._columns
        batch, place = divmod(length.first // self._columns + row, rows)
        return batch * self.usual_pairs + column * rows + place

    @functools.cached_property
    def _columns(self) -> int:
        return math.gcd(*self.pairs)


@functools.cache
def _draw_block(
    schedule: LengthSchedule, block: int
) -> tuple[Int64[np.ndarray, " steps"], Int64[np.ndarray, " steps_and_1"]]:
    """For each step of a block its choice of a length and its first position; one more position,
    that of the next block.
    """
    start = 0 if block == 0 else int(_draw_block(schedule, block - 1)[1][-1])
    raw = np.random.Philox(key=[schedule.seed, 0], counter=[0, block, 0, 0]).random_raw(_BLOCK)
    choices = (raw % len(schedule.lengths)).astype(np.int64)
    pairs = np.array(schedule.pairs, np.int64)[choices]
    return choices, np.concatenate([[start], start + np.cumsum(pairs)])


def schedule_lengths(
    lengths: Sequence[int],
    token_budget: int,
    divisor: int,
    seed: int,
    budget_field: str = "data.token_budget",
) -> LengthSchedule:
    """The schedule in which a step has as many pairs as `token_budget` patches allow.

    Args:
        lengths: patches of an image, in any order.
        token_budget: patches of a step, over all devices.
        divisor: what the pairs of every step are a multiple of: the parts that a batch is cut into.
        seed: of the run.
        budget_field: for messages, what the budget follows from.

    Raises:
        InputError: a length twice or below 1, or a budget that has no room for `divisor` images of
            the longest.
    """
    ordered = tuple(sorted(lengths))
    if not ordered or ordered[0] < 1 or len(set(ordered)) < len(ordered):
        raise InputError(
            f"data.sequence_lengths is {' '.join(map(str, lengths)) or 'empty'}\n"
            "expected one or more different numbers of patches, each at least 1"
        )
    if token_budget < ordered[-1] * divisor:
        several = len(ordered) > 1
        longest = ", the longest of data.sequence_lengths," if several else ""
        shorter = ", or leave out the longest" if several else ""
        raise InputError(
            f"{budget_field} is {token_budget:,} patches a step\n"
            f"a batch is cut into {divisor:,} parts, and {divisor:,} images of "
            f"{ordered[-1]:,} patches{longest} have {ordered[-1] * divisor:,}: give a step at "
            f"least as many, lower --batch-divisor{shorter}"
        )
    pairs = tuple(token_budget // length // divisor * divisor for length in ordered)
    return LengthSchedule(ordered, pairs, seed)
