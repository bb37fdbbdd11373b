"""`data.prepare` on Apache Beam, which is not among the packages that the other tests need.

pip install -e '.[beam]' pytest hypothesis && python -m pytest -o addopts=-ra tests/beam
"""

import filecmp
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from flaxclip.data.prepare.beam import errors_of_workers
from tests.helpers.beam_workers import workers_of
from tests.helpers.pair_shards import write_shards
from tests.helpers.tiny_run import EXPERIMENT

FILTERS = "--min-side 20 --max-aspect 3 --min-words 2 --score-key similarity --min-score 0.5"
# Many shards, so that there is something between the first and the last.
OPTIONS = [*FILTERS.split(), "--shard-mb", "0.01", "--validation", "0.2"]
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_shards(folder)


def _command(corpus, out, *args, program=("flaxclip.data.prepare",)):
    src = str(corpus[0] / "*.tar")
    return [sys.executable, "-m", *program, src, str(out), *OPTIONS, *args]


def _environment(corpus):
    return {**os.environ, "XDG_CACHE_HOME": str(corpus[0] / "cache"), "JAX_PLATFORMS": "cpu"}


def _prepare(corpus, out, *args):
    return subprocess.run(
        _command(corpus, out, *args), capture_output=True, text=True, env=_environment(corpus)
    )


def _same(a: pathlib.Path, b: pathlib.Path) -> bool:
    names = sorted(path.name for path in a.iterdir())
    assert names == sorted(path.name for path in b.iterdir())
    return filecmp.cmpfiles(a, b, names, shallow=False) == (names, [], [])


@pytest.fixture(scope="session")
def prepared(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    run = _prepare(corpus, out)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return out, run.stdout


def test_datasheet_and_list_account_for_every_example(corpus, prepared):
    out, stdout = prepared
    sheet = json.loads((out / "datasheet.json").read_text())
    assert {reason: item["records"] for reason, item in sheet["dropped"].items()} == corpus[1]
    assert sheet["records"] == {"read": 73, "kept": 60, "dropped": 13}
    assert sum(split["pairs"] for split in sheet["splits"].values()) == 60
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert len({example["record"] for example in dropped}) == 13
    assert {example["record"] for example in sheet["unreadable"]} == {
        example["record"] for example in dropped if example["reason"] == "unreadable"
    }
    shards = [shard["file"] for split in sheet["splits"].values() for shard in split["shards"]]
    assert sorted(path.name for path in out.glob("*.array_record")) == sorted(shards)
    assert len(shards) > 5
    page = (out / "datasheet.html").read_text()
    assert page.count("<img") == 24
    assert "http" not in page  # needs no network
    for reason, count in corpus[1].items():
        assert reason in stdout
        assert f"{reason}</th><td>{count}<" in page


def test_prepared_already_there_is_nothing_to_do(corpus, prepared):
    before = {path: path.stat().st_mtime_ns for path in prepared[0].iterdir()}
    run = _prepare(corpus, prepared[0])
    assert "nothing to do" in run.stdout
    assert {path: path.stat().st_mtime_ns for path in prepared[0].iterdir()} == before


@pytest.mark.parametrize(("workers", "moment"), [(1, "second-shard"), (2, "scanned")])
def test_killed_and_started_again_it_ends_the_same(corpus, prepared, tmp_path, moment, workers):
    out = tmp_path / "out"
    program = ("tests.helpers.killed_preparation", moment)
    command = _command(corpus, out, "--workers", str(workers), program=program)
    killed = subprocess.run(command, env=_environment(corpus), stdout=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert list(out.glob("_preparing/scans/*.json"))
    assert len(list(out.glob("_preparing/shards/*.json"))) == (moment == "second-shard")
    assert not (out / "datasheet.json").exists()
    assert not list(out.glob("*.array_record"))
    run = _prepare(corpus, out, "--workers", str(workers))
    assert run.returncode == 0, run.stderr
    assert "nothing to do" not in run.stdout
    assert _same(out, prepared[0])


def test_nothing_is_overwritten_without_being_told(corpus, prepared, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    refused = _prepare(corpus, out, "--validation", "0.5")
    assert refused.returncode == 2
    assert "recipe.validation: 0.2 there, 0.5 now" in refused.stderr
    assert _same(out, prepared[0])
    replaced = _prepare(corpus, out, "--validation", "0.5", "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    sheet = json.loads((out / "datasheet.json").read_text())
    shards = [shard["file"] for split in sheet["splits"].values() for shard in split["shards"]]
    assert sorted(path.name for path in out.glob("*.array_record")) == sorted(shards)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_ends_it_with_a_message_and_room_lets_it_go_on(corpus, prepared, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a file system")
    try:
        run = _prepare(corpus, disk / "out", "--workers", "2")
        assert run.returncode == 2
        assert "No space left on device" in run.stderr
        assert "Traceback" not in run.stderr
        assert "running" not in run.stderr  # nothing of Beam's
        assert not list((disk / "out").glob("*.array_record"))
        assert not list((disk / "out").glob("datasheet*"))
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        run = _prepare(corpus, disk / "out")
        assert run.returncode == 0, run.stderr
        assert _same(disk / "out", prepared[0])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_worker_that_dies_ends_it_with_a_message(corpus, tmp_path):
    command = _command(corpus, tmp_path / "out", "--workers", "2")
    process = subprocess.Popen(command, env=_environment(corpus), stderr=subprocess.PIPE, text=True)
    workers = []
    while not workers:
        assert process.poll() is None
        workers = workers_of(process.pid)
        time.sleep(0.05)
    os.kill(workers[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "a worker process has died" in stderr
    assert "Traceback" not in stderr


def test_an_error_of_another_thread_is_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    with errors_of_workers("flaxclip.data.prepare"):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert [arguments.exc_type for arguments in shown] == [ZeroDivisionError]


def test_options_of_beam_are_passed_on_and_typing_errors_in_them_found(corpus, tmp_path):
    run = _prepare(corpus, tmp_path / "out", "--", "--direct_num_worker=2")
    assert run.returncode == 2
    assert "Apache Beam has no option --direct_num_worker=2" in run.stderr
    run = _prepare(corpus, tmp_path / "out", "--", "--runner=DataflowRunner")
    assert run.returncode == 2
    assert "Missing required option: project" in run.stderr
    assert not (tmp_path / "out" / "datasheet.json").exists()


def test_training_reads_what_was_prepared(prepared, tmp_path):
    experiment = tmp_path / "experiment.py"
    experiment.write_text(EXPERIMENT)
    flags = ["--data.path", str(prepared[0] / "train-*.array_record"), "--steps", "4"]
    run = subprocess.run(
        [sys.executable, "-m", "flaxclip.train", experiment, *flags, "--workdir", tmp_path / "run"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert run.returncode == 0, run.stderr
    metrics = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert metrics[-1]["step"] == 4
    assert (tmp_path / "run" / "checkpoints" / "4").exists()
