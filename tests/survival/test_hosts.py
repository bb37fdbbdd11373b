"""Real hosts (processes that `jax.distributed` joins), really killed, frozen and told to stop."""

import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

from flaxclip.checkpoint.layout import saved_steps
from flaxclip.exit_codes import PREEMPTED
from tests.helpers.held_steps import held
from tests.helpers.tiny_run import EXPERIMENT
from tests.helpers.xla_flags import ONE_DEVICE
from tests.survival.jobs import ROOT, Job, cluster_command, train_command
from tests.survival.outcome import assert_same_run, losses

STEPS = 50
FLAGS = (
    *("--steps", str(STEPS), "--log-every", "1", "--checkpoint.every-steps", "5"),
    *("--checkpoint.keep-every", "40", "--health.host-timeout-seconds", "120"),
)
PATIENT = """
from flaxclip.hosts import stop_signals

stop_signals._SAME_NOTICE_SECONDS = 600.0
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    job = Job(folder, cluster_command(*FLAGS))
    assert job.wait() == 0, job.remarks()
    return folder


def test_a_killed_host_costs_the_steps_since_the_last_checkpoint_and_nothing_else(
    undisturbed, tmp_path
):
    experiment = EXPERIMENT + held((7, 1), (22, 0))
    job = Job(tmp_path, cluster_command(*FLAGS, restarts=2), experiment=experiment)
    for start, (step, rank) in enumerate(((5, 1), (20, 0))):
        job.wait_for_host_held(start)
        job.wait_for_checkpoint(step)
        os.kill(job.host(rank), signal.SIGKILL)
    assert job.wait() == 0, job.remarks()
    assert "host 1 (" in job.text()
    for step in (5, 20):
        assert f"at step {step}, where its last checkpoint is" in job.text()
    assert_same_run(STEPS, tmp_path, undisturbed)


def test_a_run_that_is_told_to_stop_saves_its_step_on_all_hosts_and_goes_on_from_there(
    undisturbed, tmp_path
):
    job = Job(tmp_path, cluster_command(*FLAGS), experiment=EXPERIMENT + held((7, 0)))
    job.wait_for_host_held(0)
    os.kill(job.host(1), signal.SIGTERM)  # one host's notice stops them all
    job.wait_for_text("SIGTERM: saving, then stopping")
    (tmp_path / "go").touch()
    assert job.wait() == PREEMPTED, job.remarks()
    assert "exit codes 75, 75" in job.text()
    (stopped_at,) = set(re.findall(r"stopped after step (\d+), which is saved", job.text()))
    assert int(stopped_at) == max(saved_steps(tmp_path / "run")) == losses(tmp_path)[-1][0]
    again = Job(tmp_path, cluster_command(*FLAGS))
    assert again.wait() == 0, again.remarks()
    assert f"at step {stopped_at}, where its last checkpoint is" in again.text()
    assert_same_run(STEPS, tmp_path, undisturbed)


def test_a_frozen_host_is_named_and_the_others_do_not_wait_for_ever(tmp_path):
    """It holds its connections: nothing but its silence gives it away."""
    impatient = ("--health.host-timeout-seconds", "30")
    job = Job(tmp_path, cluster_command(*FLAGS, "--steps", "100000", *impatient, patience=3))
    job.wait_for_checkpoint(5)
    os.kill(job.host(1), signal.SIGSTOP)
    assert job.wait() == PREEMPTED, job.remarks()
    assert re.search(r"flaxclip.train: host 1 \(.*\) is dead or frozen: silent for", job.text())
    assert "host 1 is still there 3 s after another has ended: killed" in job.text()


@pytest.mark.parametrize(("processes", "devices"), [(1, 8), (1, 1), (4, 2)])
def test_a_run_goes_on_with_other_hosts_and_devices(undisturbed, tmp_path, processes, devices):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    for step in saved_steps(tmp_path / "run"):
        if step > 40:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    mesh = ("--mesh.fsdp", "2") if devices > 1 else ()
    job = Job(tmp_path, cluster_command(*FLAGS, *mesh, processes=processes, devices=devices))
    assert job.wait() == 0, job.remarks()
    assert "at step 40, where its last checkpoint is" in job.text()
    ours, theirs = losses(tmp_path), losses(undisturbed)
    assert ours[:40] == theirs[:40]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_second_run_in_the_same_workdir_is_refused_while_the_first_lives(tmp_path):
    experiment = EXPERIMENT + held((7, 0)) + PATIENT
    long = ("--health.host-timeout-seconds", "600")  # that one host may wait
    job = Job(tmp_path, cluster_command(*FLAGS, *long), experiment=experiment)
    job.wait_for_host_held(0)
    second = subprocess.run(
        train_command(),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ONE_DEVICE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"run belongs to process {job.host(0)} on " in second.stderr
    # As Ctrl-C in a terminal: to the hosts, and to the launcher, which passes it on to them.
    os.killpg(job.process.pid, signal.SIGINT)
    job.wait_for_text("SIGINT: saving, then stopping", times=2)
    (tmp_path / "go").touch()
    assert job.wait() == PREEMPTED, job.remarks()
    assert "exit codes 75, 75" in job.text()
    assert re.search(r"stopped after step \d+, which is saved", job.text())
