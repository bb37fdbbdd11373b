"""Teachers that run beside a student: what they see and say, and what a run keeps of them."""

import dataclasses
import importlib.util
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxclip
from flaxclip.api import encode_image, encode_text
from flaxclip.checkpoint.layout import run_record_of, saved_steps
from flaxclip.chips import find_chip
from flaxclip.data.batch import Batch, TeacherView
from flaxclip.data.config import DataConfig
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import (
    AugmentConfig,
    choose_crop,
    render_crop,
    render_views,
)
from flaxclip.data.loader import load_batches
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.errors import InputError
from flaxclip.losses.distillation import distillation_loss
from flaxclip.models.clip import CLIP
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.cost import model_cost
from flaxclip.models.inputs import CENTRED_MEAN, CENTRED_STD, ImageTransform
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import make_optimizer
from flaxclip.planning.compiled_step import lower_step
from flaxclip.planning.estimate import estimated_memory, estimated_seconds
from flaxclip.planning.topology import open_topology
from flaxclip.run.command_line import TrainCommand, parse
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.teachers import lesson
from flaxclip.teachers import weights as teacher_weights
from flaxclip.teachers.lesson import ask_teachers
from flaxclip.teachers.weights import load_teachers, open_teachers
from flaxclip.train import train
from flaxclip.train_state import init_train_state
from flaxclip.train_step import make_train_step, step_flops
from tests.helpers.pair_shards import image
from tests.helpers.tiny_run import TINY_MODEL, tiny_config

