"""One checkpoint on many tasks: what is done is kept, what is not there is reported."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxclip.benchmark.choice import choose_task
from flaxclip.benchmark.datasets import Captioned, Choices, Dataset, Labelled, MissingDataError
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.linear_probe import (
    Split,
    few_shot,
    linear_probe,
    nearest_neighbours,
    set_aside,
)
from flaxclip.benchmark.pictures import SHOWN, draw_overview, save_mistakes, save_retrieved
from flaxclip.benchmark.prompts import Wording, check_distinct, choose_wording
from flaxclip.benchmark.readers import open_split, open_test
from flaxclip.benchmark.results import digest, make_record, read_record, write_record
from flaxclip.benchmark.retrieval import retrieve_task
from flaxclip.benchmark.tasks import DataSource, PromptSet, Task
from flaxclip.benchmark.zero_shot import Result, classify_task
from flaxclip.errors import InputError

Method = Literal["zero-shot", "linear-probe", "few-shot", "knn"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tasks are measured."""

    data_dir: Path
    out: Path
    prompts: PromptSet = "clip_benchmark"
    methods: tuple[Method, ...] = ("zero-shot",)


class Measured(NamedTuple):
    """Records of results, and what could not be measured."""

    records: list[dict[str, Any]]
    missing: dict[str, str]
    """Task -> what to do about it."""


def measure_tasks(
    embedder: Embedder,
    checkpoint: dict[str, Any],
    tasks: Sequence[Task],
    settings: Settings,
    say: Callable[[str], None],
) -> Measured:
    """Measure every task that is on this machine, each by every method that fits it.

    A result that is there already, of the same checkpoint, data and words, is not made again.

    Raises:
        InputError: a task's data or words cannot be used.
    """
    records, missing = [], {}
    for task in tasks:
        try:
            source, data = open_test(task, settings.data_dir, embedder.model.transform.size)
        except MissingDataError as error:
            missing[task.name] = str(error)
            say(f"{task.name}: not on this machine, left out")
            continue
        for method in settings.methods:
            if method != "zero-shot" and not _can_be_probed(source, data):
                say(f"{task.name}: no training split with one class a picture: no {method}")
                continue
            records.append(
                _measure(embedder, checkpoint, task, source, data, method, settings, say)
            )
    return Measured(records, missing)


def _can_be_probed(source: DataSource, data: Dataset) -> bool:
    return isinstance(data, Labelled) and data.labels.ndim == 1 and source.train is not None


def _measure(
    embedder: Embedder,
    checkpoint: dict[str, Any],
    task: Task,
    source: DataSource,
    data: Dataset,
    method: Method,
    settings: Settings,
    say: Callable[[str], None],
) -> dict[str, Any]:
    wording = None
    if isinstance(data, Labelled):
        if task.name.startswith("images-"):
            check_distinct(data.class_names)
        wording = choose_wording(task, data, settings.prompts)
    identity = {
        "task": task.name,
        "title": task.title,
        "method": method,
        "kind": task.kind if method == "zero-shot" else method,
        "metric": task.metric if method == "zero-shot" else _probe_metric(method),
        "checkpoint": checkpoint,
        "parameters_sha256": embedder.checkpoint,
        "source": dataclasses.asdict(source),
        "data_sha256": digest([data.pictures.identity, len(data.pictures)]),
    }
    if wording is not None:
        identity |= _words(task, wording, settings.prompts if method == "zero-shot" else None)
    kept = {name: identity[name] for name in identity if name not in ("checkpoint", "source")}
    identity["identity_sha256"] = digest(kept | {"batch_size": embedder.batch_size})
    suffix = "" if method == "zero-shot" else f".{method}"
    stem = settings.out / f"{task.name}{suffix}"
    done = stem.with_name(stem.name + ".json")
    record = read_record(done) if _main() and done.exists() else None
    is_done = record is not None and record["identity_sha256"] == identity["identity_sha256"]
    if _agreed(is_done):
        say(f"{task.name}, {method}: measured before, kept")
        return record if _main() else {}

    say(f"{task.name}, {method}: {len(data.pictures):,} pictures")
    if method == "zero-shot":
        result = _zero_shot(embedder, task, data, wording)
    else:
        classes = len(wording.class_names)
        result = _probe(embedder, task, source, data, method, classes, settings.data_dir)
    notes = list(result.notes)
    if task.examples not in (None, len(data.pictures)):
        notes.append(
            f"the set has {len(data.pictures):,} pictures here, {task.examples:,} where published"
        )
    details = dict(result.details)
    if embedder.model.config.dtype != "float32":
        details["cosine_distance_from_float32"] = embedder.dtype_difference(data.pictures)
    if _main() and method == "zero-shot":
        details |= _draw(embedder, data, wording, result, stem)
    result = result._replace(details=details, notes=tuple(notes))
    record = make_record(identity, embedder, len(data.pictures), result)
    if _main():
        write_record(record, result.arrays, stem)
    return record


