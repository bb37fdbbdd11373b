"""Compare two checkpoints that were measured.

    python -m flaxclip.benchmark compare runs/a runs/b
    python -m flaxclip.benchmark compare results/a results/b --data DATASETS --out page.html

says for every task that both have whether the difference is real, and writes a page with the images
on which the two differ.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from flaxclip.benchmark.compare.comparison import Comparison, Found, TaskComparison, compare
from flaxclip.benchmark.compare.differing import example_lines, shown_examples
from flaxclip.benchmark.compare.measured import results_of
from flaxclip.benchmark.report.names import result_names
from flaxclip.benchmark.report.report import find_results, write_page
from flaxclip.benchmark.report.training_curves import find_runs
from flaxclip.benchmark.results import print_whole
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.data.storage.files import cache_folder
from flaxclip.errors import InputError

_Folder = Annotated[str, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class Command:
    """Compare two checkpoints that were measured."""

    first: Annotated[_Folder, tyro.conf.arg(metavar="A")]
    """A folder of results; or a checkpoint, as it was measured."""
    second: Annotated[_Folder, tyro.conf.arg(metavar="B")]
    """Likewise."""
    out: Path = Path("comparison.html")
    """The page; tables of the same, and of all examples on which the two differ, are written beside
    it."""
    data: str = "data"
    """Folder of data sets, or where they are published, as for measuring: the images are shown
    where the data can be read."""
    data_cache: Path = cache_folder("datasets")
    """Folder for copies of what is published, which are made once."""


def compare_command(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: one was not measured, both are the same, they have no task in common, or the
            page cannot be written.
    """
    program = "python -m flaxclip.benchmark compare"
    command = tyro.cli(Command, prog=program, args=arguments, description=__doc__)
    first, second = results_of(command.first), results_of(command.second)
    named = result_names(first + second)
    names = named[first[0][0]], named[second[0][0]]
    if names[0] == names[1]:  # the same weights, measured on other tasks
        names = command.first, command.second
    if first == second:
        raise InputError(
            f"{command.first} and {command.second} are the same results\nname two checkpoints"
        )
    place = DataPlace(command.data, command.data_cache)
    compared = compare(first, second, names)
    if not compared.tasks:
        raise InputError(
            "\n".join([f"nothing to compare {names[0]} and {names[1]} on", *compared.left_out])
        )
    write_comparisons([compared], first + second, command.out, place)


def write_comparisons_with_first(
    folders: Sequence[Path], names: Sequence[str], out: Path, place: DataPlace | Path
) -> None:
    """Compare the results in each of `folders` with those in the first; as `write_comparisons`."""
    first, *others = [find_results([folder]) for folder in folders]
    compared = [
        compare(first, other, (names[0], name))
        for other, name in zip(others, names[1:], strict=True)
    ]
    everything = [item for results in (first, *others) for item in results]
    write_comparisons(compared, everything, out, place)


def write_comparisons(
    comparisons: Sequence[Comparison], found: Found, out: Path, place: DataPlace | Path
) -> None:
    """Print each of `comparisons`, and write the page `out` of them and of the results `found`.

    Raises:
        InputError: the page cannot be written.
    """
    for comparison in comparisons:
        print_comparison(comparison)
    runs = find_runs([], {result.checkpoint.path for _, result in found})
    write_page(found, runs, comparisons, out, place)


def print_comparison(comparison: Comparison) -> None:
    """A table with a row a task, the verdict, and some examples on which the two differ."""
    headings = ("task", "score", "A", "B", "B - A", "95% interval", "corrected p", "better")
    table = Table(*headings, box=SIMPLE_HEAD)
    for task in comparison.tasks:
        d = task.difference
        table.add_row(
            task.name,
            task.score,
            *(f"{value:.1%}" for value in task.values),
            f"{100 * d.value:+.1f}",
            f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
            f"{task.corrected:.2g}",
            "–" if task.winner is None else "AB"[task.winner],
        )
    print("A: {}\nB: {}".format(*comparison.names))
    print_whole(table)
    print(comparison.verdict())
    for task in comparison.tasks:
        examples, _ = shown_examples(task, None)
        for line in (*example_lines(task, comparison.names, examples), *_notes(task)):
            print(line)
    for line in comparison.left_out:
        print(f"not compared: {line}")


def _notes(task: TaskComparison) -> list[str]:
    return [f"{task.name}: {note}" for note in task.notes]
