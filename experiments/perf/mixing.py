"""How well the storage order mixes a corpus that is sorted by class, its worst case.

    python experiments/perf/mixing.py
    python experiments/perf/mixing.py --train 300        and training on such a corpus, three seeds

Of each order it prints the number of classes in a batch, and the spread of their counts: chi-square
over its degrees of freedom, which is 1 on average for draws with replacement. Where the order draws
k examples of a class together more often, it is larger by about k.

With `--train`, the built-in scenes are written into tars, class after class, and the quickstart's
model is trained on them in either order, through a source on disk that says what one in object
storage does. Its scores on combinations that it has never seen are those of `flaxclip.benchmark`.
"""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from PIL import Image

from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.data.sources.source import Pair
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.models.variants import VARIANTS

ORDERS = {"storage": OrderConfig(), "whole": OrderConfig(window=None)}
SCENES, SCENES_RUN, PER_TAR = 12_000, 8, 1000


class Sorted(NamedTuple):
    """A corpus whose examples are sorted by class."""

    examples: int
    classes: int
    run_length: int


CORPORA = (Sorted(1_280_000, 1000, 104), Sorted(100_000, 100, 104))
BATCHES = {128: 200, 1024: 50, 4096: 20}  # size: batches looked at, far apart


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is measured."""

    train: int = 0
    """Steps of each training run. If 0, none."""
    seeds: int = 3
    """Training runs in each order."""


class Numbers:
    """Examples that are their own numbers, in object storage."""

    reads_remotely = True

    def __init__(self, corpus: Sorted):
        self.examples, self.run_length = corpus.examples, corpus.run_length

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> Pair:
        return Pair(b"", (str(index),))

    def fields(self, index: int) -> dict[str, str]:
        """None."""
        return {}

    def name(self, index: int) -> str:
        """The number."""
        return str(index)


class SortedTars(WebDatasetSource):
    """Tars on disk that are read as if they were in object storage."""

    reads_remotely = True
    run_length = SCENES_RUN


def class_counts(corpus: Sorted, order_name: str, batch_size: int) -> np.ndarray:
    """[batches, classes]: examples of each class in batches of the first epochs."""
    batches, counts = BATCHES[batch_size], []
    rng = np.random.default_rng(0)
    order = draw_order(Numbers(corpus), ORDERS.get(order_name, OrderConfig()), 0, batch_size)
    for number in range(batches):
        if order_name == "multinomial":
            examples = rng.integers(corpus.examples, size=batch_size)
        else:
            step = number * (2 * corpus.examples // batch_size) // batches
            rows = range(step * batch_size, (step + 1) * batch_size)
            examples = np.array([order[position].example for position in rows])
        classes = examples * corpus.classes // corpus.examples
        counts.append(np.bincount(classes, minlength=corpus.classes))
    return np.stack(counts)


def print_mixing(corpus: Sorted) -> None:
    """A line for each order and batch size."""
    print(
        f"{corpus.examples:,} examples sorted into {corpus.classes:,} classes, "
        f"runs of {corpus.run_length}"
    )
    for batch_size in BATCHES:
        expected = batch_size / corpus.classes
        for name in (*ORDERS, "multinomial"):
            counts = class_counts(corpus, name, batch_size)
            distinct = (counts > 0).sum(axis=1)
            chi_square = ((counts - expected) ** 2 / expected).sum(axis=1) / (corpus.classes - 1)
            print(
                f"  batch {batch_size:5,}  {name:12} {distinct.mean():6.1f} classes "
                f"(+- {distinct.std():4.1f}), at most {counts.max(axis=1).mean():5.1f} of one, "
                f"chi-square / df {chi_square.mean():5.2f}",
                flush=True,
            )


def write_sorted_scenes(folder: Path) -> None:
    """The first scenes of the training data, sorted by their colour and shape."""
    source = ScenesSource("train", VARIANTS["ViT-tiny"].model.vision.image_size)
    order = sorted(range(SCENES), key=source.label)
    for first in range(0, SCENES, PER_TAR):
        with tarfile.open(folder / f"{first // PER_TAR:05}.tar", "w") as tar:
            for place, index in enumerate(order[first : first + PER_TAR], first):
                image, captions, _ = source[index]
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG", compress_level=1)
                for suffix, data in (("png", png.getvalue()), ("txt", captions[0].encode())):
                    member = tarfile.TarInfo(f"{place:06}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def train_once(folder: Path, order_name: str, seed: int, steps: int) -> float:
    """Accuracy on `scenes-unseen` of the quickstart's model after `steps` in this order."""
    import flaxclip.run.parts
    from flaxclip.checkpoint.manager import CheckpointConfig
    from flaxclip.run.experiment import load_experiment
    from flaxclip.train import train

    config = load_experiment("quickstart")
    workdir = folder / f"{order_name}-{seed}"
    data = dataclasses.replace(
        config.data, path=(f"{folder}/*.tar",), order=ORDERS[order_name], workers=0
    )
    config = dataclasses.replace(
        config, workdir=str(workdir), seed=seed, steps=steps, data=data, shown_pairs=0,
        checkpoint=CheckpointConfig(every_steps=steps),
    )  # fmt: skip
    flaxclip.run.parts.open_source = lambda data, *_: SortedTars(data.path[0])
    train(config)
    command = [sys.executable, "-m", "flaxclip.benchmark", workdir, "--tasks", "scenes-unseen"]
    command += ["--out", workdir / "results"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    scores = json.loads((workdir / "results" / "scenes-unseen.json").read_text())["scores"]
    return float(scores["top1"]["value"])


def main(trial: Trial) -> None:
    """Measure and print."""
    for corpus in CORPORA:
        print_mixing(corpus)
    if not trial.train:
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = name  # the tars' index
        write_sorted_scenes(folder)
        accuracies: dict[str, list[float]] = {order_name: [] for order_name in ORDERS}
        for seed in range(trial.seeds):
            for order_name, values in accuracies.items():
                values.append(train_once(folder, order_name, seed, trial.train))
                print(f"scenes-unseen, {order_name}, seed {seed}: {values[-1]:.1%}", flush=True)
    print(f"{SCENES:,} scenes sorted by class, {trial.train} steps, scenes-unseen:")
    for order_name, values in accuracies.items():
        listed = ", ".join(f"{value:.1%}" for value in values)
        print(f"  {order_name:8} {np.mean(values):.1%} on average ({listed})")


if __name__ == "__main__":
    main(tyro.cli(Trial))
