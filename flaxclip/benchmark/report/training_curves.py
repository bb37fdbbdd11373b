"""What runs reported while they trained, as charts: a run can be read without TensorBoard."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from flaxclip.benchmark.report.charts import Axes, Point, chart
from flaxclip.errors import InputError
from flaxclip.storage import METRICS_FILE

POINTS = 300
"""Of a line: more cannot be told apart."""

_CHARTS = {
    "loss": ("loss", False),
    "image_to_text_accuracy": ("accuracy, image to text, in the batch", True),
    "text_to_image_accuracy": ("accuracy, text to image, in the batch", True),
    "logit_scale": ("logit scale", False),
    "grad_norm": ("gradient norm", False),
    "learning_rate": ("learning rate", False),
    "images_per_second": ("pairs a second", False),
    "mfu": ("model FLOPs utilisation", True),
}
"""Scalar -> what it is called, and whether it is a share."""

Rows = list[dict[str, Any]]


def find_runs(folders: Sequence[Path], workdirs: Iterable[str]) -> dict[str, Rows]:
    """Run -> its metrics, of those below `folders`, and of `workdirs` that can still be read.

    Raises:
        InputError: a metrics file is damaged.
    """
    paths = {epath.Path(path) for folder in folders for path in Path(folder).rglob(METRICS_FILE)}
    for workdir in workdirs:
        path = epath.Path(workdir) / METRICS_FILE
        if path.exists():
            paths.add(path)
    # The same run may be named twice, once relative.
    resolved = sorted({str(path if "://" in str(path) else path.resolve()) for path in paths})
    runs = {path.removesuffix(f"/{METRICS_FILE}"): _read(epath.Path(path)) for path in resolved}
    return {run: rows for run, rows in runs.items() if rows}


def _read(path: epath.Path) -> Rows:
    rows = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break  # the run is writing it, or was killed while it did
        try:
            row = json.loads(line)
            rows.append({"step": int(row["step"])} | {k: row.get(k) for k in _CHARTS})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number} is damaged: {error!r}\ntake the line out"
            ) from None
    return rows


def training_charts(runs: dict[str, Rows]) -> dict[str, Any] | None:
    """A chart a scalar with a line a run, and for each run where it stands; None without runs."""
    if not runs:
        return None
    names = _short_names(list(runs))
    charts = []
    for scalar, (title, is_share) in _CHARTS.items():
        lines = {names[run]: _line(rows, scalar) for run, rows in runs.items()}
        if not any(lines.values()):
            continue
        values = [point.y for line in lines.values() for point in line]
        steps = [point.x for line in lines.values() for point in line]
        low, high = min(0.0, *values) if is_share else min(values), max(values)
        axes = Axes((0, max(steps)), (low, high), "training step", "", False, is_share)
        svg = chart(f"{title} against training step", axes, lines, connect=True, marks=False)
        charts.append({"title": title, "svg": svg})
    last = [
        {"run": names[run], "path": run, **{k: v for k, v in rows[-1].items() if k in _SHOWN}}
        for run, rows in runs.items()
    ]
    return {"charts": charts, "runs": list(names.values()), "last": last}


_SHOWN = ("step", "loss", "image_to_text_accuracy", "text_to_image_accuracy", "images_per_second")


def _short_names(runs: list[str]) -> dict[str, str]:
    """The ends of paths, as long as it takes to tell them apart."""
    length = 1
    while True:
        names = {run: "/".join(run.split("/")[-length:]) for run in runs}
        if len(set(names.values())) == len(runs):
            return names
        length += 1


def _line(rows: Rows, scalar: str) -> list[Point]:
    """At most `POINTS` places, evenly spread; where the scalar was not a number there is none."""
    known = [(row["step"], row[scalar]) for row in rows if isinstance(row[scalar], int | float)]
    if not known:
        return []
    shown = np.unique(np.linspace(0, len(known) - 1, min(POINTS, len(known))).round().astype(int))
    return [Point(known[i][0], float(known[i][1]), "") for i in shown]
