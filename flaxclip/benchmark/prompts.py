"""The words a task is asked in: whose class names and templates, and whether they fit the data."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxclip.benchmark.datasets import Labelled, OpenSet, Worded
from flaxclip.benchmark.tasks import ClassNames, Prompts, PromptSet, Task
from flaxclip.errors import InputError
from flaxclip.zero_shot.class_prompts import (
    DEFAULT_TEMPLATES,
    Names,
    Templates,
    class_prompts,
    first_name,
)


class Wording(NamedTuple):
    """Class names and templates, and where each is from: every result records it."""

    class_names: Names
    templates: Templates
    names_from: str
    templates_from: str
    notes: tuple[str, ...] = ()

    @property
    def shown_names(self) -> tuple[str, ...]:
        """One name a class, for people."""
        return tuple(first_name(name) for name in self.class_names)


class Classification(NamedTuple):
    """Labelled images, and the words that they are asked in."""

    data: Labelled
    wording: Wording


class Detection(NamedTuple):
    """Images of known classes and of others, and the words that the known ones are asked in."""

    data: OpenSet
    wording: Wording


Asked = Classification | Detection | Worded
"""A data set, with words where it has none of its own."""


def choose_wording(
    task: Task, data: Labelled, prompt_set: PromptSet, own: Prompts | None = None
) -> Wording:
    """The words of `prompt_set` for the classes of `data`, in the order of its labels.

    Words of the user's `own` go before all others. For `clip_benchmark`, names and templates that
    come with a webdataset go next, as they do there. Without any, templates are
    `DEFAULT_TEMPLATES`.

    Raises:
        InputError: there are no names, or they do not fit the labels.
    """
    with_data = Prompts(data.class_names, data.templates)
    named = task.prompts.get(prompt_set, Prompts())
    order = [(with_data, "data set"), (named, "clip_benchmark" if task.language else prompt_set)]
    has_own = task.distractors or task.language or task.kind == "open-set"
    if prompt_set != "clip_benchmark" or has_own or not data.class_names:
        order.reverse()
    if own is not None:
        order.insert(0, (own, "prompt file"))
    names, names_from = next(
        ((p.class_names, where) for p, where in order if p.class_names is not None), (None, "")
    )
    templates, templates_from = next(
        ((p.templates, where) for p, where in order if p.templates is not None),
        (DEFAULT_TEMPLATES, "default"),
    )
    if names is None:
        raise InputError(
            f"{task.name}: the data set names no classes, nor does {prompt_set}\n"
            "add classnames.txt, a line a class, in the order of the labels"
        )
    if data.class_names and names is not data.class_names:
        names = _in_label_order(task.name, names, data.class_names)
    check_labels(task.name, names, data.labels)
    notes = tuple(_notes(names, templates, data.labels))
    return Wording(names, templates, names_from, templates_from, notes)


def read_prompts(file: Path) -> dict[str, Prompts]:
    """A user's own words: JSON of task -> its words, of which either may be left out.

        {"stl10": {"class_names": ["cat", ["dog", "hound"]], "templates": ["a sketch of a {}"]}}

    Instead of that dict, also a list of templates, or a dict of class -> its own prompts, as
    CLIP_benchmark's `--custom_template_file` has them; `{c}` is `{}`.

    Raises:
        InputError: the file is not there, or not of this form.
    """
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read prompts from {file}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no JSON object\nexpected task names and their words")
    return {task: _prompts(words, f"{file}: {task}") for task, words in content.items()}


def _prompts(words: Any, where: str) -> Prompts:
    if not (isinstance(words, dict) and set(words) <= {"class_names", "templates"}):
        words = {"templates": words}
    names, templates = words.get("class_names"), words.get("templates")
    if names is not None:
        if not (isinstance(names, list) and names):
            raise InputError(f"{where}: class_names must be a list with a name for each class")
        names = tuple(
            _texts(name, where) if isinstance(name, list) else _texts([name], where)[0]
            for name in names
        )
    if isinstance(templates, dict):
        templates = {name: _texts(texts, f"{where}, {name}") for name, texts in templates.items()}
    elif templates is not None:
        templates = tuple(text.replace("{c}", "{}") for text in _texts(templates, where))
    return Prompts(names, templates)


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not (isinstance(value, list) and value and all(isinstance(text, str) for text in value)):
        raise InputError(f"{where}: found {value!r}\nexpected a list of texts, one at least")
    return tuple(value)


def _plain(name: str | tuple[str, ...]) -> str:
    return "".join(filter(str.isalnum, first_name(name).lower()))


def _in_label_order(task: str, names: ClassNames, own: tuple[str, ...]) -> ClassNames:
    """`names` in the order of the data set's own: lists of the same classes differ in it."""
    if len(names) != len(own):
        raise InputError(
            f"{task}: {len(names)} class names, but the data set has {len(own)} classes: "
            f"{', '.join(own[:5])}{', ...' if len(own) > 5 else ''}\n"
            "there must be one name for each class, in the order of the labels"
        )
    # "C", "C++" and "C#" would be one without their signs.
    by_signs = {name for name, count in Counter(map(_plain, set(own))).items() if count > 1}
    plain, plain_own = (
        [first_name(n).lower() if _plain(n) in by_signs else _plain(n) for n in each]
        for each in (names, own)
    )
    if plain == plain_own:
        return names
    if sorted(plain) == sorted(plain_own):
        # Of classes that share a name, the first goes to the first: their synonyms may differ.
        places = {name: iter([i for i, p in enumerate(plain) if p == name]) for name in plain}
        return tuple(names[next(places[name])] for name in plain_own)
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
            f"{task}: label {labels[outside[0]]} of image {outside[0]} is out of range, "
            f"as are {len(outside) - 1} more\n"
            f"{len(names)} class names: labels must be 0 to {len(names) - 1}"
        )


def _notes(names: Names, templates: Templates, labels: np.ndarray) -> list[str]:
    notes = []
    asked = class_prompts(names, templates)
    named = [(name,) if isinstance(name, str) else tuple(name) for name in names]
    counts = Counter(asked)
    repeated = [name for name, prompts in zip(named, asked, strict=True) if counts[prompts] > 1]
    if repeated:
        notes.append(
            "several classes share a name, and cannot be told apart: "
            f"{_some(sorted({', '.join(name) for name in repeated}))}; the first has their images"
        )
    if not isinstance(templates, Mapping):
        classes_of = Counter(synonym for synonyms in named for synonym in set(synonyms))
        shared = {synonym for synonym, count in classes_of.items() if count > 1}
        if shared := shared.difference(*repeated):
            notes.append(f"names that several classes have, beside others: {_some(sorted(shared))}")
        twice = [", ".join(name) for name in named if len(set(name)) < len(name)]
        if twice:
            notes.append(f"a name that stands twice in a class counts twice: {_some(twice)}")
    if labels.ndim == 1:
        empty = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
        if len(empty):
            notes.append(
                f"{len(empty)} of {len(names)} classes have no image, and no part in the mean "
                f"per class: {_some([str(names[index]) for index in empty.tolist()])}"
            )
    return notes


def _some(names: Sequence[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
