"""Results on disk: a JSON file a task with all that it takes to repeat it, and arrays beside it.

OUT/TASK.json               scores, prompts, preprocessing, versions
OUT/TASK.npz                what each example came out as
OUT/TASK-images/*.jpg     mistakes and findings worth looking at

Free of JAX, as all that reads results is.
"""

import dataclasses
import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from flaxclip.errors import InputError
from flaxclip.storage import whole_file

FORMAT = 4
"""Of result files. From 4 on, the names of the images are among the arrays."""
READABLE = (3, FORMAT)


def digest(value: Any) -> str:
    """A short hash of anything that JSON can hold, or dataclasses."""
    text = json.dumps(value, default=_plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


@dataclasses.dataclass(frozen=True)
class Score:
    """A share of 0..1, what a blind guess is expected to reach, and how sure it is."""

    value: float
    chance: float
    low: float
    """Lower end of the 95% interval over examples: another test set of the same kind would give
    a score between `low` and `high` 19 times of 20. Training anew is not in it."""
    high: float


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one measurement found."""

    scores: dict[str, Score]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further findings, as JSON."""
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """What each example came out as: for tables, images and paired tests."""
    unreadable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class MeasuredCheckpoint:
    """Whose score it is."""

    path: str
    step: int | None
    """None for weights that are of no run of ours."""
    weights: str | None = None
    """"ema" or "raw", where one was asked for."""
    format: str | None = None
    """Whose format it was read in, for people."""
    max_patches: int | None = None
    """Most patches of an image at its own aspect ratio, where a number was asked for."""


def short_names(checkpoints: Sequence[MeasuredCheckpoint]) -> list[str]:
    """What tables call checkpoints: the ends of their paths, their steps, and which weights.

    Paths are as long as it takes to tell them apart.

    Raises:
        InputError: two checkpoints are the same.
    """
    longest = max(len(_parts(checkpoint)) for checkpoint in checkpoints)
    for length in range(2, max(longest, 2) + 1):
        names = [short_name(checkpoint, length) for checkpoint in checkpoints]
        if len(set(names)) == len(names):
            return names
    repeated = next(name for name in names if names.count(name) > 1)
    raise InputError(f"{repeated} is named twice\nname every checkpoint once")


def short_name(checkpoint: MeasuredCheckpoint, length: int = 2) -> str:
    """The last `length` parts of a checkpoint's path, its step, which weights, and how many
    patches.
    """
    step = "" if checkpoint.step is None else f"step {checkpoint.step}"
    patches = "" if checkpoint.max_patches is None else f"{checkpoint.max_patches} patches"
    short = "/".join(_parts(checkpoint)[-length:])
    return " ".join(filter(None, [short, step, checkpoint.weights, patches]))


def _parts(checkpoint: MeasuredCheckpoint) -> list[str]:
    return checkpoint.path.rstrip("/").split("/")


@dataclasses.dataclass(frozen=True)
class Result:
    """A result with all that it takes to repeat it, as its file holds it."""

    task: str
    title: str
    method: str
    kind: str
    metric: str
    """The score that is quoted."""
    checkpoint: MeasuredCheckpoint
    parameters_sha256: str
    source: dict[str, Any]
    """Where the images were read: the fields of a `DataSource`."""
    data_sha256: str
    task_preprocessing: str | None
    identity_sha256: str
    """Of what was measured and how: a result with the same one need not be made again."""
    examples: int
    scores: dict[str, Score] = dataclasses.field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    """Images that count as black, and why."""
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What only some kinds of tasks have, such as words, and what is kept for people alone, such
    as versions; in the file these lie beside the fields above."""

    def to_json(self) -> dict[str, Any]:
        """The content of a result file."""
        return {
            **{field.name: getattr(self, field.name) for field in _FIELDS},
            "checkpoint": dataclasses.asdict(self.checkpoint),
            "scores": {name: dataclasses.asdict(score) for name, score in self.scores.items()},
            "unreadable": list(self.unreadable),
            "unreadable_images": len(self.unreadable),
            "notes": list(self.notes),
            **self.details,
            "format": FORMAT,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Result":
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: it does not hold what a result file does.
        """
        rest = dict(content)
        for derived in ("format", "unreadable_images"):
            rest.pop(derived, None)
        known = {field.name: rest.pop(field.name) for field in _FIELDS if field.name in rest}
        known["checkpoint"] = MeasuredCheckpoint(**known["checkpoint"])
        known["scores"] = {name: Score(**score) for name, score in known["scores"].items()}
        known |= {name: tuple(known[name]) for name in ("unreadable", "notes")}
        return cls(**known, details=rest)


_FIELDS = [field for field in dataclasses.fields(Result) if field.name != "details"]


def write_result(result: Result, arrays: Mapping[str, np.ndarray], stem: Path) -> None:
    """`stem`.npz, then `stem`.json, each whole or not at all: the JSON says that all is there."""
    with (
        whole_file(stem.with_name(stem.name + ".npz")) as partial,
        partial.open("wb") as file,  # given a path, NumPy would add another suffix
    ):
        np.savez_compressed(file, allow_pickle=False, **arrays)
    write_text(stem.with_name(stem.name + ".json"), as_json(result.to_json()))


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text)


def as_json(value: Any) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_plain) + "\n"


def read_result(path: Path) -> Result:
    """A result file.

    Raises:
        InputError: it is none, or of another version of this program.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] in READABLE:
            return Result.from_json(content)
        known = " or ".join(map(str, READABLE))
        found = f"of format {content['format']}, not {known}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"damaged: {error!r}"
    raise InputError(f"result file {path} is {found}\ndelete it, and measure again")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays beside the result file `path`; none where they were not kept.

    Raises:
        InputError: they are damaged.
    """
    file = path.with_suffix(".npz")
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return {}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{file} is damaged: {error}\ndelete it and {path.name}, and measure again"
        ) from None


def unreadable_lines(result: Result, shown: int = 10) -> list[str]:
    """The first images that a result counts as black, and how many more there are."""
    lines = [f"counted as black, because unreadable: {line}" for line in result.unreadable[:shown]]
    if len(result.unreadable) > shown:
        lines.append(f"and {len(result.unreadable) - shown:,} more: {result.task}'s JSON has all")
    return lines


def print_table(results: Sequence[Result]) -> None:
    """One row a score, with its 95% interval and what a blind guess would reach beside it; above
    them how many images the set has, and how many of these were unreadable and count as black.
    """
    table = Table("task", "score", "value", "95% interval", "chance", box=SIMPLE_HEAD)
    for result in results:
        examples = f"{result.kind}, n = {result.examples:,}"
        unreadable = f"{len(result.unreadable):,} unreadable"
        table.add_row(result.task, examples, "", unreadable, style="bold")
        for name, score in result.scores.items():
            interval = f"{score.low:.1%} – {score.high:.1%}"
            table.add_row("", name, f"{score.value:.1%}", interval, f"{score.chance:.1%}")
    print_whole(table)


def print_whole(table: Table) -> None:
    """Print a table of which nothing is cut off: in a log, each row on a line of its own; on a
    terminal, long words on several lines. Brackets and colons are those of names and captions.
    """
    for column in table.columns:
        column.overflow = "fold"
    # Of [x] and :x: Rich would make styles and pictures; a [/x] without an [x] is an error to it.
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        wide = console.options.update(max_width=10_000)
        width = Measurement.get(console, wide, table).maximum
        console = Console(width=width, markup=False, emoji=False)
    console.print(table)
