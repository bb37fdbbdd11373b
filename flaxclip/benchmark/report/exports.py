"""Results as others read them: CSV, Markdown, CLIP_benchmark's columns, TensorBoard's events."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from flaxclip.benchmark.compare.comparison import Comparison
from flaxclip.benchmark.results import Result, short_name

Results = Sequence[Result]

CLIP_BENCHMARK_SCORES = {
    "top1": "acc1",
    "top5": "acc5",
    "mean_per_class": "mean_per_class_recall",
    "mean_average_precision": "mean_average_precision",
    **{f"text_to_image_recall@{k}": f"image_retrieval_recall@{k}" for k in (1, 5, 10)},
    **{f"image_to_text_recall@{k}": f"text_retrieval_recall@{k}" for k in (1, 5, 10)},
    "text": "text_acc",
    "image": "image_acc",
    "group": "acc",
}
_CLIP_BENCHMARK_TASKS = {
    "classification": "zeroshot_classification",
    "multilabel": "zeroshot_classification",
    "retrieval": "zeroshot_retrieval",
    "choice": "image_caption_selection",
    "linear-probe": "linear_probe",
}
_OTHER_LANGUAGES = ("ar", "cn", "it", "jp")
"""Of ImageNet, beside English: the only set that CLIP_benchmark asks for in other ones."""
_CLIP_BENCHMARK_COLUMNS = (
    "acc1", "acc5", "mean_per_class_recall", "dataset", "model", "pretrained", "task",
    "mean_average_precision", "image_retrieval_recall@5", "text_retrieval_recall@5",
    "text_acc", "image_acc", "acc", "language", "model_fullname",
)  # fmt: skip
"""Those of its `benchmark.csv`, which come first."""


def checkpoint_name(result: Result) -> str:
    """How a checkpoint is called where no other has its name; see `result_names`."""
    return short_name(result.checkpoint)


def to_csv(results: Results) -> str:
    """A row a score."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["checkpoint", "step", "task", "method", "prompts", "examples", "score", "value", "low",
         "high", "chance", "unreadable", "weights"]
    )  # fmt: skip
    for r in results:
        for name, score in r.scores.items():
            writer.writerow(
                [r.checkpoint.path, r.checkpoint.step, r.task, r.method,
                 r.details.get("prompt_set", ""), r.examples, name,
                 score.value, score.low, score.high, score.chance,
                 len(r.unreadable), r.checkpoint.weights or ""]
            )  # fmt: skip
    return out.getvalue()


def to_markdown(
    results: Results, comparisons: Sequence[Comparison] = (), names: Sequence[str] | None = None
) -> str:
    """A row a task with its quoted score, then for each two checkpoints a row a task.

    `names` are those of the results' checkpoints.
    """
    lines = [
        "| checkpoint | task | score | value | 95% interval | chance | unreadable images |",
        "|---|---|---|---|---|---|---|",
    ]
    for r, name in zip(results, names or map(checkpoint_name, results), strict=True):
        if (score := r.scores.get(r.metric)) is not None:
            interval = f"{score.low:.2%} – {score.high:.2%}"
            lines.append(
                f"| {name} | {r.task}, {r.method} | {r.metric} "
                f"| {score.value:.2%} | {interval} | {score.chance:.2%} "
                f"| {len(r.unreadable):,} |"
            )
    for comparison in comparisons:
        first, second = comparison.names
        lines += [
            "",
            f"{second} against {first}: {comparison.verdict()}",
            "",
            f"| task | score | {first} | {second} | difference, 95% interval | p | p, corrected "
            "| better |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for task in comparison.tasks:
            d, values = task.difference, task.values
            better = "–" if task.winner is None else comparison.names[task.winner]
            lines.append(
                f"| {task.name} | {task.score} | {values[0]:.2%} | {values[1]:.2%} "
                f"| {100 * d.value:+.2f} points, {100 * d.low:+.2f} to {100 * d.high:+.2f} "
                f"| {d.p_value:.2g} | {task.corrected:.2g} | {better} |"
            )
    return "\n".join(lines) + "\n"


def to_clip_benchmark(
    results: Results, names: Sequence[str] | None = None
) -> dict[str, dict[str, Any]]:
    """A dict a result with the keys that CLIP_benchmark writes: `dataset`, `model`, `metrics`.

    By the names that it gives files: DATASET_PRETRAINED_MODEL_LANGUAGE_TASK. `names` are those of
    the results' checkpoints.
    """
    by_name = {}
    for r, checkpoint in zip(results, names or map(checkpoint_name, results), strict=True):
        if r.kind not in _CLIP_BENCHMARK_TASKS:
            continue
        prefix = "lp_" if r.kind == "linear-probe" else ""
        metrics = {
            prefix + theirs: r.scores[ours].value
            for ours, theirs in CLIP_BENCHMARK_SCORES.items()
            if ours in r.scores
        }
        about = {
            "dataset": _clip_benchmark_dataset(r),
            "pretrained": checkpoint,
            "model": "flaxclip",
            "language": _language(r),
            "task": _CLIP_BENCHMARK_TASKS[r.kind],
        }
        name = "_".join(about.values()).replace("/", "_").replace(" ", "_")
        by_name[name] = {**about, "metrics": metrics}
    return by_name


def _language(result: Result) -> str:
    """As CLIP_benchmark calls it.

    Results of older versions do not say it: they are in English unless the task's name ends with a
    language.
    """
    if (said := result.details.get("language")) is not None:
        return str(said)
    name, _, language = result.task.rpartition("-")
    return language if name == "imagenet" and language in _OTHER_LANGUAGES else "en"


def _clip_benchmark_dataset(result: Result) -> str:
    """`wds/vtab/cifar10`, as it is asked for there; a set of one's own by its task's name."""
    source = result.source
    own = (
        source["reader"] != "wds" or source["name"].startswith((".", "/")) or (":" in result.title)
    )
    return result.task if own else f"wds/{source['name']}"


def to_clip_benchmark_csv(results: Results, names: Sequence[str] | None = None) -> str:
    """The table that `clip_benchmark build` makes of such results."""
    out = io.StringIO()
    rows = to_clip_benchmark(results, names).values()
    scores = dict.fromkeys(name for theirs in rows for name in theirs["metrics"])
    columns = dict.fromkeys((*_CLIP_BENCHMARK_COLUMNS, *scores))  # a column for every score
    writer = csv.DictWriter(out, list(columns), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for theirs in rows:
        fullname = f"{theirs['model']} {theirs['pretrained']}"
        writer.writerow(theirs | theirs["metrics"] | {"model_fullname": fullname})
    return out.getvalue()


def write_events(folder: Path, step: int, results: Sequence[Result], out: Path) -> None:
    """Scores and images of `step`, which TensorBoard shows as curves and beside other steps'.

    Args:
        folder: of the events of all steps.
        step: of the checkpoint.
        results: what was measured.
        out: where their grids of predictions and similarity matrices are.
    """
    from tensorboardX import SummaryWriter  # slow to import, and reports do without it

    writer = SummaryWriter(str(folder), filename_suffix=f".step-{step}")
    for result in results:
        name = result.task
        if result.method != "zero-shot":
            name = f"{name}.{result.method}"
        for score, found in result.scores.items():
            writer.add_scalar(f"{name}/{score}", found.value, step)
        for image in ("predictions", "similarities"):
            path = out / f"{name}-{image}.png"
            if path.is_file():
                pixels = np.asarray(PIL.Image.open(path).convert("RGB"))
                writer.add_image(f"{name}/{image}", pixels, step, dataformats="HWC")
    writer.close()
