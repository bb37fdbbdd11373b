"""Hosts that train at native aspect ratio, killed: the lengths and examples of each step stay."""

import json
import os
import random
import signal

import jax
import numpy as np
import pytest

import flaxclip
from tests.helpers.held_steps import held
from tests.helpers.odd_shapes import EXPERIMENT, LENGTHS, native_config, write_odd_shapes
from tests.survival.jobs import Job, cluster_command

STEPS = 24
FLAGS = (
    *("--steps", str(STEPS), "--mesh.fsdp", "2", "--checkpoint.every-steps", "4"),
    *("--health.host-timeout-seconds", "120"),
)


def start(folder, *, processes=2, devices=2, restarts=0, held_at=()):
    write_odd_shapes(folder / "odd.tar")
    command = cluster_command(*FLAGS, processes=processes, devices=devices, restarts=restarts)
    return Job(folder, command, experiment=EXPERIMENT + held(*held_at))


def reports(folder):
    """Step, length, pairs and loss of every report."""
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    names = "step", "sequence_length", "step_pairs", "loss"
    return [tuple(json.loads(line)[name] for name in names) for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    job = start(folder)
    assert job.wait() == 0, job.remarks()
    lengths = native_config("unused", "unused").lengths
    assert {length for _, length, _, _ in reports(folder)} == set(LENGTHS)
    assert [report[:3] for report in reports(folder)] == [
        (step, lengths.at(step - 1).patches, lengths.at(step - 1).pairs)
        for step in range(1, STEPS + 1)
    ]
    return folder


def test_hosts_killed_at_random_steps_change_not_one_bit(undisturbed, tmp_path):
    chance = random.Random(0)
    # A checkpoint may be half written then.
    killed_at = [(chance.randint(1, 7) + 8 * n, chance.randint(0, 1)) for n in (1, 2)]
    job = start(tmp_path, restarts=2, held_at=killed_at)
    for number, (_, rank) in enumerate(killed_at):
        job.wait_for_host_held(number)
        os.kill(job.host(rank), signal.SIGKILL)
    assert job.wait() == 0, job.remarks()
    # The loss of a step is that of its examples: no other batch has the same.
    assert reports(tmp_path) == reports(undisturbed)
    ours, theirs = (flaxclip.load(folder / "run").variables for folder in (tmp_path, undisturbed))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_what_two_hosts_began_one_goes_on_with(undisturbed, tmp_path):
    begun = start(tmp_path, held_at=[(7, 0)])
    begun.wait_for_checkpoint(4)
    begun.wait_for_host_held(0)
    os.kill(begun.host(0), signal.SIGKILL)
    assert begun.wait() != 0
    job = start(tmp_path, processes=1, devices=4)
    assert job.wait() == 0, job.remarks()
    assert "at step 4, where its last checkpoint is" in job.text()
    assert "1 host(s)" in job.text()
    ours, theirs = reports(tmp_path), reports(undisturbed)
    assert [report[:3] for report in ours] == [report[:3] for report in theirs]
    np.testing.assert_allclose(
        [report[3] for report in ours], [report[3] for report in theirs], rtol=1e-5
    )
