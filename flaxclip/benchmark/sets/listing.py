"""What can be measured, and whether its data is here.

    python -m flaxclip.benchmark list
    python -m flaxclip.benchmark list robustness --data hf://datasets/clip-benchmark

The size is that of the test split: on this machine, or, if --data says so, on the Hub.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.readers.parquet import find_parquet
from flaxclip.benchmark.readers.wds import find_wds
from flaxclip.benchmark.robustness import alexnet_errors
from flaxclip.benchmark.sets.parts import wds_files
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.sets.progress import described_size
from flaxclip.benchmark.tasks import DataSource, Task, all_suites, all_tasks, find_tasks
from flaxclip.data.storage.file_systems import is_remote
from flaxclip.data.storage.files import cache_folder
from flaxclip.errors import InputError

WIDTH = 100
_LOOK_UPS = 16  # at once
_QUESTIONS = {
    "classification": "{} classes",
    "multilabel": "some of {}",
    "retrieval": "captions",
    "choice": "right caption",
    "statements": "right captions",
    "association": "which images",
    "open-set": "of {} classes or not",
    "faces": "race, gender, age",
    "multilingual-retrieval": "captions, multilingual",
    "multilingual-classification": "classes, multilingual",
}
State = Literal["yes", "cache", "part", "no", "broken"]
"""`yes` in the folder of --data, `cache` in that of --data-cache, `part` some of it there."""


@dataclasses.dataclass(frozen=True)
class Command:
    """What can be measured, and whether its data is here."""

    tasks: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SUITE")] = ()
    """Suites and tasks. If None, all."""
    data: str = "data"
    """Folder of data sets, or where they are published: hf://datasets/clip-benchmark,
    gs://tfds-data/datasets."""
    data_cache: Path = cache_folder("datasets")
    """Folder with copies of what is published."""
    json: bool = False
    """Print JSON in place of a table."""


@dataclasses.dataclass(frozen=True)
class Listed:
    """A row."""

    task: str
    question: str
    images: int | None
    """Of the test set, where published."""
    source: str
    """Reader and name of the source that is here, or of the first that could be."""
    bytes: int | None
    """Of the test split. If None, unknown."""
    here: State
    problem: str | None = None
    """Why it cannot be used, or how it is had."""


