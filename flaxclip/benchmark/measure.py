"""One checkpoint on many tasks: what is done is kept, what is not there is reported."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxclip.benchmark.between_hosts import broadcast_from_host_0, gather_arrays, together
from flaxclip.benchmark.datasets import (
    Dataset,
    Labelled,
    MissingDataError,
    OpenSet,
)
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.images import draw_result
from flaxclip.benchmark.methods.ask import Method, ask
from flaxclip.benchmark.methods.linear_probe import PROBE_METRICS
from flaxclip.benchmark.prompts import Asked, Classification, Detection, Wording, choose_wording
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.results import (
    MeasuredCheckpoint,
    Result,
    digest,
    print_table,
    read_result,
    unreadable_lines,
    write_result,
    write_text,
)
from flaxclip.benchmark.robustness import published_scores
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import DataSource, Prompts, PromptSet, Task
from flaxclip.data.sources.left_out import describe_counts
from flaxclip.errors import InputError

PACKAGES = ("flaxclip", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow", "tokenizers", "ftfy")
"""Whose versions a result keeps."""
_ASKED = ("task", "title", "method", "kind", "metric", "parameters_sha256", "data_sha256")
"""Fields of a result that say what was measured."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tasks are measured."""

    data: DataPlace | Path
    out: Path
    prompts: PromptSet = "clip_benchmark"
    methods: tuple[Method, ...] = ("zero-shot",)
    own_prompts: Mapping[str, Prompts] = dataclasses.field(default_factory=dict)
    """Task -> words that go before those of `prompts`."""


class Measured(NamedTuple):
    """Results, and what could not be measured: task -> what to do about it."""

    results: list[Result]
    missing: dict[str, str]
    failed: dict[str, str]
    fresh: list[Result]
    """Those of `results` that were not there already."""


def measure_tasks(
    embedder: Embedder,
    checkpoint: MeasuredCheckpoint,
    tasks: Sequence[Task],
    settings: Settings,
    say: Callable[[str], None],
) -> Measured:
    """Measure every task that is on this machine, each by every method that fits it.

    A result that is there already, of the same checkpoint, data and words, is not made again,
    unless images of it were unreadable. A task whose data or words cannot be used fails alone.
    """
    found = Measured([], {}, {}, [])
    for task in tasks:
        try:
            # An error of one host is one of all: each goes on to the next task with the others.
            with together():
                source, data = _open(task, settings.data, embedder.model.transform.size)
                for method in settings.methods:
                    if method != "zero-shot" and not _can_be_probed(source, data):
                        say(f"{task.name}: no training split with one class an image: no {method}")
                        continue
                    result, is_fresh = _measure(
                        embedder, checkpoint, task, source, data, method, settings, say
                    )
                    found.results.append(result)
                    if is_fresh:
                        found.fresh.append(result)
        except MissingDataError as error:
            found.missing[task.name] = str(error)
            reason = str(error).splitlines()[:2][-1]  # the first says what is missing
            say(f"{task.name}: left out: {reason}")
        except InputError as error:
            reason = str(error).removeprefix(f"{task.name}: ")
            found.failed[task.name] = f"{task.name}: {reason}"
            say(f"{task.name}: failed: {_indented(reason)}")
    known = {task.name for task in tasks} | {s.name for task in tasks for s in task.sources}
    if unknown := sorted(set(settings.own_prompts) - known):
        say(f"the prompt file has words for no task that was measured here: {', '.join(unknown)}")
    return found


def print_measured(measured: Measured, checkpoint: MeasuredCheckpoint, out: Path) -> None:
    """Print scores, notes, and what was left out, which `out/missing.txt` lists, too."""
    step = "" if checkpoint.step is None else f", step {checkpoint.step}"
    print(f"{checkpoint.path}{step}")
    if measured.results:
        print_table(measured.results)
    for result in measured.results:
        for line in unreadable_lines(result):
            print(f"{result.task}: {line}")
        for note in result.notes:
            print(f"{result.task}: {note}")
    for message in measured.missing.values():
        print(f"left out: {_indented(message)}")
    missing = out / "missing.txt"
    write_text(missing, "\n\n".join(measured.missing.values()) + "\n")
    if not measured.missing:
        missing.unlink()
    if measured.results:
        print(f"results and images: {out}")


def _indented(message: str) -> str:
    """Lines after the first stand behind it, so that what follows is seen to be another's."""
    return message.replace("\n", "\n  ")


def _open(task: Task, data: DataPlace | Path, image_size: int) -> tuple[DataSource, Dataset]:
    """The task's test set, of which every host must have the same number of images."""
    source, dataset = open_test(task, data, image_size)
    counts = gather_arrays(np.array(len(dataset.images))).tolist()
    if len(set(counts)) > 1:
        there = ", ".join(f"{count:,}" for count in counts)
        raise InputError(
            f"hosts do not have the same images of {task.name}: {there}\n"
            "put the same data on all of them"
        )
    return source, dataset


def _can_be_probed(source: DataSource, data: Dataset) -> bool:
    return isinstance(data, Labelled) and data.labels.ndim == 1 and source.train is not None


