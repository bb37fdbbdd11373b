"""Two hosts train what one trains, and measure what one measures."""

import concurrent.futures
import json
import os
import subprocess
import sys

import numpy as np

from flaxclip.run.step_profile import PROFILES
from tests.helpers.command_lines import run_cli
from tests.helpers.free_port import free_port
from tests.helpers.profiled_steps import profiled_steps
from tests.helpers.xla_flags import ONE_DEVICE
from tests.survival.jobs import ROOT


def test_two_hosts_equal_one(experiment, finished_run, tmp_path):
    """Two processes of two devices each; to JAX they look like an Open MPI job."""
    port = free_port()

    def host(rank):
        return run_cli(
            "flaxclip.train", experiment, "--workdir", "run", "--profile-steps", "3:5",
            cwd=tmp_path,
            XLA_FLAGS=f"{ONE_DEVICE} --xla_force_host_platform_device_count=2",
            JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
            OMPI_MCA_orte_hnp_uri="1531576320.0;tcp://127.0.0.1:34911",
            OMPI_COMM_WORLD_SIZE="2", OMPI_COMM_WORLD_RANK=rank, OMPI_COMM_WORLD_LOCAL_RANK=rank,
        )  # fmt: skip

    with concurrent.futures.ThreadPoolExecutor() as pool:
        hosts = list(pool.map(host, ("0", "1")))
    assert [result.returncode for result in hosts] == [0, 0], [r.stderr for r in hosts]
    assert "4 x cpu, 2 host(s)" in hosts[0].stdout
    assert "loss" not in hosts[1].stdout
    ours, theirs = (
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path / "run", finished_run)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for host in ("host0", "host1"):
        profile = tmp_path / "run" / PROFILES / "steps-3-5" / f"{host}.xplane.pb"
        assert profiled_steps(profile) == [4, 5]


def test_two_hosts_of_four_devices_score_as_one_device(finished_run, watched, retrieved):
    result = subprocess.run(
        [sys.executable, ROOT / "launch/local_cluster.py", "--devices-per-process", "4", "--",
         sys.executable, "-m", "flaxclip.benchmark", str(finished_run / "checkpoints/4"),
         "--tasks", "scenes-unseen", "retrieval:mine.tar", "imagenet",
         "--batch-size", "100", "--max-unreadable", "0.05", "--out", "two-hosts",
         "--cache", "other-cache"],
        cwd=retrieved, env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ONE_DEVICE},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    one_device = {"scenes-unseen": watched / "4", "retrieval": retrieved / "results"}
    for task, folder in one_device.items():
        ours, theirs = (
            json.loads((where / f"{task}.json").read_text())
            for where in (retrieved / "two-hosts", folder)
        )
        for same in ("scores", "examples", "unreadable"):
            assert ours[same] == theirs[same]
