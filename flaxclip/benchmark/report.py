"""Results of any number of checkpoints as one page that needs no network, and as tables.

python -m flaxclip.benchmark report results other_results --out page.html

writes page.html, and beside it page.csv, page.json, page.md and page.clip_benchmark.csv.
"""

import base64
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import tyro

from flaxclip.benchmark.charts import Axes, Point, chart
from flaxclip.benchmark.exports import (
    checkpoint_name,
    to_clip_benchmark_csv,
    to_csv,
    to_markdown,
)
from flaxclip.benchmark.results import read_arrays, read_record, write_text
from flaxclip.benchmark.robustness import SHIFTS, reference_line, references, summarise_shifts
from flaxclip.benchmark.scores import confusion_matrix, paired_difference
from flaxclip.errors import InputError

_PAGE = Path(__file__).parent / "page"
_REFERENCE_MODELS = ("ViT-B-32 openai", "ViT-B-16 openai", "ViT-L-14 openai")
_MATRIX_CLASSES = 40
"""Beyond these a confusion matrix is too fine to be read: its largest entries are listed alone."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A page of results."""

    folders: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RESULT_DIR...")
    ]
    """Folders that hold results, at any depth."""
    out: Path = Path("report.html")
    """The page; tables of the same are written beside it."""


def report_command(arguments: Sequence[str]) -> None:
    """The command line.

    Raises:
        InputError: there are no results, or the page cannot be written.
    """
    command = tyro.cli(Command, prog="python -m flaxclip.benchmark report", args=arguments)
    found = find_results(command.folders)
    records = [record for _, record in found]
    out = command.out
    try:
        write_text(out, render_page(found))
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}\nname another --out") from None
    tables = {
        ".csv": to_csv(records),
        ".md": to_markdown(records),
        ".json": json.dumps(records, indent=1, ensure_ascii=False),
        ".clip_benchmark.csv": to_clip_benchmark_csv(records),
    }
    for suffix, text in tables.items():
        write_text(out.with_suffix(suffix), text)
    print(f"{len(records)} results: {out}, and {', '.join(tables)} of the same")


Found = list[tuple[Path, dict[str, Any]]]


def find_results(folders: Sequence[Path]) -> Found:
    """Result files below `folders` and what they hold, by checkpoint, step and task.

    Raises:
        InputError: there are none, or one is damaged.
    """
    paths = sorted({path for folder in folders for path in folder.rglob("*.json")})
    paths = [path for path in paths if '"identity_sha256"' in path.read_text()[:20_000]]
    if not paths:
        raise InputError(
            f"no results in {', '.join(map(str, folders))}\n"
            "name folders that python -m flaxclip.benchmark has written"
        )
    found = [(path, read_record(path)) for path in paths]
    return sorted(
        found,
        key=lambda item: (
            item[1]["checkpoint"]["path"], item[1]["checkpoint"]["step"] or 0, item[1]["task"]
        ),
    )  # fmt: skip


