"""What can be measured: tasks and suites by name, read from `suites/`."""

import dataclasses
import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic
import yaml

from flaxclip.benchmark.sets.hub import is_on_hub, parse_address
from flaxclip.data.sources import scenes
from flaxclip.errors import InputError

Kind = Literal[
    "classification",
    "multilabel",
    "retrieval",
    "choice",
    "statements",
    "association",
    "open-set",
    "faces",
    "multilingual-retrieval",
    "multilingual-classification",
]
Reader = Literal[
    "wds",
    "tfds",
    "folder",
    "parquet",
    "pairs",
    "scenes",
    "sugarcrepe",
    "winoground",
    "winogavil",
    "sugarcrepe++",
    "aro",
    "aro-order",
    "mmvp",
    "valse",
    "negbench-choices",
    "negbench-retrieval",
    "waterbirds",
    "celeba",
    "wds-faces",
    "imagenet-c",
    "imagenet-w",
    "imagenet-ood",
    "wds-ood",
    "docci",
    "dci",
    "urban1k",
    "crossmodal3600",
    "lined-captions",
    "flickr-annotations",
    "babel-imagenet",
]
"""What reads a set: a name of `readers.READERS`."""
PromptSet = Literal["clip_benchmark", "openai"]
"""Who published the prompts: the two differ for some tasks, and scores with them."""
PROMPT_SETS: tuple[PromptSet, ...] = get_args(PromptSet)
ClassNames = tuple[str | tuple[str, ...], ...]
"""One for each class; a class with several names has the prompts of all of them averaged."""

SUITES = Path(__file__).parent / "suites"
"""Folder of tasks, suites and words, as data."""


@dataclasses.dataclass(frozen=True)
class DataSource:
    """Where a task's images can be read."""

    reader: Reader
    name: str
    """Name there, or the path of a set of one's own."""
    split: str = "test"
    train: str | None = "train"
    """Split to train a probe on."""
    validation: str | None = None
    """Split to choose a probe's regularisation on; if None, a fifth of `train` is set aside."""
    label: str = "label"
    image: str = "image"
    url: str | None = None
    """Where the set is had, if not by the reader's own means."""
    hub: str | None = None
    """Repository of the Hub that has it, as OWNER/NAME[@REVISION]. If None, `wds` alone finds its
    repository, by the name."""
    captions: Literal["all", "first"] = "all"
    """Of several that an image has."""
    prompts: str | None = None
    """File of templates, where a set has them apart from its class names."""
    outside: tuple[str, ...] = ()
    """Sets of other classes, of one that asks which images are of its own."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Words for classes. If None, those that come with the data."""

    class_names: ClassNames | None = None
    templates: tuple[str, ...] | dict[str, tuple[str, ...]] | None = None
    """Prompts with `{}` for the class's name, or for each class its own; their embeddings are
    averaged."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One question asked of a model about one set of images."""

    name: str
    title: str
    kind: Kind
    metric: str
    """The score that is quoted."""
    sources: tuple[DataSource, ...]
    """In order of preference: the first one that is on this machine is read."""
    examples: int | None = None
    classes: int | None = None
    prompts: dict[PromptSet, Prompts] = dataclasses.field(default_factory=dict)
    group: int | None = None
    """Column of the set's metadata that says which group an image belongs to."""
    group_names: tuple[str, ...] | None = None
    """Of that column's numbers, where they are known."""
    corruption_level: int | None = None
    """Of ImageNet-C: errors are also told relative to AlexNet's at that level."""
    preprocessing: str | None = None
    """How images or labels were made out of what the set's authors published."""
    distractors: tuple[str, ...] = ()
    """Further classes that no image belongs to: a second, harder choice."""
    sub_captions: bool = False
    """Of retrieval: captions are asked sentence by sentence, and each is their mean."""
    language: str | None = None
    """If not None, the task is to ask in that language: its words go before the data set's own,
    and are the same whichever set of prompts is asked for."""
    languages: tuple[str, ...] = ()
    """Of a multilingual task, those to ask in. If empty, all that the data have."""


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by their names, those of suites, and READER:PATH for data of one's own.

    Of a multilingual task, some languages alone are `TASK:LANGUAGE,LANGUAGE`.

    Raises:
        InputError: there is no task or suite of that name, two sets of one's own have one name, or
            what follows the colon is missing.
    """
    tasks: dict[str, Task] = {}
    for name in names:
        for task in _find(name):
            if tasks.setdefault(task.name, task) != task:
                raise InputError(
                    f"both {tasks[task.name].title} and {task.title} are called {task.name!r}, and "
                    "so would their results be\nmeasure them one by one, each with its own --out"
                )
    return list(tasks.values())


OWN_DATA: dict[str, tuple[Reader, Kind, str]] = {
    "retrieval": ("pairs", "retrieval", "text_to_image_recall@1"),
    "wds": ("wds", "classification", "top1"),
    "wds-multilabel": ("wds", "multilabel", "mean_average_precision"),
    "wds-retrieval": ("wds", "retrieval", "text_to_image_recall@5"),
    "folder": ("folder", "classification", "top1"),
    "parquet": ("parquet", "classification", "top1"),
    "tfds": ("tfds", "classification", "top1"),
}
"""Prefix of a task's name -> reader, kind and metric."""