def _main() -> bool:
    return jax.process_index() == 0


def _agreed(flag: bool) -> bool:
    """Process 0's word: hosts need not share a file system."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def _probe_metric(method: Method) -> str:
    return "top1_16_shot" if method == "few-shot" else "top1"


def _words(task: Task, wording: Wording, prompt_set: PromptSet | None) -> dict[str, Any]:
    names = {"class_names": wording.class_names}
    if prompt_set is None:
        return names
    words = names | {"distractors": task.distractors, "templates": wording.templates}
    return words | {
        "prompt_set": prompt_set,
        "class_names_from": wording.names_from,
        "templates_from": wording.templates_from,
        "prompts_sha256": digest(words),
    }


def _zero_shot(embedder: Embedder, task: Task, data: Dataset, wording: Wording | None) -> Result:
    if isinstance(data, Captioned):
        return retrieve_task(embedder, data)
    if isinstance(data, Choices):
        return choose_task(embedder, data)
    return classify_task(embedder, task, data, wording)


def _probe(
    embedder: Embedder,
    task: Task,
    source: DataSource,
    data: Labelled,
    method: Method,
    classes: int,
    data_dir: Path,
) -> Result:
    size = embedder.model.transform.size
    unreadable: list[str] = []

    def embed(part: Labelled) -> Split:
        zimg, broken = embedder.embed_images(part.pictures)
        unreadable.extend(broken)
        if part.labels.min() < 0 or part.labels.max() >= classes:
            raise InputError(
                f"{task.name}: a training label is out of range 0 to {classes - 1}\nmend the set"
            )
        return Split(zimg, part.labels)

    train = embed(open_split(task, source, "train", data_dir, size))
    held_out = open_split(task, source, "validation", data_dir, size)
    test = embed(data)
    if method == "knn":
        result = nearest_neighbours(train, test, classes)
    else:
        if held_out is None:
            train, validation = set_aside(train)
        else:
            validation = embed(held_out)
        fit = linear_probe if method == "linear-probe" else few_shot
        result = fit(train, validation, test, classes)
    return result._replace(unreadable=tuple(unreadable))


def _draw(
    embedder: Embedder, data: Dataset, wording: Wording | None, result: Result, stem: Path
) -> dict[str, Any]:
    """Pictures of the result; returns what the page needs to show them."""
    folder = stem.with_name(f"{stem.name}-pictures")
    if isinstance(data, Captioned):
        shown, found = (result.arrays[f"image_to_text_{name}"] for name in ("shown", "found"))
        first = dict(map(tuple, data.pairs[::-1]))  # of several captions, the first
        truths = [data.captions[first[int(index)]] for index in shown]
        guesses = [[data.captions[best] for best in row[:3]] for row in found]
        draw_overview(embedder, data.pictures, truths, truths, guesses, shown, stem)
        return {"retrieved": save_retrieved(result, data, folder)}
    if not isinstance(data, Labelled) or data.labels.ndim != 1:
        return {}
    names = wording.shown_names
    # Evenly spread: neighbours in a data set are often of one class.
    count = len(data.pictures)
    shown = np.linspace(0, count - 1, min(SHOWN, count)).astype(int)
    truths = [names[data.labels[index]] for index in shown]
    captions = [wording.templates[0].replace("{}", truth) for truth in truths]
    guesses = [[names[best] for best in result.arrays["ranking"][index, :3]] for index in shown]
    draw_overview(embedder, data.pictures, truths, captions, guesses, shown, stem)
    return {"mistakes": save_mistakes(result, data, names, folder)}