def render_page(found: Found) -> str:
    """The page's HTML, pictures and script inside it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: "–" if share is None else f"{share:.1%}"
    checkpoints = list(dict.fromkeys(checkpoint_name(record) for _, record in found))
    return environment.get_template("page.html").render(
        style=(_PAGE / "page.css").read_text(),
        script=(_PAGE / "page.js").read_text(),
        checkpoints=checkpoints,
        reference_models=_REFERENCE_MODELS,
        summary=summary_rows(found, checkpoints),
        curves=curves(found),
        robustness=robustness(found),
        comparisons=comparisons(found),
        results=[_detail(path, record) for path, record in found],
    )


def summary_rows(found: Found, checkpoints: Sequence[str]) -> list[dict[str, Any]]:
    """A row a task and method: the quoted score of each checkpoint, and published ones."""
    published = {
        (row["task"], row["score"], row["model"]): float(row["value"])
        for row in reversed(references())  # CLIP_benchmark's, sorted first, win
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for _, record in found:
        metric = record["metric"]
        if metric not in record["scores"]:
            continue
        row = rows.setdefault(
            (record["task"], record["method"]),
            {
                "task": record["task"],
                "title": record["title"],
                "method": record["method"],
                "metric": metric,
                "chance": record["scores"][metric]["chance"],
                "scores": dict.fromkeys(checkpoints),
                "published": [
                    published.get((record["task"], metric, model))
                    if record["method"] == "zero-shot"
                    else None
                    for model in _REFERENCE_MODELS
                ],
            },
        )
        row["scores"][checkpoint_name(record)] = record["scores"][metric]
    return list(rows.values())


def curves(found: Found) -> list[dict[str, Any]]:
    """Of every run with several steps: scores against training step, as a chart and a table."""
    runs: dict[str, dict[str, list[Point]]] = {}
    for _, record in found:
        step, score = record["checkpoint"]["step"], record["scores"].get(record["metric"])
        if step is None or score is None:
            continue
        name = f"{record['task']}, {record['method']}"
        label = f"{name}, step {step}: {score['value']:.1%}"
        point = Point(step, score["value"], label, score["low"], score["high"])
        runs.setdefault(record["checkpoint"]["path"], {}).setdefault(name, []).append(point)
    charts = []
    for path, series in runs.items():
        steps = sorted({point.x for points in series.values() for point in points})
        if len(steps) < 2:
            continue
        top = max(point.high for points in series.values() for point in points)
        axes = Axes((0, steps[-1]), (0, top), "training step", "score", False)
        svg = chart(f"Scores of {path} against training step", axes, series, connect=True)
        charts.append({"run": path, "svg": svg, "series": list(series)})
    return charts


def robustness(found: Found) -> dict[str, Any] | None:
    """Top-1 on shifted sets against ImageNet, with published models and their line."""
    models: dict[str, dict[str, float]] = {}
    for _, record in found:
        if record["method"] == "zero-shot" and "top1" in record["scores"]:
            accuracies = models.setdefault(checkpoint_name(record), {})
            accuracies[record["task"]] = record["scores"]["top1"]["value"]
    rows = [(name, shift) for name, a in models.items() for shift in summarise_shifts(a)]
    if not rows:
        return None
    charts = []
    for shift in SHIFTS:
        series = {
            name: [Point(a["imagenet"], a[shift], f"{name}: {a[shift]:.1%}")]
            for name, a in models.items()
            if "imagenet" in a and shift in a
        }
        if series:
            line = reference_line(shift)
            places = [(x, line(x)) for x in np.linspace(0.01, 0.99, 60)]
            background = [
                Point(x, y, f"{name}: {x:.1%} on ImageNet, {y:.1%}") for name, x, y in line.points
            ]
            axes = Axes((0, 1), (0, 1), "ImageNet top-1", f"{shift} top-1", True)
            title = f"Accuracy on {shift} against ImageNet, with {len(background)} other models"
            charts.append({"shift": shift, "svg": chart(title, axes, series, places, background)})
    return {"rows": rows, "charts": charts}


def comparisons(found: Found) -> list[dict[str, Any]]:
    """Each checkpoint against the first one, on tasks that both have on the same data."""
    first: dict[tuple[str, str, str], tuple[str, np.ndarray]] = {}
    rows = []
    for path, record in found:
        arrays = read_arrays(path)
        if "ranking" not in arrays:
            continue
        hits = arrays["ranking"][:, 0] == arrays["labels"]
        key = record["task"], record["method"], record["data_sha256"]
        name = checkpoint_name(record)
        if key not in first:
            first[key] = name, hits
            continue
        other, other_hits = first[key]
        difference = paired_difference(hits, other_hits)
        rows.append(
            {"task": record["task"], "method": record["method"], "checkpoint": name,
             "other": other, **difference._asdict()}
        )  # fmt: skip
    return rows


def _detail(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    arrays = read_arrays(path)
    detail = {
        "record": record,
        "checkpoint": checkpoint_name(record),
        "mistakes": _with_pictures(path, record.get("mistakes", [])),
        "retrieved": _with_pictures(path, record.get("retrieved", [])),
        "per_class": [], "confusions": [], "matrix": None,
    }  # fmt: skip
    if "ranking" not in arrays:
        return detail
    names = [name if isinstance(name, str) else name[0] for name in record["class_names"]]
    matrix = confusion_matrix(arrays["ranking"][:, 0], arrays["labels"], len(names))
    detail["per_class"] = [
        {"name": name, **row}
        for name, row in zip(names, record.get("per_class", []), strict=False)
        if row["examples"]
    ]
    off = matrix - np.diag(np.diag(matrix))
    worst = np.argsort(-off, axis=None, kind="stable")[:10]
    detail["confusions"] = [
        {"class": names[i], "prediction": names[j], "count": int(off[i, j])}
        for i, j in zip(*np.unravel_index(worst, off.shape), strict=True)
        if off[i, j]
    ]
    if len(names) <= _MATRIX_CLASSES:
        totals = matrix.sum(axis=1, keepdims=True)
        shares = matrix / np.maximum(totals, 1)
        detail["matrix"] = [
            {"name": name, "cells": list(zip(row.tolist(), counts.tolist(), strict=True))}
            for name, row, counts in zip(names, shares, matrix, strict=True)
        ]
    return detail


def _with_pictures(path: Path, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = []
    for item in items:
        try:
            data = base64.b64encode((path.parent / item["picture"]).read_bytes()).decode()
        except OSError:
            raise InputError(
                f"{path} speaks of {item['picture']}, which is not beside it\n"
                "copy results as a whole, or delete the file and measure again"
            ) from None
        shown.append(item | {"data": f"data:image/jpeg;base64,{data}"})
    return shown