def _find(name: str) -> list[Task]:
    prefix, colon, path = name.partition(":")
    if colon and prefix in OWN_DATA:
        if not path:
            raise InputError(f"task {name!r} names no data\nwrite {name}PATH")
        reader, kind, metric = OWN_DATA[prefix]
        short = prefix if prefix == "retrieval" else _short_name(path) or prefix
        return [Task(short, name, kind, metric, (DataSource(reader, path),))]
    tasks, suites = all_tasks(), all_suites()
    if colon and prefix in tasks and tasks[prefix].kind.startswith("multilingual"):
        languages = tuple(filter(None, path.split(",")))
        if not languages:
            raise InputError(f"task {name!r} names no language\nleave the colon out to ask in all")
        short = f"{prefix}-{'-'.join(languages)}"
        return [dataclasses.replace(tasks[prefix], name=short, languages=languages)]
    if name in suites:
        return [tasks[task] for task in suites[name]]
    if name not in tasks:
        close = " or ".join(difflib.get_close_matches(name, [*suites, *tasks]))
        raise InputError(
            f"unknown task {name!r}{close and f': perhaps {close}'}\n"
            f"suites: {', '.join(suites)}\ntasks: {', '.join(tasks)}\n"
            f"or data of your own: {', '.join(f'{own}:PATH' for own in OWN_DATA)}"
        )
    return [tasks[name]]


def _short_name(path: str) -> str:
    if is_on_hub(path):
        address = parse_address(path)
        path = address.folder or str(address.name)
    elif Path(path).name in ("", ".."):  # a folder from within it
        path = str(Path(path).resolve())
    return Path(path).stem.removeprefix("wds_")


@functools.cache
def all_suites() -> dict[str, list[str]]:
    """Suite -> names of its tasks."""
    return {name: suite["tasks"] for name, suite in _read("suites.yaml").items()}


@functools.cache
def all_tasks() -> dict[str, Task]:
    """Every task with a name."""
    tasks = {name: _task(name, fields) for name, fields in _read("tasks.yaml").items()}
    return tasks | {task.name: task for task in _scenes_tasks()}


def _read(file: str) -> dict[str, Any]:
    text = (SUITES / file).read_text()
    return json.loads(text) if file.endswith(".json") else yaml.safe_load(text)


def _task(name: str, fields: dict[str, Any]) -> Task:
    key = fields.pop("prompts", name)
    prompts = {}
    for set_name in PROMPT_SETS:
        published_by = "clip_benchmark" if fields.get("language") else set_name
        prompts[set_name] = Prompts(
            class_names=_words("class_names.json", published_by, key),
            templates=_words("templates.json", published_by, key),
        )
    return pydantic.TypeAdapter(Task).validate_python(fields | {"name": name, "prompts": prompts})


@functools.cache
def _tables(file: str) -> dict[str, dict[str, list]]:
    return _read(file)


_Key = str | Mapping[str, "_Key"]
"""Of words: one, or by the kind of words, and these by who published them."""


def _words(file: str, set_name: PromptSet, key: _Key | None) -> tuple[Any, ...] | None:
    for level in (file.removesuffix(".json"), set_name):
        if isinstance(key, Mapping):
            key = key.get(level)
    words = _tables(file)[set_name].get(key) if isinstance(key, str) else None
    if words is None:
        return None
    return tuple(tuple(word) if isinstance(word, list) else word for word in words)


_SCENES = {
    "seen": "colour–shape combinations that training draws and names",
    "unseen": "combinations that training neither draws nor names",
    "shift": "those, drawn as training never draws: outlines, noise, palettes",
    "wide": "those, on canvases of 1:4 to 4:1",
}


def _scenes_tasks() -> list[Task]:
    def names(combinations: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        return tuple(" ".join(combination) for combination in combinations)

    seen, unseen = names(scenes.SEEN), names(scenes.UNSEEN)
    return [
        Task(
            name=f"scenes-{split}",
            title=title,
            kind="classification",
            metric="top1",
            sources=(DataSource("scenes", split, train="train" if split == "seen" else None),),
            classes=len(seen if split == "seen" else unseen),
            prompts=dict.fromkeys(
                PROMPT_SETS,
                Prompts(seen if split == "seen" else unseen, scenes.PROMPT_TEMPLATES),
            ),
            distractors=unseen if split == "seen" else seen,
        )
        for split, title in _SCENES.items()
    ]
