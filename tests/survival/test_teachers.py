"""A student is killed, with a teacher beside it or with its stored vectors, and goes on."""

import pytest

from tests.helpers.held_steps import held
from tests.helpers.reinforced import (
    prepare_shards,
    teachers_recipe,
    write_captioned_tars,
    write_teacher,
)
from tests.helpers.tiny_run import EXPERIMENT
from tests.survival.jobs import Job, train_command
from tests.survival.outcome import assert_same_run

STEPS = 12
FLAGS = ("--steps", str(STEPS), "--log-every", "1", "--checkpoint.every-steps", "5")


def flags_of(way, folder):
    teacher = write_teacher(folder / "teacher", 1)
    if way == "live":
        return "--teacher", teacher
    tars = folder / "tars"
    tars.mkdir()
    shards = prepare_shards(
        teachers_recipe(write_captioned_tars(tars), teacher), folder / "prepared"
    )
    vectors = ("--data.teacher-vectors", "True", "--data.augment.crop-scale", "0.9", "1.0")
    return "--data.path", *map(str, shards), *vectors


@pytest.mark.parametrize("way", ["live", "stored"])
def test_a_student_that_is_killed_goes_on_as_if_it_had_not_been(way, tmp_path, tmp_path_factory):
    command = train_command(*FLAGS, *flags_of(way, tmp_path_factory.mktemp("teachers")))
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    job = Job(undisturbed, command)
    assert job.wait() == 0, job.remarks()

    folder = tmp_path / "killed"
    folder.mkdir()
    job = Job(folder, command, experiment=EXPERIMENT + held((7, 0)))
    job.wait_for_host_held(0)
    job.wait_for_checkpoint(5)
    job.kill()
    job.wait()
    job = Job(folder, command)
    assert job.wait() == 0, job.remarks()
    assert "at step 5, where its last checkpoint is" in job.text()
    assert_same_run(STEPS, folder, undisturbed)
