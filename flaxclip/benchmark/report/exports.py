"""Results as other programs read them: CSV, Markdown, and CLIP_benchmark's columns."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from flaxclip.benchmark.results import Record

Records = Sequence[Record]

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
_CLIP_BENCHMARK_COLUMNS = (
    "acc1", "acc5", "mean_per_class_recall", "dataset", "model", "pretrained", "task",
    "mean_average_precision", "image_retrieval_recall@5", "text_retrieval_recall@5",
    "text_acc", "image_acc", "acc", "language", "model_fullname",
)  # fmt: skip


def checkpoint_name(record: Record) -> str:
    """How a checkpoint is called in tables: the end of its path, its step, and which weights."""
    path, step = record.checkpoint.path, record.checkpoint.step
    short = "/".join(path.rstrip("/").split("/")[-2:])
    parts = [short, "" if step is None else f"step {step}", record.checkpoint.weights]
    return " ".join(filter(None, parts))


def to_csv(records: Records) -> str:
    """A row a score."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["checkpoint", "step", "task", "method", "prompts", "examples", "score", "value", "low",
         "high", "chance", "unreadable", "weights"]
    )  # fmt: skip
    for r in records:
        for name, score in r.scores.items():
            writer.writerow(
                [r.checkpoint.path, r.checkpoint.step, r.task, r.method,
                 r.details.get("prompt_set", ""), r.examples, name,
                 score.value, score.low, score.high, score.chance,
                 len(r.unreadable), r.checkpoint.weights or ""]
            )  # fmt: skip
    return out.getvalue()


def to_markdown(records: Records, comparisons: Sequence[Mapping[str, Any]] = ()) -> str:
    """A row a task with its quoted score, then a row a comparison of two checkpoints."""
    lines = [
        "| checkpoint | task | score | value | 95% interval | chance | unreadable images |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        if (score := r.scores.get(r.metric)) is not None:
            interval = f"{score.low:.2%} – {score.high:.2%}"
            lines.append(
                f"| {checkpoint_name(r)} | {r.task}, {r.method} | {r.metric} "
                f"| {score.value:.2%} | {interval} | {score.chance:.2%} "
                f"| {len(r.unreadable):,} |"
            )
    if comparisons:
        lines += [
            "",
            "| checkpoint | against | task | score | difference, 95% interval | p (McNemar) |",
            "|---|---|---|---|---|---|",
        ]
    for c in comparisons:
        lines.append(
            f"| {c['checkpoint']} | {c['other']} | {c['task']}, {c['method']} | {c['score']} "
            f"| {100 * c['value']:+.2f} points, {100 * c['low']:+.2f} to {100 * c['high']:+.2f} "
            f"| {c['p_value']:.2g} |"
        )
    return "\n".join(lines) + "\n"


def to_clip_benchmark(records: Records) -> dict[str, dict[str, Any]]:
    """A dict a result with the keys that CLIP_benchmark writes: `dataset`, `model`, `metrics`.

    By the names that it gives files: DATASET_PRETRAINED_MODEL_LANGUAGE_TASK.
    """
    results = {}
    for r in records:
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
            "pretrained": checkpoint_name(r),
            "model": "flaxclip",
            "language": "en",
            "task": _CLIP_BENCHMARK_TASKS[r.kind],
        }
        name = "_".join(about.values()).replace("/", "_").replace(" ", "_")
        results[name] = {**about, "metrics": metrics}
    return results


def _clip_benchmark_dataset(record: Record) -> str:
    """`wds/vtab/cifar10`, as it is asked for there; a set of one's own by its task's name."""
    source = record.source
    own = (
        source["reader"] != "wds" or source["name"].startswith((".", "/")) or (":" in record.title)
    )
    return record.task if own else f"wds/{source['name']}"


def to_clip_benchmark_csv(records: Records) -> str:
    """The table that `clip_benchmark build` makes of such results."""
    out = io.StringIO()
    writer = csv.DictWriter(
        out, _CLIP_BENCHMARK_COLUMNS, lineterminator="\n", extrasaction="ignore"
    )
    writer.writeheader()
    for result in to_clip_benchmark(records).values():
        fullname = f"{result['model']} {result['pretrained']}"
        writer.writerow(result | result["metrics"] | {"model_fullname": fullname})
    return out.getvalue()
