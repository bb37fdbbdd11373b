"""Shards and a workdir in gs://, on an emulator that answers the real HTTP requests to Google."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile

import pytest

from flaxclip.exit_codes import PREEMPTED
from tests.pair_shards import picture
from tests.survival.jobs import Job, train_command

pytest.importorskip("gcsfs")
pytest.importorskip("gcp_storage_emulator")

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


@pytest.fixture
def storage(tmp_path):
    """Environment of a process for which gs:// is a bucket in the emulator's memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = (
        "import time\n"
        "from gcp_storage_emulator.server import create_server\n"
        f"create_server('127.0.0.1', {port}, True, default_bucket='bucket').start()\n"
        "print('ready', flush=True)\n"
        "time.sleep(3600)"
    )
    log = (tmp_path / "emulator").open("w")
    with subprocess.Popen(
        [sys.executable, "-c", serve], stdout=subprocess.PIPE, stderr=log, text=True
    ) as server:
        assert server.stdout.readline() == "ready\n"
        address = f"http://127.0.0.1:{port}"
        # The one is read by gcsfs, for small files; the other by TensorStore, for arrays.
        yield {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
        server.kill()


@pytest.fixture
def shards(storage, tmp_path):
    """64 pairs in two tars in the bucket."""
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in range(32 * shard, 32 * shard + 32):
                for suffix, data in (("jpg", picture(number)), ("txt", b"picture %d" % number)):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    upload = "import fsspec; fsspec.filesystem('gs').put(['0.tar', '1.tar'], 'bucket/shards/')"
    subprocess.run(
        [sys.executable, "-c", upload], cwd=tmp_path, env=os.environ | storage, check=True
    )
    return "gs://bucket/shards/{0..1}.tar"


def test_a_run_in_object_storage_stops_and_goes_on(storage, shards, tmp_path):
    flags = ("--workdir", "gs://bucket/run", "--checkpoint.every-steps", "20", "--log-every", "10")
    flags += ("--data.path", shards, "--data.workers", "2")
    job = Job(tmp_path, train_command(*flags, "--steps", "1000"), **storage)
    job.wait_for_text("step   20/1000")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == PREEMPTED, job.text()
    [stopped] = map(int, re.findall(r"stopped after step (\d+), which is saved", job.text()))

    end = str(stopped + 15)
    change = ("--resume-with-changes", "steps")
    job = Job(tmp_path, train_command(*flags, "--steps", end, *change), **storage)
    assert job.wait() == 0, job.text()
    assert f"at step {stopped}, where its last checkpoint is" in job.text()
    assert "64 pairs" in job.text()
    listed = subprocess.run(
        [sys.executable, "-c", LIST],
        env=os.environ | storage,
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
