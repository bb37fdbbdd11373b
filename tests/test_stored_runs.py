"""Whole runs that learn from vectors of teachers that are stored with the corpus."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

import flaxclip
from flaxclip.checkpoint.layout import run_record_of, saved_steps
from flaxclip.data.config import DataConfig
from flaxclip.errors import InputError
from flaxclip.run.parts import open_parts
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.teachers.encoder import open_encoder
from flaxclip.teachers.weights import load_teachers, open_teachers
from flaxclip.train import train
from tests.helpers.reinforced import (
    prepare_shards,
    teachers_recipe,
    write_captioned_tars,
    write_teacher,
)
from tests.helpers.tiny_run import tiny_config

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Weights of two teachers, of which the second embeds in more dimensions than the student."""
    folder = tmp_path_factory.mktemp("teachers")
    return write_teacher(folder / "a", 0), write_teacher(folder / "b", 1, embed_dim=24)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return write_captioned_tars(tmp_path_factory.mktemp("tars"))


@pytest.fixture(scope="module")
def corpus(tars, teachers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare_shards(teachers_recipe(tars, *teachers), folder)
    return folder


def taught(workdir, corpus, **changes):
    data = DataConfig((f"{corpus}/*.array_record",), teacher_vectors=True, workers=0)
    return tiny_config(workdir, data=data, **changes)


def logged(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["teacher_loss"] for line in lines]


def test_the_scales_that_are_stored_count_unless_others_are_given(tmp_path, teachers, corpus):
    learned = [open_encoder(teacher).logit_scale for teacher in teachers]
    np.testing.assert_allclose(learned, math.log(1 / 0.07), rtol=1e-6)
    stored = open_parts(taught(tmp_path / "unused", corpus)).stored
    assert [teacher.logit_scale for teacher in stored] == learned
    assert [teacher.width for teacher in stored] == [16, 24]
    options = {"log_every": 1, "steps": 3}
    train(taught(tmp_path / "stored", corpus, **options))
    train(taught(tmp_path / "same", corpus, teacher_scale=(1 / 0.07,) * 2, **options))
    np.testing.assert_allclose(logged(tmp_path / "same"), logged(tmp_path / "stored"), rtol=1e-6)


def test_a_teacher_has_the_same_hash_live_and_stored(tmp_path, teachers):
    encoders = tuple(map(open_encoder, teachers))
    live = tiny_config(tmp_path, teacher=teachers, mesh=MeshConfig(fsdp=8))
    mesh = make_mesh(live.mesh)
    record = load_teachers(open_teachers(live), live, mesh).record
    hashes = [one["sha256_of_checksums"] for one in record]
    assert hashes == [encoder.identity for encoder in encoders]
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_scale": (1.0, 2.0, 3.0)}, "3 values for the stored vectors of 2 teachers"),
        (
            {"teacher_regression": 1.0},
            "embeds in 24 dimensions, and the student in 16",
        ),
        ({"teacher": ("elsewhere",)}, "vectors of 2 teachers, and --teacher names 1"),
    ],
)
def test_what_stored_teachers_cannot_do_is_said_before_anything_is_written(
    tmp_path, corpus, changes, message
):
    with pytest.raises(InputError, match=message):
        train(taught(tmp_path / "run", corpus, **changes))
    assert not (tmp_path / "run").exists()


def test_a_run_with_stored_teachers_stops_and_resumes_bit_for_bit(tmp_path, corpus):
    whole, halves = (taught(tmp_path / name, corpus) for name in ("whole", "halves"))
    train(whole)
    train(halves)
    # As if killed after the save of step 4.
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "8")
    assert max(saved_steps(halves.workdir)) == 4
    train(halves)
    ours, theirs = flaxclip.load(halves.workdir), flaxclip.load(whole.workdir)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    stored = run_record_of(tmp_path / "halves", 8)["data"]["stored_teachers"]
    assert stored == [list(teacher) for teacher in open_parts(halves).stored]


def test_a_resume_with_vectors_of_other_teachers_is_refused(tmp_path, tars, teachers, corpus):
    moving = tmp_path / "corpus"
    shutil.copytree(corpus, moving)
    config = taught(tmp_path / "run", moving, steps=4)
    train(config)
    shutil.rmtree(moving)
    others = write_teacher(tmp_path / "c", 2), teachers[1]
    prepare_shards(teachers_recipe(tars, *others), moving)
    longer = dataclasses.replace(config, steps=8)
    with pytest.raises(
        InputError, match=r"(?s)not what this run has learned from up to step 4\nvectors of other"
    ):
        train(longer, ("steps",))
    train(longer, ("steps", "data"))
