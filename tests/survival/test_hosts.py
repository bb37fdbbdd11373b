"""Real hosts (processes that `jax.distributed` joins), really killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxclip.checkpoint import load_variables, saved_steps
from flaxclip.exit_codes import PREEMPTED
from flaxclip.models.clip import abstract_variables
from tests.tiny_run import EXPERIMENT, TINY_MODEL

ROOT = Path(__file__).parents[2]
STEPS = 100
FLAGS = (
    *("--steps", str(STEPS), "--log-every", "50", "--checkpoint.every-steps", "10"),
    *("--health.host-timeout-seconds", "20"),
)


class Cluster:
    """Two hosts of two devices each, which train in `folder`."""

    def __init__(self, folder: Path, *flags: str, restarts: int = 0):
        self.folder, self.log = folder, folder / "log"
        (folder / "tiny.py").write_text(EXPERIMENT)
        train = [sys.executable, "-m", "flaxclip.train", "tiny.py", "--workdir", "run"]
        launcher = [sys.executable, ROOT / "launch" / "local_cluster.py"]
        size = ["--processes", "2", "--devices-per-process", "2", "--restarts", str(restarts)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*launcher, *size, "--", *train, *FLAGS, *flags],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> int:
        return self.process.wait(timeout=120)

    def wait_for_checkpoint(self, step: int) -> None:
        for _ in range(1200):
            if max(saved_steps(self.folder / "run"), default=0) >= step:
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def host(self, rank: int) -> int:
        """Process that this host is now."""
        return int(re.findall(rf"host {rank} is process (\d+)", self.log.read_text())[-1])

    def params(self):
        abstract = abstract_variables(TINY_MODEL)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract
        )
        return load_variables(self.folder / "run", STEPS, abstract)["params"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("undisturbed"))
    assert cluster.wait() == 0, cluster.log.read_text()
    return cluster.params()


def test_a_killed_host_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    undisturbed, tmp_path
):
    cluster = Cluster(tmp_path, restarts=2)
    for starts, (step, rank) in enumerate(((10, 1), (40, 0)), 1):
        cluster.wait_for_checkpoint(step)
        while cluster.log.read_text().count("host 1 is process") < starts:
            time.sleep(0.1)
        os.kill(cluster.host(rank), signal.SIGKILL)
    assert cluster.wait() == 0, cluster.log.read_text()
    jax.tree.map(np.testing.assert_array_equal, cluster.params(), undisturbed)


def test_a_run_that_is_told_to_stop_saves_its_step_on_all_hosts_and_goes_on_from_there(
    undisturbed, tmp_path
):
    cluster = Cluster(tmp_path)
    cluster.wait_for_checkpoint(10)
    os.kill(cluster.host(1), signal.SIGTERM)  # one host's notice stops them all
    assert cluster.wait() == PREEMPTED, cluster.log.read_text()
    log = cluster.log.read_text()
    assert "exit codes 75, 75" in log
    (stopped_at,) = set(re.findall(r"stopped after step (\d+), which is saved", log))
    assert int(stopped_at) == max(saved_steps(tmp_path / "run"))
    again = Cluster(tmp_path)
    assert again.wait() == 0, again.log.read_text()
    assert f"step {stopped_at} of {STEPS}" in again.log.read_text()
    jax.tree.map(np.testing.assert_array_equal, again.params(), undisturbed)


def test_a_second_run_in_the_same_workdir_is_refused_while_the_first_lives(tmp_path):
    cluster = Cluster(tmp_path, "--steps", "100000")
    cluster.wait_for_checkpoint(10)
    second = subprocess.run(
        [sys.executable, "-m", "flaxclip.train", "tiny.py", "--workdir", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"run belongs to process {cluster.host(0)} on " in second.stderr
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.wait() == PREEMPTED
