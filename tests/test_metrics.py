import json

import numpy as np
import pytest

from flaxclip.metrics import MetricWriter
from tests.helpers.metric_files import read_events, read_wandb

IMAGE = np.zeros((30, 40, 3), np.uint8)


def write(folder, start_step, stop_step, project=None):
    writer = MetricWriter(folder, start_step, project, {"model": {"layers": (1, 2)}})
    for step in range(start_step + 1, stop_step + 1):
        writer.write(step, {"loss": 1 / step, "mfu": None})
    writer.write_images(stop_step, {"similarities": IMAGE})
    writer.close()


def test_what_a_killed_run_reported_after_its_checkpoint_is_reported_once(tmp_path):
    write(tmp_path, 0, 6)
    write(tmp_path, 4, 8)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["mfu"] is None
    scalars, images = read_events(tmp_path / "tensorboard")
    assert {step: value for (name, step), value in scalars.items() if name == "loss"} == (
        pytest.approx({line["step"]: line["loss"] for line in lines})
    )
    assert set(images) == {("similarities", 6), ("similarities", 8)}


def test_weights_and_biases_get_the_same_in_one_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")  # the extra flaxclip[wandb]
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, 0, 4, "clip")
    write(tmp_path, 4, 8, "clip")
    ((_, steps),) = read_wandb(tmp_path / "wandb").items()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {step: values["loss"] for step, values in steps.items()} == {
        line["step"]: line["loss"] for line in lines
    }
    shown = [step for step, values in steps.items() if values.get("similarities/_type")]
    assert shown == [4, 8]
    assert len(list((tmp_path / "wandb").rglob("similarities_*.png"))) == 2