def _measure(
    embedder: Embedder,
    checkpoint: MeasuredCheckpoint,
    task: Task,
    source: DataSource,
    data: Dataset,
    method: Method,
    settings: Settings,
    say: Callable[[str], None],
) -> tuple[Result, bool]:
    """The result, and whether it was made now; scores of one that was kept are on host 0 alone."""
    asked: Asked
    own = settings.own_prompts.get(task.name, settings.own_prompts.get(source.name))
    if isinstance(data, Labelled):
        asked = Classification(data, choose_wording(task, data, settings.prompts, own))
        words = _words(task, asked.wording, settings.prompts if method == "zero-shot" else None)
    elif isinstance(data, OpenSet):
        asked = Detection(data, choose_wording(task, data.inside, settings.prompts, own))
        words = _words(task, asked.wording, settings.prompts)
        words["outside_sha256"] = digest({n: i.identity for n, i in data.outside.items()})
    else:
        asked, words = data, {"texts_sha256": _asked_sha256(data)}
    suffix = "" if method == "zero-shot" else f".{method}"
    stem = settings.out / f"{task.name}{suffix}"
    done = stem.with_name(stem.name + ".json")
    if not done.exists():
        embedder.compile_ahead(len(data.images))
    result = Result(
        task=task.name,
        title=task.title,
        method=method,
        kind=task.kind if method == "zero-shot" else method,
        metric=task.metric if method == "zero-shot" else PROBE_METRICS[method],
        checkpoint=checkpoint,
        parameters_sha256=embedder.checkpoint,
        source=dataclasses.asdict(source),
        data_sha256=digest([data.images.identity, len(data.images)]),
        task_preprocessing=task.preprocessing,
        identity_sha256="",
        examples=len(data.images),
    )
    identity = {name: getattr(result, name) for name in _ASKED}
    identity |= words | {"batch_size": embedder.batch_size}
    result = dataclasses.replace(result, identity_sha256=digest(identity))
    before = read_result(done) if _main() and done.exists() else None
    is_done = (
        before is not None
        and before.identity_sha256 == result.identity_sha256
        and not before.unreadable  # which may be readable by now, or too many
    )
    if broadcast_from_host_0(is_done):
        say(f"{task.name}, {method}: measured before, kept")
        return before or result, False

    say(f"{task.name}, {method}: {len(data.images):,} images")
    findings = ask(embedder, task, source, asked, method, settings.data)
    notes = list(findings.notes)
    if task.examples not in (None, len(data.images)):
        notes.append(
            f"the set has {len(data.images):,} images here, {task.examples:,} where published"
        )
    details = dict(findings.details)
    if left_out := getattr(data, "left_out", None):
        details["left_out"] = left_out
        notes.append(f"left out of the set: {describe_counts(left_out)}")
    if task.language is not None:
        details["language"] = task.language
    if method == "zero-shot":
        details["published"] = published_scores(task.name, task.metric)
    if embedder.model.compute.dtype != "float32":
        distance = details["cosine_distance_from_float32"] = embedder.dtype_difference(data.images)
        notes.append(
            f"{embedder.model.compute.dtype} activations: cosine distance of images from float32 "
            f"{distance['mean']:.2g} on average, {distance['max']:.2g} at most"
        )
    with _room_in(settings.out):
        if _main() and method == "zero-shot":
            details |= draw_result(embedder, asked, findings, stem)
    result = dataclasses.replace(
        result,
        metric=next(reversed(findings.scores)) if method == "few-shot" else result.metric,
        scores=findings.scores,
        unreadable=findings.unreadable,
        notes=tuple(notes),
        details=words | details | _how_computed(embedder),
    )
    if _main():
        with _room_in(settings.out):
            write_result(result, findings.arrays | _about_examples(data), stem)
    return result, True


@contextlib.contextmanager
def _room_in(out: Path) -> Iterator[None]:
    """A full disk is an `InputError`: other tasks, of which results are smaller, go on."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write results into {out}: {error.strerror or error}\n"
            "make room, or name another folder with --out"
        ) from None


def _about_examples(data: Dataset) -> dict[str, np.ndarray]:
    """What finds the examples of two results that were made apart."""
    names = [data.images.name(index) for index in range(len(data.images))]
    arrays = {"image_names": np.array(names)}
    if isinstance(data, Labelled) and data.groups is not None:
        arrays["groups"] = data.groups
    return arrays


def _main() -> bool:
    return jax.process_index() == 0


def _how_computed(embedder: Embedder) -> dict[str, Any]:
    model = embedder.model
    return {
        "model": dataclasses.asdict(model.config),
        "compute": dataclasses.asdict(model.compute),
        "preprocessing": {"size": model.transform.size} | dataclasses.asdict(model.spec.preprocess),
        "tokenizer": dataclasses.asdict(model.spec.tokenizer),
        "versions": {name: version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
    }


def _words(task: Task, wording: Wording, prompt_set: PromptSet | None) -> dict[str, Any]:
    names: dict[str, Any] = {"class_names": wording.class_names}
    if prompt_set is None:
        return names
    words = names | {"distractors": task.distractors, "templates": wording.templates}
    return words | {
        "prompt_set": prompt_set,
        "class_names_from": wording.names_from,
        "templates_from": wording.templates_from,
        "prompts_sha256": digest(words),
    }


def _asked_sha256(data: Dataset) -> str:
    """Of all that is asked beside the images: a result is of these texts and no others."""
    hasher = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if isinstance(leaf, str | np.ndarray):
            hasher.update(jax.tree_util.keystr(path).encode())
            hasher.update(leaf.encode() if isinstance(leaf, str) else leaf.tobytes())
    return hasher.hexdigest()[:32]
