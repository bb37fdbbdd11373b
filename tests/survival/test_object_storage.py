"""Shards in gs:// and s3://, a workdir in gs://: emulators answer the real HTTP requests."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest

from flaxclip.exit_codes import PREEMPTED
from tests.helpers.free_port import free_port
from tests.helpers.pair_shards import image
from tests.survival.jobs import Job, train_command

pytest.importorskip("gcsfs")
pytest.importorskip("s3fs")

LIST = """
import json
from etils import epath

run = epath.Path("gs://bucket/run")
checkpoints = [path.name for path in (run / "checkpoints").iterdir()]
lines = (run / "metrics.jsonl").read_text().splitlines()
events = [path.name for path in (run / "tensorboard").iterdir()]
steps = [json.loads(line)["step"] for line in lines]
print(json.dumps({"checkpoints": checkpoints, "steps": steps, "events": events}))
"""


@contextlib.contextmanager
def emulator(command, tmp_path):
    """Its address, as long as it runs; buckets are in its memory."""
    if not shutil.which(command[0]):
        pytest.skip(f"needs the command {command[0]}")
    port = free_port()
    command = [part.format(port=port) for part in command]
    log = tmp_path / "emulator"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            while not listens(port):
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def google(tmp_path):
    """Environment of a process for which gs:// is an emulator's."""
    command = ["gcp-storage-emulator", "start", "--port", "{port}", "--host", "127.0.0.1"]
    command += ["--in-memory", "--default-bucket", "bucket"]
    with emulator(command, tmp_path) as address:
        # The one is read by gcsfs, for small files; the other by TensorStore, for arrays.
        yield {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}


@pytest.fixture
def amazon(tmp_path):
    """Environment of a process for which s3:// is an emulator's."""
    with emulator(["moto_server", "--host", "127.0.0.1", "--port", "{port}"], tmp_path) as address:
        yield {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


UPLOAD = """
import sys, fsspec

files = fsspec.filesystem(sys.argv[1])
files.mkdirs("bucket", exist_ok=True)
files.put(["0.tar", "1.tar"], "bucket/shards/")
"""


def upload_shards(protocol, storage, tmp_path):
    """64 pairs in two tars in a bucket."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(32 * shard, 32 * shard + 32):
                for suffix, data in (("jpg", image(number)), ("txt", b"image %d" % number)):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    command = [sys.executable, "-c", UPLOAD, protocol]
    subprocess.run(command, cwd=tmp_path, env=os.environ | storage, check=True)
    return f"{protocol}://bucket/shards/{{0..1}}.tar"


def test_shards_in_s3_are_trained_on(amazon, tmp_path):
    shards = upload_shards("s3", amazon, tmp_path)
    command = train_command("--data.path", shards, "--data.workers", "2", "--steps", "10")
    job = Job(tmp_path, command, **amazon, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert job.wait() == 0, job.remarks()
    assert "64 pairs" in job.text()
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    last = lines[-1]
    assert last["step"] == 10
    assert last["replaced_records"] == 0
    # The corpus is fetched in two requests, since it fits into the cache, and not again. Whoever
    # reads ahead may tell of them after the first line. Lines have the mean over their steps.
    steps = np.diff([0, *(line["step"] for line in lines)])
    assert steps @ [line["storage_requests"] for line in lines] >= 2
    assert steps @ [line["storage_bytes"] for line in lines] > 64 * 500
    assert last["storage_requests"] == last["storage_retries"] == 0


def test_a_run_in_object_storage_stops_and_goes_on(google, tmp_path):
    shards = upload_shards("gs", google, tmp_path)
    flags = ("--workdir", "gs://bucket/run", "--checkpoint.every-steps", "20", "--log-every", "10")
    flags += ("--data.path", shards, "--data.workers", "2")
    job = Job(tmp_path, train_command(*flags, "--steps", "1000"), **google)
    job.wait_for_text("step   20/1000")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == PREEMPTED, job.remarks()
    [stopped] = map(int, re.findall(r"stopped after step (\d+), which is saved", job.text()))

    end = str(stopped + 15)
    change = ("--resume-with-changes", "steps")
    job = Job(tmp_path, train_command(*flags, "--steps", end, *change), **google)
    assert job.wait() == 0, job.remarks()
    assert f"at step {stopped}, where its last checkpoint is" in job.text()
    assert "64 pairs" in job.text()
    listed = subprocess.run(
        [sys.executable, "-c", LIST],
        env=os.environ | google,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(listed.stdout.splitlines()[-1])
    assert {str(stopped), end} <= set(found["checkpoints"])
    assert len(found["checkpoints"]) <= 3
    assert found["steps"] == sorted(set(found["steps"]))
    assert {1, 10, 20, int(end)} <= set(found["steps"])
    assert len(found["events"]) == 2
