"""`data.prepare --teacher` on Apache Beam; see `test_prepare` for how to run it."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.helpers.reinforced import (
    AUGMENT,
    prepare_shards,
    teachers_recipe,
    write_captioned_tars,
    write_teacher,
)

ROOT = pathlib.Path(__file__).parents[2]
OPTIONS = (
    "--captions.keys txt syn_text --captions.weights 1 3 --crops 3 --captions 2 --crop-seed 5 "
    "--teacher-batch-size 8 --shard-mb 0.01 --augment.crop-scale 0.3 1 --augment.flip 0.5 "
    "--augment.color-jitter 0.4 0.3 0.2 0.1 --augment.grayscale 0.2"
)
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", folder)
        patch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", folder)
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model", 0)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_captioned_tars(tmp_path_factory.mktemp("tars"))


def command(tars, teacher, out, workers, program=("flaxclip.data.prepare",)):
    words = "-m", *program, f"{tars}/*.tar", str(out), "--teacher", teacher
    return [sys.executable, *words, *OPTIONS.split(), "--workers", str(workers)]


def prepare(*args):
    run = subprocess.run(command(*args), capture_output=True, text=True, env=ENVIRONMENT)
    assert run.returncode == 0, run.stderr
    return run.stdout


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def prepared(tars, teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, prepare(tars, teacher, out, 1)


def test_shards_are_those_that_are_made_without_beam(tars, teacher, prepared, tmp_path):
    out, stdout = prepared
    shards = sorted(out.glob("train-*.array_record"))
    assert len(shards) > 2
    recipe = teachers_recipe(tars, teacher, augment=AUGMENT)
    local = prepare_shards(recipe, tmp_path / "local", len(shards))
    assert [path.read_bytes() for path in shards] == [path.read_bytes() for path in local]
    sheet = json.loads((out / "datasheet.json").read_text())
    captions = sheet["splits"]["train"]["statistics"]["captions"]["sum"]
    size = 2 * 16 * (3 * 20 + captions)
    assert f"vectors: 0.0 MB, {size / 20:,.0f} bytes an example: 3 crops" in stdout
    assert f"and {captions / 20:.3g} captions, each 16 numbers in bfloat16\n" in stdout
    assert sheet["splits"]["train"]["teacher_truncated_captions"] == 0
    assert "teacher_truncated_captions: 0 lost their end to a teacher's context\n" in stdout


def test_two_workers_make_the_same_files(tars, teacher, prepared, tmp_path):
    prepare(tars, teacher, tmp_path / "out", 2)
    assert contents(tmp_path / "out") == contents(prepared[0])


def test_killed_while_a_teacher_is_asked_and_started_again_it_ends_the_same(
    tars, teacher, prepared, tmp_path
):
    out = tmp_path / "out"
    program = ("tests.helpers.killed_preparation", "second-shard")
    killing = command(tars, teacher, out, 1, program)
    killed = subprocess.run(killing, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(out.glob("_preparing/shards/*.json"))) == 1
    assert not (out / "datasheet.json").exists()
    assert "nothing to do" not in prepare(tars, teacher, out, 1)
    assert contents(out) == contents(prepared[0])
