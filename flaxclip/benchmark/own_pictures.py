"""Anybody's own folder of pictures, with nothing but the names of what they may show."""

import csv
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.prompts import DEFAULT_TEMPLATES, check_distinct
from flaxclip.benchmark.readers.folder import FilePictures, find_pictures
from flaxclip.benchmark.tasks import DataSource, Prompts, PromptSet, Task
from flaxclip.benchmark.zero_shot import build_zero_shot_classifier, class_similarities
from flaxclip.errors import InputError

PRINTED = 20


def split_labels(labels: str) -> tuple[str, ...]:
    """`cat,dog` as two names.

    Raises:
        InputError: there are fewer than two, or two the same.
    """
    names = tuple(name.strip() for name in labels.split(",") if name.strip())
    if len(names) < 2:
        raise InputError(f"--labels {labels!r} names {len(names)}\nthere must be two at least")
    check_distinct(names)
    return names


def own_task(images: Path, labels: str) -> Task:
    """A task of the pictures in `images/CLASS/`; `labels` may only repeat the folders' names.

    Raises:
        InputError: a label has no folder, or a folder no label.
    """
    folders = sorted(path.name for path in images.iterdir() if path.is_dir())
    if labels and set(split_labels(labels)) != set(folders):
        different = set(split_labels(labels)) ^ set(folders)
        raise InputError(
            f"--labels and the folders of {images} differ: {', '.join(sorted(different))}\n"
            "with folders, labels are their names: leave --labels out, or name them all"
        )
    names = tuple(name.replace("_", " ") for name in folders)
    prompts = dict.fromkeys(PromptSet.__args__, Prompts(names, DEFAULT_TEMPLATES))
    source = DataSource("folder", str(images), train=None)
    title = f"pictures of {images}"
    return Task(f"images-{images.resolve().name}", title, "classification", "top1", (source,),
                prompts=prompts)  # fmt: skip


def name_pictures(embedder: Embedder, images: Path, labels: str, out: Path) -> None:
    """Write `out/predictions.csv`, a row a picture: its name, and the probability of each label.

    Raises:
        InputError: there are no pictures, or the labels cannot be used.
    """
    names = split_labels(labels)
    paths = find_pictures(images)
    if not paths:
        raise InputError(f"no pictures in {images}\nexpected .jpg, .png, .webp, ...")
    pictures = FilePictures(images, paths)
    classifier, _ = build_zero_shot_classifier(embedder, names, DEFAULT_TEMPLATES)
    zimg, unreadable = embedder.embed_images(pictures)
    broken = {line.partition(": ")[0] for line in unreadable}
    logits = embedder.model.logit_scale * class_similarities(zimg, classifier)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    rows = []
    for index, row in enumerate(probabilities):
        name = pictures.name(index)
        best = "unreadable" if name in broken else names[int(row.argmax())]
        rows.append([name, best, *(f"{p:.4f}" for p in row)])
    with (out / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["picture", "prediction", *names], *rows])
    table = Table("picture", "prediction", *names)
    for row in rows[:PRINTED]:
        table.add_row(*row)
    Console().print(table)
    for line in unreadable:
        print(f"unreadable: {line}")
    print(f"{len(rows):,} pictures: {out / 'predictions.csv'}")