def list_command(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: there is no such task or suite, or the Hub cannot be asked.
    """
    program = "python -m flaxclip.benchmark list"
    command = tyro.cli(Command, prog=program, args=arguments, description=__doc__)
    tasks = find_tasks(command.tasks) if command.tasks else list(all_tasks().values())
    place = DataPlace(command.data, command.data_cache)
    with ThreadPoolExecutor(_LOOK_UPS) as pool:
        rows = list(pool.map(lambda task: list_task(task, place), tasks))
    if command.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    print("\n".join(table(rows, explain=is_remote(command.data))))
    if not command.tasks:
        print(f"\nsuites: {', '.join(all_suites())}")


def list_task(task: Task, place: DataPlace) -> Listed:
    """The row of a task: of the first of its sources that is here, or else of the first."""
    rows = []
    for source in task.sources:
        try:
            size, here = _look_for(source, task, place)
            problem = None
        except MissingDataError as error:
            size, here, problem = None, "no", str(error)
        except InputError as error:
            size, here, problem = None, "broken", str(error)
        where = "built in" if source.reader == "scenes" else f"{source.reader} {source.name}"
        question = _QUESTIONS.get(task.kind, task.kind).format(
            f"{task.classes:,}" if task.classes else "its"
        )
        rows.append(Listed(task.name, question, task.examples, where, size, here, problem))
    order: tuple[State, ...] = ("yes", "cache", "part", "broken", "no")
    return min(rows, key=lambda row: (order.index(row.here), row.bytes is None))


def _look_for(source: DataSource, task: Task, place: DataPlace) -> tuple[int | None, State]:
    """Bytes of the test split, and whether it is here."""
    if source.reader == "scenes":
        return None, "yes"
    if place.origins(source):
        return place.look_up(source, source.split)
    try:
        paths = _files_here(source, task, place.find(source, source.split).data_dir)
    except MissingDataError:
        if copied := place.in_cache(source, source.split):
            return copied
        raise
    return sum(map(_size, paths)), "yes"


def _files_here(source: DataSource, task: Task, data_dir: Path) -> list[Path]:
    """The files of the test split.

    Raises:
        MissingDataError: they are not here.
        InputError: some of them are.
    """
    if source.reader in ("parquet", "winoground", "winogavil", "aro-order"):
        return find_parquet(source.name, source.split, data_dir, task.title)
    files = []
    for name in _webdatasets(source):
        files += _wds_files_here(find_wds(name, data_dir), source.split)
    for places in _places(source, task):
        found = [path for place in places for path in _expanded(data_dir, place) if path.exists()]
        if not found:
            raise MissingDataError(f"no {data_dir / places[-1]}: {source.url or task.title}")
        files.append(found[0])
    return files


def _wds_files_here(root: Path, split: str) -> list[Path]:
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return [root / n for n in wds_files(names, split, lambda n: (root / n).read_text(), str(root))]


def _webdatasets(source: DataSource) -> tuple[str, ...]:
    """Names of the webdatasets that the source's reader reads."""
    if source.reader in ("imagenet-w", "imagenet-ood", "babel-imagenet"):
        return ("imagenet1k",)
    return (source.name, *source.outside) if source.reader.startswith("wds") else ()


def _places(source: DataSource, task: Task) -> list[tuple[str, ...]]:
    """What else it needs in the folder of data sets, each in one of several places."""
    name, needed = source.name, []
    if source.reader == "tfds":
        default = os.environ.get("TFDS_DATA_DIR", Path.home() / "tensorflow_datasets")
        return [(f"{default}/{name}", name)]
    if source.reader == "folder":
        return [(str(Path(name).absolute()), name)]
    if source.reader == "imagenet-c":
        assert task.corruption_level is not None, "a task of this reader has a level"
        level = task.corruption_level
        return [(f"{name}/*/{c}/{level}", f"{name}/{c}/{level}") for c in alexnet_errors(level)]
    if source.reader == "sugarcrepe":
        needed = [f"sugar_crepe/{name}.json", "sugar_crepe/val2017"]
    elif source.reader == "sugarcrepe++":
        needed = [f"sugar_crepe_pp/{name}.json"]
    elif source.reader == "aro":
        needed = [f"aro/visual_genome_{name}.json", "aro/images"]
    elif source.reader.startswith("negbench"):
        needed = [f"negbench/{name}.csv", "negbench/images"]
    elif source.reader == "flickr-annotations":
        folder, _, language = name.rpartition("-")
        needed = [f"{folder}/{folder}_{source.split}_{language}.txt", folder]
    elif source.reader == "babel-imagenet":
        needed = [f"babel-imagenet/{file}.json" for file in (name, source.prompts) if file]
    elif not source.reader.startswith("wds"):
        needed = [name]
    return [(place,) for place in needed]


def _expanded(data_dir: Path, place: str) -> Iterable[Path]:
    return data_dir.glob(place) if "*" in place else [data_dir / place]


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(_size(inner) for inner in path.iterdir())
    return path.stat().st_size if path.is_file() else 0


def table(rows: Sequence[Listed], explain: bool = False) -> list[str]:
    """Lines of plain columns that fit `WIDTH`, then one for each set that is broken.

    Args:
        rows: one for each task.
        explain: give a line to each set that could not be found, too.
    """
    cells = [("task", "question", "images", "from", "size", "here")]
    for row in rows:
        images = "" if row.images is None else f"{row.images:,}"
        size = "" if row.bytes is None else described_size(row.bytes)
        cells.append((row.task, row.question, images, row.source, size, row.here))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    widths[3] = min(widths[3], WIDTH - sum(widths) + widths[3] - 2 * (len(widths) - 1))
    lines = []
    for line in cells:
        padded = [
            _cut(cell, width).rjust(width) if column in (2, 4) else _cut(cell, width).ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    problems = [
        f"{row.task}: {row.problem.splitlines()[0]}"
        for row in rows
        if row.problem and (explain or row.here == "broken")
    ]
    return [*lines, "", *problems] if problems else lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
