"""What can be measured: tasks by name."""

import dataclasses
from collections.abc import Callable

from flaxclip.benchmark.datasets import LabelledImages, Scenes
from flaxclip.data import scenes
from flaxclip.data.loader import DataConfig
from flaxclip.errors import InputError


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """Name the class of a picture, from the classes' names alone."""

    name: str
    description: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    """Prompts with `{}` for the class's name; their embeddings are averaged."""
    images: Callable[[int], LabelledImages]
    """Opens the pictures for a model that takes that image size."""
    distractors: tuple[str, ...] = ()
    """Further classes that no picture belongs to: a second, harder choice."""


@dataclasses.dataclass(frozen=True)
class RetrievalTask:
    """Find a picture's caption among all captions, and a caption's picture among all pictures."""

    name: str
    description: str
    shards: tuple[str, ...]


Task = ClassificationTask | RetrievalTask

RETRIEVAL_PREFIX = "retrieval:"


def _combination_names(combinations: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(" ".join(combination) for combination in combinations)


def _scenes_task(split: scenes.Split, description: str) -> ClassificationTask:
    names, others = map(_combination_names, (scenes.UNSEEN, scenes.SEEN))
    if split == "seen":
        names, others = others, names
    return ClassificationTask(
        name=f"scenes-{split}",
        description=description,
        class_names=names,
        templates=scenes.PROMPT_TEMPLATES,
        images=lambda image_size: Scenes(split, image_size),
        distractors=others,
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _scenes_task("seen", "colour–shape combinations that training draws and names"),
        _scenes_task("unseen", "combinations that training neither draws nor names"),
        _scenes_task("shift", "those, drawn as training never draws: outlines, noise, palettes"),
    )
}


def find_task(name: str) -> Task:
    """The task of that name, or `retrieval:SHARDS` for pairs of one's own.

    Raises:
        InputError: there is no task of that name.
    """
    if name.startswith(RETRIEVAL_PREFIX):
        shards = name.removeprefix(RETRIEVAL_PREFIX)
        return RetrievalTask("retrieval", f"pairs of {shards}", (shards,))
    if name not in TASKS:
        raise InputError(
            f"unknown task {name!r}\n"
            f"known: {', '.join(TASKS)}, and {RETRIEVAL_PREFIX}SHARDS for image–caption pairs"
        )
    return TASKS[name]


def default_tasks(data: DataConfig) -> list[Task]:
    """The tasks that go with the data that a checkpoint was trained on.

    Raises:
        InputError: there are none.
    """
    if data.path == ("scenes",):
        return list(TASKS.values())
    if data.heldout:
        return [RetrievalTask("retrieval", "held-out pairs", data.heldout)]
    raise InputError(
        "no task named, and the checkpoint's data has none of its own\n"
        f"name some with --tasks: {', '.join(TASKS)}, "
        f"or {RETRIEVAL_PREFIX}SHARDS for image–caption pairs that were held out of training"
    )
