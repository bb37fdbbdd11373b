"""Measure a checkpoint.

python -m flaxclip.benchmark runs/quickstart
python -m flaxclip.benchmark runs/mine --tasks retrieval:'shards/heldout-*.tar' --out results
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from flaxclip.api import CLIPModel, load
from flaxclip.benchmark.report import (
    draw_predictions,
    draw_similarities,
    print_table,
    result_record,
    write_json,
)
from flaxclip.benchmark.retrieval import retrieve_task
from flaxclip.benchmark.scores import Score
from flaxclip.benchmark.tasks import ClassificationTask, RetrievalTask, default_tasks, find_task
from flaxclip.benchmark.zero_shot import classify_task
from flaxclip.checkpoint import load_config, resolve_checkpoint
from flaxclip.data.loader import DataConfig
from flaxclip.data.transforms import preprocess
from flaxclip.data.webdataset import WebDatasetSource
from flaxclip.errors import InputError, exit_on_input_error

PICTURES = 12


@dataclasses.dataclass(frozen=True)
class Command:
    """Measure a checkpoint, zero-shot."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Workdir of a training run (its latest step), or WORKDIR/checkpoints/STEP."""
    tasks: tuple[str, ...] = ()
    """Names of tasks, or retrieval:SHARDS for image–caption pairs. None: those of the data that
    the checkpoint was trained on."""
    out: Path | None = None
    """Folder for results. None: WORKDIR/benchmark/STEP."""
    batch_size: int = 256
    """Pictures at once."""


def main() -> None:
    """The command line."""
    command = tyro.cli(Command, prog="python -m flaxclip.benchmark")
    with exit_on_input_error("flaxclip.benchmark"):
        run(command)


def run(command: Command) -> None:
    """Measure, print a table, and write a JSON file and pictures for each task.

    Raises:
        InputError: no such checkpoint or task, or a folder that cannot be written.
    """
    if command.batch_size < 1:
        raise InputError(f"batch size is {command.batch_size}\nit must be at least 1")
    workdir, step = resolve_checkpoint(command.checkpoint)
    data = load_config(workdir, "data", DataConfig)
    tasks = [find_task(name) for name in command.tasks] or default_tasks(data)
    model = load(command.checkpoint)
    out = command.out or Path(workdir) / "benchmark" / str(step)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write results into {out}: {error.strerror}\nname another folder with --out"
        ) from None

    records = []
    for task in tasks:
        measure = measure_classification if isinstance(task, ClassificationTask) else measure_pairs
        examples, scores, unreadable = measure(model, task, command.batch_size, out)
        checkpoint = {"workdir": str(workdir), "step": step}
        record = result_record(checkpoint, model, task, examples, scores, unreadable)
        write_json(record, out / f"{task.name}.json")
        records.append(record)
    print(f"{workdir}, step {step}")
    print_table(records)
    for record in records:
        for picture in record["unreadable"]:
            print(f"{record['task']}: counted as black, because unreadable: {picture}")
    print(f"results and pictures: {out}")


Measured = tuple[int, dict[str, Score], tuple[str, ...]]


def measure_classification(
    model: CLIPModel, task: ClassificationTask, batch_size: int, out: Path
) -> Measured:
    """Scores of the task; writes a grid of predictions and a similarity matrix."""
    result = classify_task(model, task, batch_size)
    images = task.images(model.transform.size)
    # Evenly spread: neighbours in a data set are often of one class.
    shown = np.linspace(0, len(images) - 1, min(PICTURES, len(images))).astype(int)
    pictures = [preprocess(images[int(index)], model.transform) for index in shown]
    truths = [task.class_names[result.labels[index]] for index in shown]
    guesses = [[task.class_names[best] for best in result.ranking[index, :3]] for index in shown]
    draw_predictions(pictures, truths, guesses, out / f"{task.name}-predictions.png")
    captions = [task.templates[0].format(truth) for truth in truths]
    similarities = np.asarray(
        model.encode_image(np.stack(pictures)) @ model.encode_text(captions).T
    )
    draw_similarities(pictures, captions, similarities, out / f"{task.name}-similarities.png")
    return len(images), result.scores, result.unreadable


def measure_pairs(model: CLIPModel, task: RetrievalTask, batch_size: int, out: Path) -> Measured:
    """Scores of the task; writes a grid of pictures with the captions found, and similarities."""
    result = retrieve_task(model, task, batch_size)
    source = WebDatasetSource(task.shards)
    shown = np.linspace(0, len(source) - 1, min(PICTURES, len(source))).astype(int)
    pictures = [preprocess(source[int(index)].image, model.transform) for index in shown]
    truths = [result.captions[index] for index in shown]
    ranking = np.argsort(-result.similarities[shown], axis=1, kind="stable")[:, :3]
    guesses = [[result.captions[best] for best in row] for row in ranking]
    draw_predictions(pictures, truths, guesses, out / f"{task.name}-predictions.png")
    similarities = result.similarities[np.ix_(shown, shown)]
    draw_similarities(pictures, truths, similarities, out / f"{task.name}-similarities.png")
    return len(source), result.scores, result.unreadable


if __name__ == "__main__":
    main()
