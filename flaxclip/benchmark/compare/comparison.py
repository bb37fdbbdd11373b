"""Two checkpoints, task by task: which of them wins where, and on which examples they differ."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from flaxclip.benchmark.compare.outcomes import Arrays, Outcomes, find_outcomes
from flaxclip.benchmark.compare.paired import LEVEL, holm, paired_test
from flaxclip.benchmark.intervals import Difference
from flaxclip.benchmark.results import Result, read_arrays

Found = list[tuple[Path, Result]]
"""Result files and what they hold."""


class Side(NamedTuple):
    """One of the two on one task."""

    path: Path
    result: Result
    arrays: Arrays
    outcomes: Outcomes


@dataclasses.dataclass(frozen=True)
class TaskComparison:
    """Two checkpoints on one score of one task."""

    score: str
    first: Side
    second: Side
    difference: Difference
    """Second less first."""
    corrected: float
    """The p value, corrected for the number of tasks."""
    notes: tuple[str, ...]

    @property
    def result(self) -> Result:
        """What both have in common: task, method, kind."""
        return self.first.result

    @property
    def name(self) -> str:
        """Task and, where it is not zero-shot, method."""
        method = "" if self.result.method == "zero-shot" else f", {self.result.method}"
        return f"{self.result.task}{method}"

    @property
    def values(self) -> tuple[float, float]:
        """The score of each."""
        return (
            self.first.result.scores[self.score].value,
            self.second.result.scores[self.score].value,
        )

    @property
    def winner(self) -> int | None:
        """0 or 1; None where no difference is shown."""
        if self.corrected >= LEVEL:
            return None
        return int(self.difference.value > 0)

    def differing(self) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
        """Examples that the first alone gets right, or more right, and those of the second."""
        first, second = self.first.outcomes.each, self.second.outcomes.each
        if first is None or second is None:
            return np.zeros(0, int), np.zeros(0, int)
        change = second.astype(float) - first
        return np.flatnonzero(change < 0), np.flatnonzero(change > 0)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two checkpoints on all tasks that they have in common."""

    names: tuple[str, str]
    tasks: list[TaskComparison]
    left_out: list[str]
    """Tasks that could not be compared, and why."""

    def verdict(self) -> str:
        """The whole in one sentence."""
        if not self.tasks:
            return f"{self.names[0]} and {self.names[1]} have no task to be compared on."
        won = [sum(task.winner == side for task in self.tasks) for side in (0, 1)]
        drawn = len(self.tasks) - sum(won)
        parts = [
            f"{name} is better on {count_of(count, 'task')}"
            for name, count in zip(self.names, won, strict=True)
            if count
        ]
        if drawn:
            no = "no" if parts else "No"
            parts.append(f"{no} difference is shown on {count_of(drawn, 'task')}")
        many = f", corrected for {count_of(len(self.tasks), 'test')} (Holm)"
        return f"{'; '.join(parts)} (p < {LEVEL}{many if len(self.tasks) > 1 else ''})."


def count_of(count: int, thing: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def compare(first: Found, second: Found, names: tuple[str, str]) -> Comparison:
    """Paired tests of the quoted scores of two checkpoints, on the tasks that both have.

    p values are corrected for the number of these tasks.
    """
    left_out: list[str] = []
    pairs = list(_pairs(first, second, names, left_out))
    differences = [paired_test(b.outcomes, a.outcomes) for a, b, _ in pairs]
    corrected = holm([difference.p_value for difference in differences]).tolist()
    tasks = [
        TaskComparison(a.result.metric, a, b, difference, p, notes)
        for (a, b, notes), difference, p in zip(pairs, differences, corrected, strict=True)
    ]
    return Comparison(names, tasks, left_out)


def _pairs(
    first: Found, second: Found, names: tuple[str, str], left_out: list[str]
) -> Iterator[tuple[Side, Side, tuple[str, ...]]]:
    others = {(result.task, result.method): (path, result) for path, result in second}
    for path, result in first:
        name = f"{result.task}, {result.method}"
        if (other := others.pop((result.task, result.method), None)) is None:
            left_out.append(f"{name}: {names[1]} has no result")
            continue
        sides = [_side(*item, result.metric) for item in ((path, result), other)]
        if sides[0] is None or sides[1] is None:
            left_out.append(
                f"{name}: what {result.metric} is of each example was not kept; "
                "delete the results, and measure again"
            )
            continue
        a, b = sides[0], sides[1]
        if reason := _differ(a, b):
            left_out.append(f"{name}: {reason}")
        else:
            yield a, b, tuple(_notes(result, other[1]))
    left_out += [f"{task}, {method}: {names[0]} has no result" for task, method in others]


def _side(path: Path, result: Result, score: str) -> Side | None:
    arrays = read_arrays(path)
    outcomes = find_outcomes(score, result, arrays) if score in result.scores else None
    return None if outcomes is None else Side(path, result, arrays, outcomes)


def _differ(first: Side, second: Side) -> str | None:
    """Why the examples of two results are not the same, if they are not."""
    counts = first.outcomes.examples, second.outcomes.examples
    if counts[0] != counts[1]:
        return f"they were measured on {counts[0]:,} and {counts[1]:,} examples"
    for name in ("labels", "pairs", "present", "source"):
        if not np.array_equal(first.arrays.get(name, ()), second.arrays.get(name, ())):
            return "the same images have other labels"
    if first.result.data_sha256 == second.result.data_sha256:
        return None
    names, others = (side.arrays.get("image_names") for side in (first, second))
    if names is None or others is None:
        return (
            "they were measured on data in different places, and at least one result does not keep "
            "the images' names; delete it, and measure again"
        )
    return None if np.array_equal(names, others) else "they were measured on different images"


def _notes(first: Result, second: Result) -> Iterator[str]:
    words = [result.details.get("prompts_sha256") for result in (first, second)]
    if words[0] != words[1]:
        yield "the two were asked in different words"
    for name, result in (("first", first), ("second", second)):
        if result.unreadable:
            yield f"of the {name}, {count_of(len(result.unreadable), 'image')} unreadable"
