"""A linear probe by us and by scikit-learn, on the same embeddings at the same regularisation.

    python tests/parity/linear_probe_scores.py runs/clipart --data data/wds_fashion_mnist

`experiments/corpora/make_benchmark_sets.py` makes the data. Some of the regularisations that we try
on a validation split, and the one chosen there on the test split, are fitted again by scikit-learn,
with as many iterations as ours may take and the same tolerance. Ends with exit code 1 where an
accuracy differs by more than 0.3 points.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

import flaxclip
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.methods.linear_probe import (
    MAX_ITERATIONS,
    TOLERANCE,
    Split,
    linear_probe,
    set_aside,
)
from flaxclip.benchmark.readers import open_split, open_test
from flaxclip.benchmark.tasks import find_tasks
from flaxclip.errors import exit_on_input_error

POINTS = 0.3


@dataclasses.dataclass(frozen=True)
class Command:
    """Compare linear probes with scikit-learn's."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    data: Path
    batch_size: int = 256
    every: int = 4
    """Of the regularisations tried on the validation split, fit every so many again."""


def main(command: Command) -> int:
    """The exit code."""
    model = flaxclip.load(command.checkpoint)
    (task,) = find_tasks([f"wds:{command.data}"])
    with tempfile.TemporaryDirectory() as cache:
        embedder = Embedder(model, command.batch_size, Path(cache))
        size = model.transform.size
        source, test_data = open_test(task, command.data.parent, size)
        train_data = open_split(task, source, "train", command.data.parent, size)
        train, test = (
            Split(embedder.embed_images(part.images).z, part.labels)
            for part in (train_data, test_data)
        )
    kept, validation = set_aside(train)
    print(f"{len(train.labels):,} and {len(test.labels):,} images embedded", flush=True)
    ours = linear_probe(kept, validation, test, len(test_data.class_names))
    tried = sorted(ours.details["validation_accuracy"], key=lambda one: one["cost"])
    rows = [(f"validation, C = {one['cost']:.3g}", one["cost"], kept, validation, one["accuracy"])
            for one in tried[:: command.every]]  # fmt: skip
    both = Split(*(np.concatenate(parts) for parts in zip(kept, validation, strict=True)))
    chosen = ours.details["regularisation"]
    rows.append((f"test, C = {chosen:.3g}", chosen, both, test, ours.scores["top1"].value))

    table = Table("split", "scikit-learn", "flaxclip", "difference, points")
    largest = 0.0
    for name, cost, fitted, measured, our_accuracy in rows:
        reference = LogisticRegression(C=cost, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
        reference.fit(*fitted)
        accuracy = reference.score(*measured)
        points = 100 * (our_accuracy - accuracy)
        largest = max(largest, abs(points))
        table.add_row(name, f"{accuracy:.4f}", f"{our_accuracy:.4f}", f"{points:+.2f}")
    Console().print(table)
    return int(largest > POINTS)


if __name__ == "__main__":
    with exit_on_input_error("linear_probe_scores"):
        sys.exit(main(tyro.cli(Command, description=__doc__)))
