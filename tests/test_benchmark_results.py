import csv
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rich.table import Table

from flaxclip.benchmark.checkpoint import find_checkpoint
from flaxclip.benchmark.report.breakdowns import breakdowns, reliability_chart
from flaxclip.benchmark.report.charts import WIDTH, Axes, Point, chart
from flaxclip.benchmark.report.exports import to_clip_benchmark, to_clip_benchmark_csv
from flaxclip.benchmark.report.page_content import result_detail
from flaxclip.benchmark.results import (
    Result,
    Score,
    print_table,
    print_whole,
    read_arrays,
    read_result,
    write_result,
)
from flaxclip.errors import InputError

# As earlier versions wrote it: words and findings lie beside the fields that all results have.
CONTENT = {
    "task": "pets",
    "title": "pets of ours",
    "method": "zero-shot",
    "kind": "classification",
    "metric": "top1",
    "checkpoint": {"path": "runs/a", "step": 8, "weights": None, "format": "flaxclip, step 8"},
    "parameters_sha256": "12",
    "source": {"reader": "folder", "name": "pets"},
    "data_sha256": "34",
    "class_names": ["cat", ["dog", "hound"]],
    "prompt_set": "openai",
    "task_preprocessing": None,
    "identity_sha256": "56",
    "examples": 2,
    "scores": {"top1": {"value": 0.5, "chance": 0.5, "low": 0.1, "high": 0.9}},
    "unreadable_images": 1,
    "unreadable": ["cat/a.png: not a JPEG"],
    "notes": ["a note"],
    "calibration_error": 0.25,
    "of_a_later_version": {"kept": [1, 2]},
    "format": 3,
}


def test_what_a_result_file_holds_is_read_and_written_whole(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(CONTENT))
    result = read_result(tmp_path / "old.json")
    assert result.scores == {"top1": Score(0.5, 0.5, 0.1, 0.9)}
    assert result.checkpoint.step == 8
    assert result.unreadable == ("cat/a.png: not a JPEG",)
    assert result.details["of_a_later_version"] == {"kept": [1, 2]}
    write_result(result, {"labels": np.arange(2)}, tmp_path / "new")
    # Fields that came since, at what they were then.
    checkpoint = CONTENT["checkpoint"] | {"max_patches": None}
    assert json.loads((tmp_path / "new.json").read_text()) == CONTENT | {
        "checkpoint": checkpoint,
        "format": 4,
    }
    assert read_arrays(tmp_path / "new.json")["labels"].tolist() == [0, 1]
    without = CONTENT | {"checkpoint": {"path": "runs/a", "step": None}}
    assert Result.from_json(without).checkpoint.weights is None


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_in_a_table_is_cut_off(terminal, tmp_path, monkeypatch, capsys):
    """In a log, whose lines have any length, names and numbers stand side by side."""
    scores = {f"text_to_image_recall@{k}": CONTENT["scores"]["top1"] for k in (5, 10)}
    result = Result.from_json(CONTENT | {"scores": scores, "task": "negbench_coco_retrieval"})
    monkeypatch.setenv("COLUMNS", "60")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    print_table([result])
    lines = capsys.readouterr().out.splitlines()
    assert "…" not in "".join(lines)
    if terminal:
        assert max(len(re.sub("\x1b[^m]*m", "", line)) for line in lines) <= 60
    else:
        assert any("text_to_image_recall@10   50.0%   10.0% – 90.0%" in line for line in lines)


