"""Anybody's own folder of images, with nothing but the names of what they may show."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import jax
from rich.table import Table

from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.methods.zero_shot import note_cut_texts, task_classifier
from flaxclip.benchmark.readers.folder import FileImages, class_folders, find_images
from flaxclip.benchmark.results import print_whole, write_text
from flaxclip.benchmark.tasks import PROMPT_SETS, DataSource, Prompts, Task
from flaxclip.data.sources.left_out import LEFTOVERS, describe_counts
from flaxclip.errors import InputError
from flaxclip.zero_shot.class_prompts import DEFAULT_TEMPLATES, check_distinct
from flaxclip.zero_shot.classifier import class_similarities, softmax

PRINTED = 20


def split_labels(given: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The names that `--labels` has been given: `cat,dog` are two, of several values each is one.

    Args:
        given: for each time the flag was there, its values.

    Raises:
        InputError: there are fewer than two, or two the same; or a list is among several values.
    """
    values = [value for values in given for value in values]
    shown = " ".join(map(repr, values))
    if len(values) > 1 and any(value.strip().endswith(",") for value in values):
        raise InputError(
            f"--labels {shown}: one ends with a comma\n"
            'put quotes around a list, "cat,dog", or leave commas out between values'
        )
    if len(values) == 1:
        values = values[0].split(",")
    names = tuple(value.strip() for value in values if value.strip())
    if len(names) < 2:
        raise InputError(f"--labels {shown} names {len(names)}\nthere must be two at least")
    check_distinct(names)
    return names


def has_folders(images: Path, has_labels: bool) -> bool:
    """True if a folder of images has sub-folders, which are their labels.

    Raises:
        InputError: it is no folder; or it has none, and there are no other labels.
    """
    if not images.is_dir():
        raise InputError(f"--images {images} is no folder\nname a folder of images")
    found = bool(class_folders(images))
    if not found and not has_labels:
        raise InputError(
            f"{images} has no sub-folders, and no --labels are given\n"
            'say what the images can be, e.g. --labels "cat,dog"'
        )
    return found


def own_task(images: Path, labels: Sequence[str]) -> Task:
    """A task of the images in `images/CLASS/`; `labels` may only repeat the folders' names.

    Raises:
        InputError: a label has no folder, or a folder no label.
    """
    folders = [path.name for path in class_folders(images)]
    if different := set(labels or folders) ^ set(folders):
        raise InputError(
            f"--labels and the folders of {images} differ: {', '.join(sorted(different))}\n"
            "with folders, labels are their names: leave --labels out, or name them all"
        )
    names = tuple(name.replace("_", " ") for name in folders)
    check_distinct(names)
    prompts = dict.fromkeys(PROMPT_SETS, Prompts(names, DEFAULT_TEMPLATES))
    source = DataSource("folder", str(images), train=None)
    title = f"images of {images}"
    return Task(f"images-{images.resolve().name}", title, "classification", "top1", (source,),
                prompts=prompts)  # fmt: skip


def name_images(embedder: Embedder, folder: Path, names: Sequence[str], out: Path) -> None:
    """Write `out/predictions.csv`, a row an image: its name, and the probability of each label.

    To be called on all hosts; host 0 writes and prints.

    Raises:
        InputError: there are no images, or more of them are unreadable than may be; those that
            can be read have their rows all the same.
    """
    paths, leftovers = find_images(folder)
    if not paths:
        raise InputError(f"no images in {folder}\nexpected .jpg, .png, .webp, ...")
    images = FileImages(folder, paths)
    classifier, cut = task_classifier(embedder, names, DEFAULT_TEMPLATES)
    zimg, unreadable = embedder.embed_images(images, limited=False)
    probabilities = softmax(embedder.model.logit_scale * class_similarities(zimg, classifier))
    rows, broken = [], list(reversed(unreadable))
    for index, row in enumerate(probabilities):
        name = images.name(index)
        best = names[int(row.argmax())]
        if broken and broken[-1].startswith(f"{name}: "):  # they are in the images' order
            best = "unreadable"
            broken.pop()
        rows.append([name, best, *(f"{p:.4f}" for p in row)])
    if jax.process_index() == 0:
        _write(out / "predictions.csv", ["image", "prediction", *names], rows, unreadable)
        for note in note_cut_texts("prompts", cut):
            print(note)
        if leftovers:
            print(f"left out: {describe_counts({LEFTOVERS: leftovers})}")
    embedder.check_readable(unreadable, len(rows))


def _write(path: Path, header: list[str], rows: list[list[str]], unreadable: Sequence[str]) -> None:
    """All rows into the file, and the first ones on the terminal."""
    lines, table = io.StringIO(), Table(*header)
    csv.writer(lines, lineterminator="\n").writerows([header, *rows])
    write_text(path, lines.getvalue())
    for row in rows[:PRINTED]:
        table.add_row(*row)
    print_whole(table)
    for line in unreadable[:PRINTED]:
        print(f"unreadable: {line}")
    print(f"{len(rows):,} images, {len(unreadable):,} unreadable: {path}")
