"""Annotations as sets publish them, JSON or CSV, and the images that they name."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.sources.left_out import is_leftover
from flaxclip.errors import InputError


def files_of(folder: Path, pattern: str) -> list[Path]:
    """Files that match a pattern, sorted, without those that other programs have left."""
    found = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in found if not is_leftover(path.relative_to(folder).as_posix()))


class ImageFolder:
    """Finds images by the paths that a set's files give, which are those of another machine."""

    def __init__(self, root: Path, folders: Sequence[str]):
        """`folders`: below `root`, the first that is there has the images, in folders of its own
        or not.

        Raises:
            MissingDataError: none is there.
        """
        there = [root / folder for folder in folders if (root / folder).is_dir()]
        if not there:
            raise MissingDataError(f"no folder {root / folders[0]}\n  put the set's images there")
        self._folder = there[0]
        self._by_name: dict[str, list[Path]] = {}

    def find(self, path: str) -> Path:
        """The image of that path below the folder, or the only one of its name.

        Raises:
            InputError: there is none, or several.
        """
        if (self._folder / path).is_file():
            return self._folder / path
        if not self._by_name:
            for file in files_of(self._folder, "**/*"):
                self._by_name.setdefault(file.name, []).append(file)
        found = self._by_name.get(Path(path).name, [])
        if len(found) != 1:
            raise InputError(
                f"{len(found)} images named {Path(path).name} in {self._folder}, for {path}\n"
                "there must be one: unpack the images again"
            )
        return found[0]


class Items(list[dict[str, Any]]):
    """The entries of a JSON file, which is a list or an object of them."""

    def __init__(self, file: Path):
        """Raise `InputError` unless there is one at least."""
        self.file = file
        try:
            content = json.loads(file.read_text())
        except ValueError as error:
            raise InputError(f"{file} is no JSON: {error}\ndownload it again") from None
        items = list(content.values()) if isinstance(content, dict) else content
        if not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
            raise InputError(f"{file} holds no list of objects\ndownload it again")
        super().__init__(items)
        if not self:
            raise InputError(f"{file} is empty\ndownload it again")

    def with_fields(self, *fields: str) -> Iterator[dict[str, Any]]:
        """Each, if it has the fields: otherwise an `InputError` says which one has not."""
        for number, item in enumerate(self):
            if missing := set(fields) - set(item):
                raise InputError(f"{self.file}: item {number} has no {sorted(missing)[0]}")
            yield item


def read_items(file: Path, task: Task, source: DataSource) -> Items:
    """A JSON file, or a `MissingDataError` that says where it is had."""
    if not file.is_file():
        raise MissingDataError(f"no {file}: {task.title}\n  {source.url}")
    return Items(file)


def read_rows(file: Path, task: Task, source: DataSource, header: bool = True) -> list[Any]:
    """A CSV file's rows, by the names of its header if it has one; errors as of `read_items`."""
    if not file.is_file():
        raise MissingDataError(f"no {file}: {task.title}\n  {source.url}")
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines) if header else csv.reader(lines))
    if not rows:
        raise InputError(f"{file} has no rows\ndownload it again")
    return rows


def integers(file: Path, rows: Sequence[Mapping[str, Any]], column: str) -> list[int]:
    """A column of whole numbers, or an `InputError` that says which is none."""
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(int(row[column]))
        except ValueError:
            raise InputError(
                f"{file}, row {number}: {column} is {row[column]!r}\nexpected a whole number"
            ) from None
    return found


def check_columns(file: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Raise `InputError` where a row has nothing in a column."""
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in columns if not row.get(name)]:
            raise InputError(f"{file}, row {number}: no {missing[0]}\nit has: {', '.join(row)}")
