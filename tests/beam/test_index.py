"""`data.index` on Apache Beam; see `test_prepare` for how to run it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.beam_workers import workers_of
from tests.helpers.image_tars import jpeg, write_shard

ROOT = pathlib.Path(__file__).parents[2]
SHARDS = 70  # more than a worker is given at once


@pytest.fixture
def corpus(tmp_path):
    for shard in range(SHARDS):
        write_shard(tmp_path / f"{shard:02}.tar", {f"{shard:03}": (jpeg(shard), "a caption")})
    return tmp_path


def index(corpus, *args):
    return subprocess.run(
        [sys.executable, "-m", "flaxclip.data.index", f"{corpus}/*.tar", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_index_is_made_on_beam_and_resumed(corpus, workers):
    options = ("--workers", workers, "--", "--environment_cache_millis=0")
    run = index(corpus, *options)
    written = f"{corpus}/flaxclip_index\n"
    assert run.stdout == f"70 pairs in 70 shards, 70 of which were read: {written}", run.stderr
    assert len(list((corpus / "flaxclip_index/pieces").glob("*.table"))) >= 2
    (corpus / "flaxclip_index/table").unlink()
    run = index(corpus)
    assert run.stdout == f"70 pairs in 70 shards, 0 of which were read: {written}"
    assert run.stderr == ""


def test_broken_shards_are_all_named(corpus):
    for name in ("03.tar", "66.tar"):
        (corpus / name).write_bytes(b"no tar")
    run = index(corpus, "--workers", "1", "--", "--environment_cache_millis=0")
    assert run.returncode == 2
    assert "2 of 2 shards cannot be used" in run.stderr
    assert all(f"not a tar: {corpus}/{name}" in run.stderr for name in ("03.tar", "66.tar"))


def test_a_worker_that_dies_ends_it_with_a_message(corpus):
    command = [sys.executable, "-m", "flaxclip.data.index", f"{corpus}/*.tar", "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--", "--environment_cache_millis=0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )
    workers = []
    while not workers:
        assert process.poll() is None
        workers = workers_of(process.pid)
        time.sleep(0.05)
    os.kill(workers[0], signal.SIGKILL)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "flaxclip.data.index: a worker process has died" in stderr
    assert "Traceback" not in stderr
    run = index(corpus)
    assert run.stdout.startswith("70 pairs in 70 shards, ")
