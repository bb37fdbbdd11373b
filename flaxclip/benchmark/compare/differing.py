"""The examples on which two checkpoints differ: by name, and as images where the data is here."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from flaxclip.benchmark.compare.comparison import Comparison, TaskComparison
from flaxclip.benchmark.datasets import (
    Captioned,
    Choices,
    Dataset,
    Statements,
    measured_pixels,
)
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.results import Result, digest
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError
from flaxclip.zero_shot.class_prompts import first_name

SHOWN = 6
"""Images of a task, for each of the two checkpoints."""
THUMBNAIL = SizedTransform(96)


@dataclasses.dataclass(frozen=True)
class Example:
    """One on which the two differ."""

    name: str
    truth: str
    guesses: tuple[str, str]
    winner: int
    """0 or 1: which of the two is right, or more right."""
    image: bytes | None = None
    """A small JPEG."""


class _Data(NamedTuple):
    """A task's data opened anew, if it could be; or why not."""

    data: Dataset | None
    reason: str = ""


def shown_examples(
    task: TaskComparison, data: DataPlace | Path | None
) -> tuple[list[Example], str]:
    """Up to `SHOWN` examples for each side, and why there are no images, if there are none.

    Of classifications those where the two were most certain, one of them wrongly. If `data` is
    None, no images are looked for.
    """
    chosen = [
        (int(index), winner)
        for winner, indices in enumerate(task.differing())
        for index in _most_certain(task, indices)[:SHOWN]
    ]
    if not chosen:
        return [], ""
    opened = _Data(None) if data is None else _open(task, data)
    examples = []
    for index, winner in chosen:
        example = _describe(task, index, winner, opened.data)
        image = _image_of(task, index, opened.data)
        if opened.data is not None and image is not None:
            example = dataclasses.replace(example, image=_thumbnail(opened.data, image))
        examples.append(example)
    return examples, opened.reason


def all_examples(task: TaskComparison) -> Iterator[Example]:
    """Every example on which the two differ, without images."""
    for winner, indices in enumerate(task.differing()):
        for index in indices:
            yield _describe(task, int(index), winner, None)


def differences_csv(comparisons: Sequence[Comparison]) -> str:
    """A row for each example on which two checkpoints differ."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["task", "method", "score", "example", "truth", "right", "its_guess", "wrong",
         "the_other_guess"]
    )  # fmt: skip
    for comparison in comparisons:
        for task in comparison.tasks:
            about = task.result.task, task.result.method, task.score
            for example in all_examples(task):
                right, wrong = example.winner, 1 - example.winner
                writer.writerow(
                    [*about, example.name, example.truth,
                     comparison.names[right], example.guesses[right],
                     comparison.names[wrong], example.guesses[wrong]]
                )  # fmt: skip
    return out.getvalue()


def _most_certain(task: TaskComparison, indices: np.ndarray) -> np.ndarray:
    sides = task.first.arrays.get("confidence"), task.second.arrays.get("confidence")
    if sides[0] is None or sides[1] is None:
        # Evenly spread: neighbours in a data set are often alike.
        return indices[np.linspace(0, len(indices) - 1, min(SHOWN, len(indices))).astype(int)]
    return indices[np.argsort(-(sides[0] + sides[1])[indices], kind="stable")]


def _describe(task: TaskComparison, index: int, winner: int, data: Dataset | None) -> Example:
    image = _image_of(task, index, data)
    names = task.first.arrays.get("image_names")
    name = f"example {index}" if image is None else f"image {image}"
    if image is not None and names is not None:
        name = str(names[image])
    sides = (task.first, task.second)
    truth, guesses = "", ("", "")
    if "ranking" in task.first.arrays:
        classes = [[first_name(n) for n in side.result.details["class_names"]] for side in sides]
        truth = classes[0][task.first.arrays["labels"][index]]
        guesses = tuple(
            of_side[side.arrays["ranking"][index, 0]]
            for of_side, side in zip(classes, sides, strict=True)
        )
    elif direction := _direction(task):
        places = [int(side.arrays[f"{direction}_rivals"][index]) + 1 for side in sides]
        guesses = (f"found at place {places[0]:,}", f"found at place {places[1]:,}")
        if isinstance(data, Captioned):
            column = 1 if direction == "text_to_image" else 0
            pair = data.pairs[np.flatnonzero(data.pairs[:, column] == index)[0]]
            truth = data.captions[pair[1]]
    elif isinstance(data, Choices):
        truth = data.captions[data.caption_rows[index, 0]]
    elif isinstance(data, Statements):
        row, right = data.caption_rows[index], data.is_right[index]
        truth = " / ".join(data.captions[caption] for caption in row[right])
    return Example(name, truth, guesses, winner)


def _direction(task: TaskComparison) -> str | None:
    direction = task.score.partition("_recall@")[0]
    return direction if f"{direction}_rivals" in task.first.arrays else None


def _image_of(task: TaskComparison, index: int, data: Dataset | None) -> int | None:
    """The image that stands for an example, if one does."""
    arrays = task.first.arrays
    if "ranking" in arrays or f"{task.score}_right" in arrays or task.result.kind == "faces":
        return index
    if direction := _direction(task):
        if direction == "image_to_text":
            return index
        pairs = arrays["pairs"]
        return int(pairs[pairs[:, 1] == index][0, 0])
    if isinstance(data, Choices):
        return int(data.image_rows[index, 0])
    if isinstance(data, Statements):
        return int(data.image_rows[index])
    return None


def _open(task: TaskComparison, place: DataPlace | Path) -> _Data:
    """The images of a task from where they were read, if they are the same still."""
    result, names = task.result, task.first.arrays.get("image_names")
    try:
        data = open_test(_task_of(result), place, _image_size(result))[1]
    except InputError as error:
        return _Data(None, str(error).splitlines()[0])
    images = data.images
    if digest([images.identity, len(images)]) != result.data_sha256 and not (
        names is not None
        and len(names) == len(images)
        and all(images.name(index) == names[index] for index in range(len(names)))
    ):
        return _Data(None, "the data is not the same as when it was measured")
    return _Data(data)


def _task_of(result: Result) -> Task:
    kind: Any = result.kind if result.method == "zero-shot" else "classification"
    # JSON has lists where a source has tuples.
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in result.source.items()
    }
    source = DataSource(**fields)
    return Task(result.task, result.title, kind, result.metric, (source,))


def _image_size(result: Result) -> int:
    return int(result.details.get("preprocessing", {}).get("size", THUMBNAIL.size))


def _thumbnail(data: Dataset, index: int) -> bytes:
    try:
        pixels = measured_pixels(data.images[index], THUMBNAIL)
    except UnreadableExampleError:
        pixels = np.zeros((THUMBNAIL.size, THUMBNAIL.size, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def example_lines(
    task: TaskComparison, names: Sequence[str], examples: Sequence[Example], shown: int = 3
) -> Iterator[str]:
    """For the terminal: how many examples each of the two alone gets right, and some of them."""
    for winner, indices in enumerate(task.differing()):
        if not len(indices):
            continue
        loser = 1 - winner
        said = [example for example in examples if example.winner == winner][:shown]
        yield f"{task.name}: {len(indices):,} that {names[winner]} alone gets right, such as"
        for example in said:
            truth = f" ({example.truth})" if example.truth else ""
            guess = f", {names[loser]}: {example.guesses[loser]}" if example.guesses[loser] else ""
            yield f"  {example.name}{truth}{guess}"
