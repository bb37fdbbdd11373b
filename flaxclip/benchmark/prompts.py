"""The words a task is asked in: whose class names and templates, and whether they fit the data."""

from typing import NamedTuple

import numpy as np

from flaxclip.benchmark.datasets import Labelled
from flaxclip.benchmark.tasks import Prompts, PromptSet, Task
from flaxclip.errors import InputError

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""Radford et al. 2021, section 3.1.4."""

Names = tuple[str | tuple[str, ...], ...]


class Wording(NamedTuple):
    """Class names and templates, and where each is from: every result records it."""

    class_names: Names
    templates: tuple[str, ...]
    names_from: str
    templates_from: str
    notes: tuple[str, ...] = ()

    @property
    def shown_names(self) -> tuple[str, ...]:
        """One name a class, for people."""
        return tuple(name if isinstance(name, str) else name[0] for name in self.class_names)


def choose_wording(task: Task, data: Labelled, prompt_set: PromptSet) -> Wording:
    """The words of `prompt_set` for the classes of `data`, in the order of its labels.

    For `clip_benchmark`, names and templates that come with a webdataset go first, as they do
    there. Without any, templates are `DEFAULT_TEMPLATES`.

    Raises:
        InputError: there are no names, or they do not fit the labels.
    """
    own = Prompts(data.class_names, data.templates)
    named = task.prompts.get(prompt_set, Prompts())
    first, second = (own, named) if prompt_set == "clip_benchmark" else (named, own)
    sources = {id(own): "data set", id(named): prompt_set}
    if task.distractors or not own.class_names:
        first, second = named, own
    names, names_from = first.class_names, sources[id(first)]
    if names is None:
        names, names_from = second.class_names, sources[id(second)]
    templates, templates_from = first.templates, sources[id(first)]
    if templates is None:
        templates, templates_from = second.templates, sources[id(second)]
    if templates is None:
        templates, templates_from = DEFAULT_TEMPLATES, "default"
    if names is None:
        raise InputError(
            f"{task.name}: the data set names no classes, nor does {prompt_set}\n"
            "add classnames.txt, a line a class, in the order of the labels"
        )
    if own.class_names and names is not own.class_names:
        names = _in_label_order(task.name, names, own.class_names)
    check_labels(task.name, names, data.labels)
    return Wording(names, templates, names_from, templates_from, tuple(_notes(names, data.labels)))


def _plain(name: str | tuple[str, ...]) -> str:
    first = name if isinstance(name, str) else name[0]
    return "".join(filter(str.isalnum, first.lower()))


def _in_label_order(task: str, names: Names, own: tuple[str, ...]) -> Names:
    """`names` in the order of the data set's own: lists of the same classes differ in it."""
    plain, plain_own = [_plain(name) for name in names], [_plain(name) for name in own]
    if plain == plain_own or len(names) != len(own):
        return names
    if sorted(plain) == sorted(plain_own):
        return tuple(names[plain.index(name)] for name in plain_own)
    for place, name in enumerate(plain):
        if plain_own.count(name) == plain.count(name) == 1 and plain_own.index(name) != place:
            raise InputError(
                f"{task}: class {names[place]!r} is number {place} of the class names, "
                f"but number {plain_own.index(name)} of the data set's own\n"
                "class names must be in the order of the labels"
            )
    return names


def check_labels(task: str, names: Names, labels: np.ndarray) -> None:
    """Raise `InputError` unless there is a name for every label."""
    if labels.ndim == 2:
        if labels.shape[1] != len(names):
            raise InputError(
                f"{task}: {len(names)} class names, but labels of {labels.shape[1]} classes\n"
                "there must be one name for each class"
            )
        return
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        raise InputError(
            f"{task}: label {labels[outside[0]]} of picture {outside[0]} is out of range, "
            f"as are {len(outside) - 1} more\n"
            f"{len(names)} class names: labels must be 0 to {len(names) - 1}"
        )


def check_distinct(names: Names) -> None:
    """Raise `InputError` where two classes share a name."""
    if repeated := {name for name in names if list(names).count(name) > 1}:
        raise InputError(
            f"two classes are named {sorted(repeated)[0]!r}\nthey cannot be told apart by name"
        )


def _notes(names: Names, labels: np.ndarray) -> list[str]:
    notes = []
    if repeated := sorted({str(name) for name in names if names.count(name) > 1}):
        notes.append(f"several classes share a name, and cannot be told apart: {repeated}")
    if labels.ndim == 1:
        empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
        if len(empty):
            shown = ", ".join(str(names[index]) for index in empty[:5])
            notes.append(
                f"{len(empty)} of {len(names)} classes have no picture, and no part in the mean "
                f"per class: {shown}{', ...' if len(empty) > 5 else ''}"
            )
    return notes
