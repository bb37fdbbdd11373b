"""Results as other programs read them: CSV, Markdown, and CLIP_benchmark's columns."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

Records = Sequence[Mapping[str, Any]]

_CLIP_BENCHMARK_SCORES = {
    "top1": "acc1",
    "top5": "acc5",
    "mean_per_class": "mean_per_class_recall",
    "mean_average_precision": "mean_average_precision",
    "text_to_image_recall@5": "image_retrieval_recall@5",
    "image_to_text_recall@5": "text_retrieval_recall@5",
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


def checkpoint_name(record: Mapping[str, Any]) -> str:
    """How a checkpoint is called in tables: the end of its path, and its step."""
    path, step = record["checkpoint"]["path"], record["checkpoint"]["step"]
    short = "/".join(path.rstrip("/").split("/")[-2:])
    return short if step is None else f"{short} step {step}"


def to_csv(records: Records) -> str:
    """A row a score."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["checkpoint", "step", "task", "method", "prompts", "examples", "score", "value", "low",
         "high", "chance"]
    )  # fmt: skip
    for r in records:
        for name, score in r["scores"].items():
            writer.writerow(
                [r["checkpoint"]["path"], r["checkpoint"]["step"], r["task"], r["method"],
                 r.get("prompt_set", ""), r["examples"], name,
                 *(score[field] for field in ("value", "low", "high", "chance"))]
            )  # fmt: skip
    return out.getvalue()


def to_markdown(records: Records) -> str:
    """A row a task with its quoted score."""
    lines = [
        "| checkpoint | task | score | value | 95% interval | chance |",
        "|---|---|---|---|---|---|",
    ]
    for r in records:
        if (score := r["scores"].get(r["metric"])) is not None:
            interval = f"{score['low']:.2%} – {score['high']:.2%}"
            lines.append(
                f"| {checkpoint_name(r)} | {r['task']}, {r['method']} | {r['metric']} "
                f"| {score['value']:.2%} | {interval} | {score['chance']:.2%} |"
            )
    return "\n".join(lines) + "\n"


def to_clip_benchmark(records: Records) -> list[dict[str, Any]]:
    """A dict a result with the keys that CLIP_benchmark writes: `dataset`, `model`, `metrics`."""
    results = []
    for r in records:
        if r["kind"] not in _CLIP_BENCHMARK_TASKS:
            continue
        prefix = "lp_" if r["kind"] == "linear-probe" else ""
        metrics = {
            prefix + theirs: r["scores"][ours]["value"]
            for ours, theirs in _CLIP_BENCHMARK_SCORES.items()
            if ours in r["scores"]
        }
        results.append(
            {
                "dataset": r["source"]["name"] if r["source"]["reader"] == "wds" else r["task"],
                "model": "flaxclip",
                "pretrained": checkpoint_name(r),
                "task": _CLIP_BENCHMARK_TASKS[r["kind"]],
                "metrics": metrics,
                "language": "en",
            }
        )
    return results


def to_clip_benchmark_csv(records: Records) -> str:
    """The table that `clip_benchmark build` makes of such results."""
    out = io.StringIO()
    writer = csv.DictWriter(
        out, _CLIP_BENCHMARK_COLUMNS, lineterminator="\n", extrasaction="ignore"
    )
    writer.writeheader()
    for result in to_clip_benchmark(records):
        fullname = f"{result['model']} {result['pretrained']}"
        writer.writerow(result | result["metrics"] | {"model_fullname": fullname})
    return out.getvalue()
