"""Profiles of a few steps: what is in them, where they lie, and what is refused."""

import gzip
import json
import shutil

import numpy as np
import pytest

from flaxclip.errors import InputError
from flaxclip.run.step_profile import PROFILES
from flaxclip.train import train
from tests.helpers.profiled_steps import profiled_steps
from tests.helpers.tiny_run import tiny_config


def test_the_steps_asked_for_are_profiled_where_tensorboard_looks(tmp_path, capsys):
    train(tiny_config(tmp_path), profile_steps="3:6")
    folder = tmp_path / "tensorboard" / "plugins" / "profile" / "steps-3-6"
    assert profiled_steps(folder / "host0.xplane.pb") == [4, 5, 6]
    assert json.loads(gzip.decompress((folder / "host0.trace.json.gz").read_bytes()))["traceEvents"]
    assert f"profile of steps-3-6: {folder}" in capsys.readouterr().out
    # A profile of steps that are done is not made again, nor is the run refused.
    train(tiny_config(tmp_path, steps=10), ["steps"], profile_steps="3:6")
    assert "nothing is profiled: step 6 is done already" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / PROFILES).iterdir()] == ["steps-3-6"]


def test_a_run_that_resumes_among_the_steps_profiles_the_rest_of_them(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path, dirs_exist_ok=True)
    config = tiny_config(tmp_path, steps=10, shown_pairs=4)
    train(config, ["steps"], profile_steps="6:9")
    (folder,) = (tmp_path / PROFILES).iterdir()
    assert folder.name == "steps-8-9"
    assert profiled_steps(folder / "host0.xplane.pb") == [9]


def test_a_profile_that_cannot_be_written_does_not_stop_the_run(tmp_path, capsys):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "plugins").touch()
    train(tiny_config(tmp_path), profile_steps="2:3")
    out = capsys.readouterr().out
    assert f"no profile in {tmp_path / PROFILES / 'steps-2-3'}: Not a directory" in out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 8
    assert np.isfinite(lines[-1]["loss"])


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("3", "profile_steps is '3'\nexpected two steps, such as 10:13"),
        ("3:x", "profile_steps is '3:x'\nexpected two steps"),
        ("-1:3", "profile_steps is '-1:3'\nexpected two steps"),
        ("5:5", "profile_steps is 5:5, in which there is no update"),
        ("6:5", "profile_steps is 6:5, in which there is no update"),
        ("5:9", "profile_steps is 5:9, beyond the run's 8 steps"),
    ],
)
def test_steps_that_cannot_be_profiled_are_refused_before_anything_is_written(
    tmp_path, steps, message
):
    with pytest.raises(InputError, match=message):
        train(tiny_config(tmp_path / "run"), profile_steps=steps)
    assert not (tmp_path / "run").exists()