@pytest.mark.parametrize("terminal", [False, True])
def test_names_and_captions_are_printed_as_they_are(terminal, monkeypatch, capsys):
    """Captions of the web have WordPress's [/caption], files are called `mine [edited].jpg`."""
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    words = ("mine [edited].jpg", "[/caption] of a cat", "[red]a[/red] :cat:", r"\[b]")
    table = Table("image", words[0])
    for word in words:
        table.add_row("", word)
    print_whole(table)
    printed = re.sub("\x1b[^m]*m", "", capsys.readouterr().out)
    for word in words:
        assert f" {word} " in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT | {"format": 2}, "of format 2, not 3 or 4\ndelete it"),
        ({n: v for n, v in CONTENT.items() if n != "task"}, r"damaged: .*'task'"),
        (CONTENT | {"scores": {"top1": 0.5}}, "damaged: "),
        ([], "damaged: "),
    ],
)
def test_what_is_no_result_file_is_refused(content, message, tmp_path):
    (tmp_path / "pets.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"pets\.json is {message}"):
        read_result(tmp_path / "pets.json")


def test_the_worst_confusions_of_very_many_classes_need_no_matrix_of_them(tmp_path):
    names = [f"class {number}" for number in range(200_000)]
    labels = np.array([5, 5, 5, 199_999, 199_999, 7, 8], np.int32)
    guesses = np.array([9, 9, 5, 0, 0, 8, 8], np.int32)
    result = Result.from_json(CONTENT | {"class_names": names})
    write_result(result, {"labels": labels, "ranking": guesses[:, None]}, tmp_path / "pets")
    detail = result_detail(tmp_path / "pets.json", result, "a")
    assert [tuple(row.values()) for row in detail["confusions"]] == [
        ("class 5", "class 9", 2), ("class 199999", "class 0", 2), ("class 7", "class 8", 1)
    ]  # fmt: skip
    assert detail["matrix"] is None


def test_damaged_arrays_are_refused_by_name(tmp_path):
    write_result(Result.from_json(CONTENT), {"labels": np.arange(99)}, tmp_path / "pets")
    arrays = tmp_path / "pets.npz"
    whole = arrays.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"no arrays"):
        arrays.write_bytes(damaged)
        with pytest.raises(InputError, match=r"pets\.npz is damaged: .*\ndelete it and pets\.json"):
            read_arrays(tmp_path / "pets.json")


@pytest.mark.parametrize(
    ("task", "details", "language"),
    [
        ("imagenet-it", {"language": "it"}, "it"),
        ("imagenet-it", {}, "it"),  # measured before results said it
        ("imagenet", {}, "en"),
        ("imagenet-r", {}, "en"),
    ],
)
def test_clip_benchmarks_tables_say_the_language(task, details, language):
    content = {n: v for n, v in CONTENT.items() if n != "of_a_later_version"}
    result = Result.from_json(content | {"task": task, "kind": "classification"} | details)
    (theirs,) = to_clip_benchmark([result]).values()
    assert theirs["language"] == language
    (row,) = csv.DictReader(io.StringIO(to_clip_benchmark_csv([result])))
    assert row["language"] == language


def test_clip_benchmarks_table_has_a_column_for_every_score():
    """`clip_benchmark build` has: of retrieval recall at 1 and 10, of linear probes `lp_acc1`."""
    score = CONTENT["scores"]["top1"]
    recalls = {f"text_to_image_recall@{k}": score | {"value": k / 10} for k in (1, 5, 10)}
    contents = [
        CONTENT | {"kind": "linear-probe", "method": "linear-probe"},
        CONTENT | {"kind": "retrieval", "scores": recalls},
    ]
    results = [Result.from_json(content) for content in contents]
    probe, retrieval = csv.DictReader(io.StringIO(to_clip_benchmark_csv(results)))
    assert (probe["lp_acc1"], probe["acc1"]) == ("0.5", "")
    assert [retrieval[f"image_retrieval_recall@{k}"] for k in (1, 5, 10)] == ["0.1", "0.5", "1.0"]


