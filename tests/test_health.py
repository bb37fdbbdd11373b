"""Numbers that go bad: noticed, named by their records, and stopped in time."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flaxclip.train
from flaxclip.checkpoint.layout import saved_steps
from flaxclip.data.order import batch_names
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.errors import InputError
from flaxclip.exit_codes import TRAINING_FAILED, TrainingFailedError
from flaxclip.health import ANOMALIES_FILE, HealthConfig, LossMonitor
from flaxclip.optim import OptimConfig, make_schedule
from tests.helpers.full_disk import files_no_larger_than
from tests.helpers.tiny_run import EXPERIMENT, tiny_config
from tests.helpers.xla_flags import ONE_DEVICE

ROOT = Path(__file__).parents[1]


def monitor_in(folder, warnings, **config):
    names = lambda step: [f"{step}/{row}" for row in range(5)]  # noqa: E731
    return LossMonitor(HealthConfig(**config), folder, names, warnings.append)


def anomalies(folder):
    return [json.loads(line) for line in (folder / ANOMALIES_FILE).read_text().splitlines()]


def test_a_loss_far_above_the_running_median_is_reported_with_all_its_records(tmp_path):
    warnings = []
    monitor = monitor_in(tmp_path, warnings)
    rng = np.random.default_rng(0)
    for step in range(1, 201):  # falling, with noise: no spike
        loss = 3 / step**0.2 + 0.05 * rng.standard_normal()
        monitor.check(step, {"loss": loss, "grad_norm": 1.0})
    assert warnings == []
    monitor.check(201, {"loss": 4.0, "grad_norm": 9.0})
    assert "step 201: loss spike: 4 where the median is 1." in warnings[0]
    assert "201/0, 201/1, 201/2, ..." in warnings[0]
    assert [(line["step"], len(line["records"])) for line in anomalies(tmp_path)] == [(201, 5)]
    monitor.check(202, {"loss": 1.0, "grad_norm": 1.0})  # one spike hardly moves the median
    assert len(warnings) == 1


def test_a_loss_is_compared_with_those_of_steps_of_its_length(tmp_path):
    """Short images come in larger batches, whose loss is higher."""
    warnings = []
    names = lambda step: [str(step)]  # noqa: E731
    monitor = LossMonitor(
        HealthConfig(), tmp_path, names, warnings.append, length_of=lambda step: step % 2
    )
    rng = np.random.default_rng(0)
    for step in range(1, 101):
        loss = (5.0 if step % 2 else 2.0) + 0.05 * rng.standard_normal()
        monitor.check(step, {"loss": loss, "grad_norm": 1.0})
    assert warnings == []
    monitor.check(101, {"loss": 5.0, "grad_norm": 1.0})
    monitor.check(102, {"loss": 5.0, "grad_norm": 1.0})
    assert [line["step"] for line in anomalies(tmp_path)] == [102]
    assert "step 102: loss spike: 5 where the median is 2" in warnings[0]


def test_nothing_is_a_spike_before_there_is_a_median(tmp_path):
    warnings = []
    monitor = monitor_in(tmp_path, warnings)
    for step, loss in enumerate([4.0, 9.0, 2.0, 40.0], 1):
        monitor.check(step, {"loss": loss, "grad_norm": 1.0})
    assert warnings == []


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"grad_norm": math.inf}])
def test_skipped_updates_are_counted_in_a_row_and_leave_the_medians_alone(tmp_path, bad):
    warnings = []
    monitor = monitor_in(tmp_path, warnings)
    good = {"loss": 2.0, "grad_norm": 1.0}
    for step, metrics in enumerate([good, good | bad, good | bad], 1):
        monitor.check(step, metrics)
    assert monitor.skipped_in_a_row == 2
    assert monitor.medians() == good
    assert "step 3: update skipped: loss" in warnings[1]
    monitor.check(4, good)
    assert monitor.skipped_in_a_row == 0


def test_anomalies_that_cannot_be_written_do_not_stop_the_run(tmp_path):
    (tmp_path / ANOMALIES_FILE).symlink_to("/dev/full")
    warnings = []
    monitor_in(tmp_path, warnings).check(1, {"loss": math.nan, "grad_norm": 1.0})
    assert "No space left on device" in warnings[1]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(HealthConfig)])
def test_a_limit_that_is_not_positive_is_refused_by_name(field):
    with pytest.raises(InputError, match=f"health.{field} is 0"):
        HealthConfig(**{field: 0})


def records_of(config, step):
    """Of the batch of the update after which `step` updates are done, as runs report it."""
    source = ScenesSource("train", 16)
    return batch_names(source, config.data.order, config.seed, config.batch_size, step - 1)


def train_with_nan(folder, records, *flags):
    """The command, with these records' images NaN wherever they are in a batch."""
    (folder / "tiny.py").write_text(EXPERIMENT)
    code = (
        "import os, runpy, flaxclip.train\n"
        f"make_nan = runpy.run_path({str(ROOT / 'experiments/perf/soak_run.py')!r})['make_nan']\n"
        f"make_nan({sorted(records)!r})\n"
        "flaxclip.train.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "tiny.py", "--workdir", "run", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ONE_DEVICE},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_record_that_is_nan_costs_a_step_and_many_in_a_row_stop_the_run(tmp_path):
    config, folder = tiny_config("run"), tmp_path / "run"
    records = {records_of(config, step)[step] for step in (3, 6, 7, 8)}
    flags = ("--health.max-skipped", "3", "--checkpoint.every-steps", "7", "--log-every", "1")
    result = train_with_nan(tmp_path, records, *flags)
    assert result.returncode == TRAINING_FAILED, result.stderr
    assert "step 3: update skipped: loss nan" in result.stdout
    assert "the last 3 updates, up to step 8, were not finite" in result.stderr
    assert "output of vision/patch_embedding, call 1" in result.stderr
    assert [line["step"] for line in anomalies(folder)] == [3, 6, 7, 8]
    assert [len(records & set(line["records"])) for line in anomalies(folder)] == [1] * 4
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert (lines[-1]["step"], lines[-1]["skipped_updates"]) == (8, 4)
    schedule = make_schedule(config.optim, config.steps)
    rates = [schedule(applied) for applied in (0, 1, 2, 2, 3, 4, 4, 4)]
    np.testing.assert_allclose([line["learning_rate"] for line in lines], rates, rtol=1e-6)
    assert saved_steps(folder) == [5]  # the moment before, though no save was due

    result = train_with_nan(tmp_path, records, *flags, "--debug-nans")
    assert result.returncode == TRAINING_FAILED, result.stderr
    assert "at step 5, where its last checkpoint is" in result.stdout
    assert "the last 1 updates, up to step 6, were not finite" in result.stderr
    assert "output of vision/patch_embedding, call 1" in result.stderr


def test_a_run_that_cannot_save_the_moment_before_does_not_say_that_it_has(tmp_path, monkeypatch):
    load_batches = flaxclip.train.load_batches

    def full_disk_at_step_2(*args, **kwargs):
        batches = load_batches(*args, **kwargs)
        yield next(batches)
        with files_no_larger_than(100_000):  # the token embedding takes six million
            yield from batches

    monkeypatch.setattr(flaxclip.train, "load_batches", full_disk_at_step_2)
    # The first update makes all parameters so large that the second overflows.
    optim = OptimConfig(peak_lr=1e30, warmup_steps=0)
    config = tiny_config(tmp_path, optim=optim, health=HealthConfig(max_skipped=1))
    with pytest.raises(TrainingFailedError, match=r"step 1, before the first .* not be saved"):
        flaxclip.train.train(config)
    assert saved_steps(tmp_path) == []