WIDE_MODEL = dataclasses.replace(
    TINY_MODEL,
    vision=dataclasses.replace(TINY_MODEL.vision, image_size=32, width=48),
    text=dataclasses.replace(TINY_MODEL.text, context_length=24),
    embed_dim=24,
)
OTHER_VIEW = ImageTransform("squash", "bilinear", mean=CENTRED_MEAN, std=CENTRED_STD)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run whose model sees larger images, interpolated and centred otherwise, and more ids."""
    workdir = tmp_path_factory.mktemp("teacher") / "run"
    train(tiny_config(workdir, model=WIDE_MODEL, preprocess=OTHER_VIEW, steps=4))
    return str(workdir)


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """A run whose model sees just what the student does."""
    workdir = tmp_path_factory.mktemp("alike") / "run"
    train(tiny_config(workdir, steps=4, seed=7))
    return str(workdir)


def taught(workdir, *teachers, **changes):
    return tiny_config(workdir, teacher=teachers, teacher_scale=(20.0,), **changes)


def batches(config, mesh, teachers, steps=1):
    source = ScenesSource("train", config.model.vision.image_size)
    return [
        loaded.batch
        for loaded in load_batches(
            config.data, config.spec, source, mesh, batch_size=config.batch_size, seed=0,
            start_step=0, stop_step=steps, teachers=teachers,
        )
    ]  # fmt: skip


def steps_of(config, mesh, count=3):
    """Metrics of `count` updates, and the parameters after them."""
    tx, schedule = make_optimizer(config.optim, config.steps)
    weights = open_teachers(config)
    with jax.set_mesh(mesh):
        variables = load_teachers(weights, config, mesh).variables
        state = init_train_state(jax.random.key(0), config.model, tx, mesh)
        step = make_train_step(config, tx, schedule, mesh, state)
        metrics = []
        for batch in batches(config, mesh, [teacher.spec for teacher in weights], count):
            state, found = step(state, batch, *([variables] if variables else []))
            metrics.append(jax.device_get(found))
        return metrics, jax.device_get(state.params)


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_a_view_is_what_it_would_be_by_itself(flip):
    augment = AugmentConfig((0.3, 1.0), flip=flip, color_jitter=(0.4, 0.4, 0.4, 0.1), grayscale=0.5)
    transforms = [SizedTransform(32), SizedTransform(224), SizedTransform(48, OTHER_VIEW)]
    for seed in range(4):
        encoded = image(seed, 400, 300)
        crop = choose_crop(encoded, transforms[0], augment, np.random.default_rng(seed))
        views = render_views(crop, transforms, augment, np.random.default_rng(5))
        for transform, view in zip(transforms, views, strict=True):
            alone = render_crop(crop, transform, augment, np.random.default_rng(5))
            np.testing.assert_array_equal(view, alone)


def test_a_teacher_sees_the_students_crop_and_caption_in_its_own_way(tmp_path, teacher):
    config = taught(tmp_path / "run", teacher)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, augment=AugmentConfig((0.3, 0.9), flip=0.5))
    )
    spec = open_teachers(config)[0].spec
    mesh = one_device()
    (plain,), (both,) = batches(config, mesh, []), batches(config, mesh, [spec])
    np.testing.assert_array_equal(both.images, plain.images)
    np.testing.assert_array_equal(both.tokens, plain.tokens)
    assert plain.teacher_views is None
    # The batch of a student that is the teacher, but for the crop, which no model's size decides.
    as_student = dataclasses.replace(config, teacher=(), teacher_scale=()).with_spec(spec)
    source = ScenesSource("train", config.model.vision.image_size)
    loaded = load_batches(
        as_student.data, spec, source, mesh, batch_size=config.batch_size, seed=0,
        start_step=0, stop_step=1,
    )  # fmt: skip
    ((expected, *_),) = loaded
    (view,) = both.teacher_views
    np.testing.assert_array_equal(view.images, expected.images)
    np.testing.assert_array_equal(view.tokens, expected.tokens)


@pytest.mark.parametrize("workers", [0, 2])
def test_captions_that_a_teachers_shorter_context_cuts_off_are_counted(workers):
    short = dataclasses.replace(
        TINY_MODEL, text=dataclasses.replace(TINY_MODEL.text, context_length=7)
    )
    config = tiny_config("unused")
    feed = load_batches(
        dataclasses.replace(config.data, workers=workers), config.spec, ScenesSource("train", 16),
        one_device(), batch_size=16, seed=0, start_step=0, stop_step=2,
        teachers=[ModelSpec(short), config.spec, ModelSpec(short)],
    )  # fmt: skip
    for loaded in feed:
        long = int((np.count_nonzero(loaded.batch.tokens, axis=1) > 7).sum())
        assert 0 < long < 16
        assert (loaded.truncated, loaded.truncated_for_teachers) == (0, 2 * long)


def test_the_arithmetic_of_a_plan_counts_the_matrices_of_stored_vectors():
    topology = open_topology("cpu:8", 1)
    plain = tiny_config("unused", batch_size=1024)
    data = DataConfig(teacher_vectors=True)
    without, stored = (
        estimated_memory(config, topology)
        for config in (plain, dataclasses.replace(plain, data=data))
    )
    assert stored.growing - without.growing == 3 * 4 * 1024**2 / 8
    chip = find_chip("TPU v5 lite")
    teachers = (StoredTeacher("a", 768, 1.0), StoredTeacher("b", 32, 1.0))
    alone, taught_by = (
        estimated_seconds(plain, topology, chip, stored) for stored in ((), teachers)
    )
    flops = 6 * 2 * 1024**2 * (768 + 32) + 2 * 3 * 6 * 2 * 1024**2 * TINY_MODEL.embed_dim
    assert taught_by - alone == pytest.approx(flops / 8 / chip.peak_flops)


def test_worker_processes_make_the_same_views(tmp_path, teacher):
    config = taught(tmp_path / "run", teacher)
    spec, mesh = open_teachers(config)[0].spec, one_device()
    in_workers = dataclasses.replace(config, data=dataclasses.replace(config.data, workers=2))
    (expected,), (found,) = (batches(one, mesh, [spec]) for one in (config, in_workers))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found.teacher_views[0].images.shape == (16, 32, 32, 3)


def test_a_teacher_that_sees_the_same_takes_no_second_batch(tmp_path, alike):
    config = taught(tmp_path / "run", alike)
    (batch,) = batches(config, one_device(), [open_teachers(config)[0].spec])
    assert batch.teacher_views == ((None, None),)


def test_what_is_learned_is_the_loss_of_what_the_loaded_models_say(tmp_path, teacher, monkeypatch):
    # In bfloat16, which is rounded where XLA sees fit, two programs differ by more than an error.
    monkeypatch.setattr(lesson, "COMPUTE", ComputeConfig())
    monkeypatch.setattr(teacher_weights, "_stored_type", lambda name: jnp.dtype(jnp.float32))
    config = taught(
        tmp_path / "run", teacher, contrastive_weight=0.25, teacher_weight=0.75, batch_size=8
    )
    metrics, _ = steps_of(config, one_device(), 1)
    (batch,) = batches(config, one_device(), [open_teachers(config)[0].spec])
    (view,) = batch.teacher_views
    loaded = flaxclip.load(teacher)
    vectors = [
        encode_image(loaded.variables, view.images, loaded.spec),
        encode_text(loaded.variables, view.tokens, loaded.spec),
    ]
    tx, _ = make_optimizer(config.optim, config.steps)
    state = init_train_state(jax.random.key(0), config.model, tx, one_device())
    student = CLIP(config.model, config.compute, config.preprocess)
    zimg, ztxt, scale = student.apply({"params": state.params}, batch.images, batch.tokens)
    expected = distillation_loss(zimg, ztxt, scale, *vectors, jnp.log(20.0))
    found = metrics[0]
    np.testing.assert_allclose(found["teacher_loss"], expected.loss, rtol=1e-5)
    agreements = [found[f"teacher_{way}_agreement"] for way in ("image_to_text", "text_to_image")]
    np.testing.assert_allclose(agreements, expected[1:], rtol=1e-6)
    total = 0.25 * found["contrastive_loss"] + 0.75 * found["teacher_loss"]
    np.testing.assert_allclose(found["loss"], total, rtol=1e-6)
    share = 0.75 * found["teacher_loss"] / total
    np.testing.assert_allclose(found["teacher_loss_share"], share, rtol=1e-6)


MESHES = {"2": MeshConfig(), "2,2,2": MeshConfig(2, 2, 2), "1,8,1": MeshConfig(1, 8, 1)}


@pytest.mark.parametrize("name", MESHES)
def test_a_divided_teacher_in_parts_of_a_batch_teaches_the_same(tmp_path, teacher, alike, name):
    options = {
        "batch_size": 32,
        "optim": dataclasses.replace(tiny_config("unused").optim, max_grad_norm=1.0),
    }
    expected, _ = steps_of(taught(tmp_path / "a", teacher, alike, **options), one_device(), 2)
    config = MESHES[name]
    devices = jax.devices()[: 2 if config == MeshConfig() else 8]
    changed = taught(
        tmp_path / "b", teacher, alike, mesh=config, accumulate=4, loss_form="gathered", **options
    )
    found, _ = steps_of(changed, make_mesh(config, devices), 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for metric in ("loss", "teacher_loss", "grad_norm"):
            # A teacher's activations are in bfloat16, and divided sums round otherwise.
            np.testing.assert_allclose(ours[metric], theirs[metric], rtol=2e-3, err_msg=metric)


def test_kernels_are_divided_over_fsdp_and_in_bfloat16(tmp_path, teacher):
    config = taught(tmp_path / "run", teacher, mesh=MeshConfig(1, 8, 1))
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        (variables,) = load_teachers(open_teachers(config), config, mesh).variables
    kernel = variables["params"]["text"]["projection"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    assert variables["params"]["logit_scale"].dtype == jnp.float32


def test_regression_needs_the_same_width(tmp_path, teacher, alike):
    with pytest.raises(InputError, match=r"embeds in 24 dimensions, and the student in 16"):
        open_teachers(taught(tmp_path, teacher, teacher_regression=1.0))
    metrics, _ = steps_of(taught(tmp_path, alike, teacher_regression=2.0), one_device(), 1)
    found = metrics[0]
    total = found["contrastive_loss"] + found["teacher_loss"] + 2 * found["teacher_regression"]
    np.testing.assert_allclose(found["loss"], total, rtol=1e-6)


def test_a_run_with_a_teacher_stops_and_resumes_bit_for_bit(tmp_path, teacher, alike):
    whole = taught(tmp_path / "whole", teacher, alike)
    train(whole)
    halves = taught(tmp_path / "halves", teacher, alike)
    train(halves)
    # As if killed after the save of step 4.
    shutil.rmtree(tmp_path / "halves" / "checkpoints" / "8")
    assert max(saved_steps(halves.workdir)) == 4
    train(halves)
    ours, theirs = flaxclip.load(halves.workdir), flaxclip.load(whole.workdir)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)
    lines = [
        json.loads(line)
        for line in (tmp_path / "halves" / "metrics.jsonl").read_text().split("\n")
        if line
    ]
    assert 0 < lines[-1]["teacher_loss_share"] < 1
    assert lines[-1]["teacher_truncated_captions"] == 0
    share = lines[-1]["teacher_flops_share"]
    plain = step_flops(tiny_config(tmp_path))
    np.testing.assert_allclose(share, 1 - plain / step_flops(whole))
    record = run_record_of(tmp_path / "halves", 8)["teachers"]
    assert [one["path"] for one in record] == [teacher, alike]
    assert len({one["sha256_of_checksums"] for one in record}) == 2


def test_a_resume_with_another_teacher_is_refused(tmp_path, teacher, alike):
    moved = tmp_path / "moved"
    shutil.copytree(alike, moved)
    config = taught(tmp_path / "run", str(moved), steps=4)
    train(config)
    with pytest.raises(InputError, match=r"(?s)another configuration\nteacher: .*moved"):
        train(dataclasses.replace(config, teacher=(teacher,)))
    # The same name, and other weights in it.
    shutil.rmtree(moved)
    train(tiny_config(moved, steps=4, seed=8))
    longer = dataclasses.replace(config, steps=8)
    with pytest.raises(
        InputError,
        match=r"(?s)teachers are not .* step 4\nteacher\[0\]\.sha256_of_checksums: .* -> ",
    ):
        train(longer, ("steps",))
    train(longer, ("steps", "teacher"))


def test_teachers_that_cannot_teach_are_named(tmp_path, alike):
    with pytest.raises(InputError, match="teacher nowhere: "):
        open_teachers(taught(tmp_path, "nowhere"))
    broken = tmp_path / "broken"
    shutil.copytree(alike, broken)
    for file in (broken / "checkpoints" / "4").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    config = taught(tmp_path / "run", str(broken))
    with pytest.raises(InputError, match=f"teacher {broken}: "):
        load_teachers(open_teachers(config), config, one_device())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_scale": (1.0, 2.0)}, "teacher_scale has 2 values, and teacher 1"),
        ({"teacher_scale": (-1.0,)}, "teacher_scale is -1"),
        ({"teacher_model": ("ViT-B-32", "ViT-B-32")}, "teacher_model has 2 values"),
        ({"teacher_weight": -0.5}, "teacher_weight is -0.5"),
        ({"teacher_weight": 0.0}, "nothing is learned from the teachers"),
        ({"teacher": (), "teacher_model": ("ViT-B-32",)}, "name these with --teacher"),
        ({"teacher": (), "teacher_weight": 0.0, "contrastive_weight": 0.0}, "nothing to learn"),
    ],
)
def test_weights_and_scales_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny_config("unused", **({"teacher": ("somewhere",)} | changes))


def test_several_teachers_are_named_by_one_flag_or_by_several():
    for words in (
        ["--teacher", "a", "b", "--seed", "1"],
        ["--teacher", "a", "--seed", "1", "--teacher=b"],
    ):
        config = parse(TrainCommand, ["quickstart", *words], "flaxclip.train", None).config
        assert config.teacher == ("a", "b")
        assert config.seed == 1


def test_a_run_with_named_architectures_is_planned_without_their_files():
    config = taught("unused", "nowhere", teacher_model=("ViT-B/32",), batch_size=8)
    topology = open_topology("cpu:8", 1)
    alone = dataclasses.replace(config, teacher=(), teacher_model=(), teacher_scale=())
    fsdp = dataclasses.replace(config, mesh=MeshConfig(1, 8, 1))
    cost = model_cost(VARIANTS["ViT-B-32"].model)
    assert step_flops(config) - step_flops(alone) == 8 * cost.forward_flops
    whole, divided = (
        estimated_memory(one, topology).fixed - estimated_memory(other, topology).fixed
        for one, other in ((config, alone), (fsdp, dataclasses.replace(alone, mesh=fsdp.mesh)))
    )
    assert 2 * cost.parameters < whole < 3 * cost.parameters  # kernels in bfloat16
    assert whole / 8.5 < divided < whole / 7.5
    lowered = lower_step(config, topology)
    assert lowered.matrix_flops > 1.9 * lower_step(alone, topology).matrix_flops


def test_settings_of_teachers_without_any_are_refused():
    for name, value in (("contrastive_weight", 0.5), ("teacher_scale", (2.0,))):
        with pytest.raises(InputError, match=f"^{name} is .*, and the run has no teacher"):
            tiny_config("unused", **{name: value})
    stored = DataConfig(teacher_vectors=True)
    assert tiny_config("unused", data=stored, contrastive_weight=0.5).contrastive_weight == 0.5
    with pytest.raises(InputError, match=r"teachers\n.* or leave --data\.teacher-vectors out"):
        tiny_config("unused", data=stored, teacher_weight=0.0)


def test_vectors_that_are_stored_are_learned_like_those_of_a_live_teacher(inputs_of_a_lesson):
    config, batch, vectors = inputs_of_a_lesson
    stored = (StoredTeacher("a", 4, 3.5),)
    with_vectors = batch._replace(teacher_vectors=vectors)
    taught_by, scales = ask_teachers(config, with_vectors, (), stored)
    assert taught_by is vectors
    np.testing.assert_allclose(scales, np.log(20.0), rtol=1e-6)
    without = dataclasses.replace(config, teacher_scale=())
    np.testing.assert_array_equal(ask_teachers(without, with_vectors, (), stored)[1], [3.5])
    two = dataclasses.replace(config, teacher_scale=(20.0, 30.0))
    with pytest.raises(InputError, match="teacher_scale has 2 values for 1 teachers"):
        ask_teachers(two, with_vectors, (), stored)
    both = batch._replace(teacher_vectors=vectors, teacher_views=(TeacherView(None, None),))
    with pytest.raises(InputError, match="vectors of 1 teachers, and --teacher names 1"):
        ask_teachers(config, both, ())


@pytest.fixture
def inputs_of_a_lesson():
    """A configuration without live teachers, a batch, and vectors of one teacher for it."""
    images = jnp.zeros((4, 16, 16, 3), jnp.uint8)
    vectors = ((jnp.eye(4), jnp.eye(4)),)
    batch = Batch(images, jnp.zeros((4, 20), jnp.int32))
    config = tiny_config("unused", data=DataConfig(teacher_vectors=True), teacher_scale=(20.0,))
    return config, batch, vectors


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install 'flaxclip[plan]'",
)
def test_a_step_with_a_teacher_is_lowered_for_chips_that_are_not_here():
    config = taught("unused", "elsewhere", teacher_model=("ViT-tiny",))
    compute = ComputeConfig(remat="names", unroll=1)
    config = dataclasses.replace(config, compute=compute)
    alone = dataclasses.replace(config, teacher=(), teacher_model=(), teacher_scale=())
    topology = open_topology("v5e:2x2", 1)
    with_teacher, without = (lower_step(one, topology) for one in (config, alone))
    assert with_teacher.matrix_flops > without.matrix_flops