def test_results_are_read_without_jax():
    program = (
        "import sys, flaxclip.benchmark.report.report, flaxclip.benchmark.tasks\n"
        "import flaxclip.benchmark.prompts\n"
        "print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"


def test_the_report_of_the_command_line_needs_no_jax(tmp_path):
    content = {name: value for name, value in CONTENT.items() if name != "prompt_set"}
    write_result(Result.from_json(content), {"labels": np.arange(2)}, tmp_path / "pets")
    program = (
        "import runpy, sys\n"
        "runpy.run_module('flaxclip.benchmark', run_name='__main__')\n"
        "print([name for name in ('jax', 'flax', 'orbax') if name in sys.modules])"
    )
    arguments = ["report", str(tmp_path), "--out", str(tmp_path / "page.html")]
    found = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("1 result of 1 checkpoint: ")
    assert found.stdout.endswith("[]\n")
    assert "| pets, zero-shot | top1 | 50.00% |" in (tmp_path / "page.md").read_text()


def test_all_that_is_said_of_a_checkpoint_is_of_one_step(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    checkpoint = find_checkpoint(str(run), None, None)
    step = checkpoint.weights.step
    # The run goes on, and saves its next one before the weights are read.
    shutil.copytree(run / f"checkpoints/{step}", run / f"checkpoints/{step + 1}")
    assert find_checkpoint(str(run), None, None).weights.step == step + 1
    assert checkpoint.named().step == step
    assert checkpoint.named().format == f"flaxclip, step {step}"
    assert checkpoint.default_out() == run / "benchmark" / str(step)
    assert [task.name for task in checkpoint.default_tasks()] == [
        "scenes-seen",
        "scenes-unseen",
        "scenes-shift",
    ]
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = ["scenes-wide"]
    (run / "config.json").write_text(json.dumps(config))
    assert [task.name for task in checkpoint.default_tasks()] == ["scenes-wide"]


def test_parts_of_a_set_have_tables_with_the_quoted_score_first():
    def tables(metric, **details):
        content = CONTENT | {"metric": metric} | details
        return [
            (table.title, table.columns, table.has_quoted, table.rows)
            for table in breakdowns(Result.from_json(content))
        ]

    languages = {"de": {"a@1": 0.5, "a@5": 0.75, "classes": 9}, "quz": {"a@1": 0.25}}
    assert tables("a@5", languages=languages) == [
        ("By language", ("a@5", "a@1", "classes"), True,
         [("de", [0.75, 0.5, 9]), ("quz", [None, 0.25, None])])
    ]  # fmt: skip
    kinds = {"on": {"items": 3, "text": 0.5, "most_similar": [1, 2]}}
    assert tables("text_of_kinds", kinds=kinds) == [
        ("By kind", ("text", "items"), True, [("on", [0.5, 3])])
    ]
    groups = [{"group": "land", "examples": 2, "top1": 0.5}]
    assert tables("worst_group_top1", groups=groups) == [
        ("By group", ("top1", "examples"), True, [("land", [0.5, 2])])
    ]
    shares = [{"group": "white", "examples": 2, "share": 0.5}]
    assert tables("top1", by_race={"crime_related": shares}) == [
        ("By race: crime related", ("share", "examples"), True, [("white", [0.5, 2])])
    ]
    assert tables("top1") == []


def test_the_reliability_diagram_leaves_empty_bins_out():
    full = {"above": 0.4, "up_to": 0.6, "examples": 9, "confidence": 0.5, "accuracy": 0.25}
    empty = {"above": 0.6, "up_to": 1.0, "examples": 0, "confidence": None, "accuracy": None}
    result = Result.from_json(CONTENT | {"reliability_diagram": [full, empty]})
    drawn = str(reliability_chart(result))
    assert drawn.count("<circle") == 1
    assert "9 with a confidence of 40% to 60%: 25.0% right, 50.0% expected" in drawn
    assert reliability_chart(Result.from_json(CONTENT)) is None


def test_labels_of_a_chart_are_within_it_and_differ():
    axes = Axes((0, 1_000_000), (14.2, 14.28), "training step", "logit scale", False, False)
    drawn = str(chart("a chart", axes, {"run": [Point(10, 14.22, "")]}))
    labels = re.findall(r'<text x="([0-9.]+)"[^>]*anchor="(middle|end)">([0-9,e+]+)<', drawn)
    assert [label for *_, label in labels] == ["0", "250,000", "500,000", "750,000", "1,000,000"]
    behind = {"middle": 0.5, "end": 0.0}  # share of a label that is to the right of its place
    assert all(float(x) + 8 * len(label) * behind[a] <= WIDTH for x, a, label in labels)
    heights = re.findall(r'anchor="end">([0-9.]+)<', drawn)
    assert heights == ["14.2", "14.22", "14.24", "14.26", "14.28"]


def test_ticks_say_where_they_are():
    axes = Axes((0, 10), (0, 0.05), "training step", "score", False)
    drawn = str(chart("a chart", axes, {}))
    assert re.findall(r'anchor="middle">([0-9.]+)<', drawn) == ["0", "2.5", "5", "7.5", "10"]
    assert re.findall(r'anchor="end">([0-9.]+)%<', drawn) == ["0", "1.25", "2.5", "3.75", "5"]
