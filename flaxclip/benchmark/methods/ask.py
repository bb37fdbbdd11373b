"""The method that answers a task: by what its data asks for."""

from pathlib import Path
from typing import Literal

from flaxclip.benchmark.datasets import (
    Associations,
    Captioned,
    Choices,
    Faces,
    Multilingual,
    Statements,
    Translated,
)
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.methods.choice import associate_task, choose_task, judge_task
from flaxclip.benchmark.methods.faces import judge_faces
from flaxclip.benchmark.methods.languages import classify_in_languages, retrieve_in_languages
from flaxclip.benchmark.methods.linear_probe import Probe, probe_task
from flaxclip.benchmark.methods.open_set import detect_task
from flaxclip.benchmark.methods.retrieval import retrieve_task
from flaxclip.benchmark.methods.zero_shot import classify_task
from flaxclip.benchmark.prompts import Asked, Detection
from flaxclip.benchmark.results import Findings
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import DataSource, Task

Method = Literal["zero-shot"] | Probe


def ask(
    embedder: Embedder,
    task: Task,
    source: DataSource,
    asked: Asked,
    method: Method,
    data: DataPlace | Path,
) -> Findings:
    """Scores of a model on a task whose test set and words are `asked`.

    Args:
        embedder: the model.
        task: the question.
        source: where the test set is from; a probe's training split is from there, too.
        asked: the test set, with words.
        method: of classes alone there are others than zero-shot.
        data: where sets are, or a folder of them.

    Raises:
        InputError: the task's words, or the training split, cannot be used.
    """
    if isinstance(asked, Captioned):
        return retrieve_task(embedder, asked, task.sub_captions)
    if isinstance(asked, Choices):
        return choose_task(embedder, asked)
    if isinstance(asked, Statements):
        return judge_task(embedder, asked)
    if isinstance(asked, Associations):
        return associate_task(embedder, asked)
    if isinstance(asked, Detection):
        return detect_task(embedder, *asked)
    if isinstance(asked, Faces):
        return judge_faces(embedder, asked)
    if isinstance(asked, Translated):
        return retrieve_in_languages(embedder, asked)
    if isinstance(asked, Multilingual):
        return classify_in_languages(embedder, asked)
    if method == "zero-shot":
        return classify_task(embedder, task, *asked)
    return probe_task(embedder, task, source, *asked, method, data)
