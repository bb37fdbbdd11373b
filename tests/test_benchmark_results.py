import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from flaxclip.benchmark.checkpoint import find_checkpoint
from flaxclip.benchmark.results import Result, Score, read_arrays, read_result, write_result
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
    assert json.loads((tmp_path / "new.json").read_text()) == CONTENT
    assert read_arrays(tmp_path / "new.json")["labels"].tolist() == [0, 1]
    without = CONTENT | {"checkpoint": {"path": "runs/a", "step": None}}
    assert Result.from_json(without).checkpoint.weights is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT | {"format": 2}, "of format 2, not 3\ndelete it"),
        ({n: v for n, v in CONTENT.items() if n != "task"}, r"damaged: .*'task'"),
        (CONTENT | {"scores": {"top1": 0.5}}, "damaged: "),
        ([], "damaged: "),
    ],
)
def test_what_is_no_result_file_is_refused(content, message, tmp_path):
    (tmp_path / "pets.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"pets\.json is {message}"):
        read_result(tmp_path / "pets.json")


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
    assert found.stdout.startswith("1 results of 1 checkpoints")
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
