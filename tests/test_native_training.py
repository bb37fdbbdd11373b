"""Training at native aspect ratio: one program for each length, and what an update learns."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxclip.checkpoint.layout import save_variables
from flaxclip.config import TrainConfig
from flaxclip.data.batch import Batch
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.errors import InputError
from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.models.clip import CLIP, CLIPConfig, init_variables
from flaxclip.models.inputs import ImageTransform
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.patches import ImagePatches
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.run.initial_weights import open_initial_weights
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh
from flaxclip.step_shapes import (
    StepShape,
    check_steps_divide,
    longer_than_learned,
    loss_factor,
    pairs_until,
    step_shapes,
)
from flaxclip.train_state import init_train_state
from flaxclip.train_step import compile_train_step, pair_flops, step_flops
from tests.helpers.tiny_run import tiny_config

GRIDS = {4: [(2, 2), (1, 3)], 16: [(2, 7), (1, 16)]}
"""Length in patches -> rows and columns of images that have room in it."""
RATE = 0.1


def make_config(family: Any = "clip", **changes: Any) -> TrainConfig:
    """A run on images of 4 patches of 4 x 4 pixels, or of 16, as many as the model's square."""
    vision = ViTConfig(image_size=16, patch_size=4, width=32, layers=1, heads=2, family=family)
    text = TextConfig(context_length=8, vocab_size=50, width=32, layers=1, heads=2)
    config = tiny_config("unused", preprocess=ImageTransform("native"), batch_size=16)
    data = dataclasses.replace(config.data, sequence_lengths=tuple(GRIDS))
    return dataclasses.replace(
        config, **({"model": CLIPConfig(vision, text, 32), "data": data} | changes)
    )


def random_batch(shape: StepShape, seed: int = 0) -> Batch:
    """Images of the grids of `shape`, with noise in their padding."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (shape.pairs, shape.patches, 48), np.uint8)
    grids = GRIDS[shape.patches]
    grid = np.array([grids[row % len(grids)] for row in range(shape.pairs)], np.int32)
    tokens = rng.integers(1, 49, (shape.pairs, 8), np.int32)
    return Batch(ImagePatches(patches, grid), tokens)


@functools.cache
def compiled(config: TrainConfig, devices: int) -> tuple[Any, Any, Any]:
    """The mesh, the first state, and a step that subtracts `RATE` times the gradients."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    tx = optax.scale_by_schedule(lambda _: -RATE)
    with jax.set_mesh(mesh):
        state = init_train_state(jax.random.key(0), config.model, tx, mesh)
        step = compile_train_step(config, tx, lambda _: jnp.float32(RATE), mesh, state)
    return mesh, state, step


def update(config: TrainConfig, batch: Batch, devices: int = 1) -> tuple[Any, Any, dict[str, Any]]:
    """The first update on so many devices: parameters before and after it, and its metrics."""
    mesh, state, step = compiled(config, devices)
    with jax.set_mesh(mesh):
        # Copied: the step donates what it is given.
        copied = jax.tree.map(jnp.copy, state)
        after, metrics = step(copied, jax.device_put(batch, batch_sharding(mesh)))
    return jax.device_get((state.params, after.params, metrics))


def gradients(config: TrainConfig, batch: Batch, devices: int = 1) -> Any:
    before, after, _ = update(config, batch, devices)
    return jax.tree.map(lambda old, new: (old - new) / RATE, before, after)


def assert_close(ours: Any, theirs: Any, tolerance: float = 3e-5) -> None:
    """In units of the largest of each parameter's."""
    for (path, our), their in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        scale = max(np.abs(their).max(), 1e-2)
        np.testing.assert_allclose(
            our, their, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path)
        )


def gradients_one_by_one(config: TrainConfig, batch: Batch) -> Any:
    """Of the same loss, where each image is alone in its batch, and has no padding."""
    _, state, _ = compiled(config, 1)
    model = CLIP(config.model, preprocess=config.preprocess)
    images, length = batch.images, batch.images.patches.shape[1]

    def loss(params: Any) -> Any:
        zimg = jnp.zeros((len(batch.tokens), config.model.embed_dim))
        for rows, columns in GRIDS[length]:
            same = np.flatnonzero((images.grid == (rows, columns)).all(axis=1))
            grid = jnp.array([[rows, columns]], jnp.int32)

            def encode(patches: Any, grid: Any = grid) -> Any:
                alone = ImagePatches(patches[None], grid)
                return model.apply({"params": params}, alone, method="encode_image")[0]

            alone = jnp.asarray(images.patches[same, : rows * columns])
            zimg = zimg.at[same].set(jax.lax.map(encode, alone))
        ztxt = model.apply({"params": params}, jnp.asarray(batch.tokens), method="encode_text")
        return softmax_contrastive_loss(zimg, ztxt, params["logit_scale"], None).loss

    params = jax.tree.map(jnp.asarray, jax.device_get(state.params))
    return jax.device_get(jax.jit(jax.grad(loss))(params))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_an_update_is_that_of_single_images_without_padding(family):
    config = make_config(family)
    for shape in step_shapes(config):
        batch = random_batch(shape)
        assert_close(gradients(config, batch), gradients_one_by_one(config, batch))


def test_steps_of_short_images_have_more_pairs():
    config = make_config()
    assert step_shapes(config) == (StepShape(64, 4), StepShape(16, 16))
    assert pairs_until(config, 0) == 0
    assert pairs_until(config, 5) == sum(config.lengths.at(step).pairs for step in range(5))
    without = dataclasses.replace(config, data=tiny_config("unused").data)
    assert step_shapes(without) == (StepShape(16, 16),)
    assert pairs_until(without, 5) == 80


@pytest.mark.parametrize("devices", [2, 8])
def test_any_number_of_devices_makes_the_same_update(devices):
    config = make_config()
    divided = dataclasses.replace(config, mesh=MeshConfig(fsdp=2))
    for shape in step_shapes(config):
        batch = random_batch(shape)
        _, expected, metrics = update(config, batch, 1)
        _, after, on_many = update(divided, batch, devices)
        assert_close(after, expected, 1e-5)
        assert on_many["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_parts_give_the_update_of_the_whole():
    config = make_config()
    in_parts = dataclasses.replace(config, accumulate=4)
    for shape in step_shapes(config):
        batch = random_batch(shape)
        assert_close(gradients(in_parts, batch, 2), gradients(config, batch, 1))


def test_the_loss_is_scaled_by_the_pairs_of_its_step():
    config = make_config()
    assert {loss_factor(config, pairs) for pairs in (16, 64)} == {1.0}
    by_root = dataclasses.replace(config, scale_loss_by_pairs="sqrt")
    assert [loss_factor(by_root, pairs) for pairs in (16, 64)] == [1.0, 2.0]
    scaled = dataclasses.replace(config, scale_loss_by_pairs="linear")
    for shape, factor in zip(step_shapes(config), (4, 1), strict=True):
        batch = random_batch(shape)
        plain = jax.tree.map(lambda g, factor=factor: factor * g, gradients(config, batch))
        assert_close(gradients(scaled, batch), plain)
        (_, _, ours), (_, _, theirs) = update(scaled, batch), update(config, batch)
        assert ours["loss"] == theirs["loss"]
        assert ours["grad_norm"] == pytest.approx(factor * theirs["grad_norm"], rel=1e-5)


def test_flops_are_a_quadratic_in_the_patches():
    """From which those of any number of patches are told."""
    config = make_config()
    flops = [pair_flops(config, patches) for patches in (4, 8, 12, 16)]
    (third_difference,) = np.diff(flops, n=3)
    assert third_difference == 0
    assert flops[-1] > pair_flops(config) > flops[-2]  # a square's positions are not resampled
    assert (
        step_flops(config)
        == sum(shape.pairs * flops[shape.patches // 4 - 1] for shape in step_shapes(config)) // 2
    )


def with_data(config: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


SQUARES = ImageTransform()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_config(preprocess=SQUARES),
            "data.sequence_lengths is 4 16, and preprocess.resize shortest",
        ),
        (
            lambda: with_data(tiny_config("unused"), token_budget=4096),
            "data.token_budget is 4,096, and preprocess.resize shortest",
        ),
        (
            lambda: tiny_config("unused", scale_loss_by_pairs="sqrt"),
            "scale_loss_by_pairs is sqrt, and all steps have 16 pairs",
        ),
        (
            lambda: tiny_config("unused", batch_divisor=4),
            "batch_divisor is 4, and all steps have 16 pairs",
        ),
        (lambda: with_data(make_config(), token_budget=15), "token_budget is 15 patches a step"),
        (lambda: with_data(make_config(), token_budget=127), "8 images of 16 patches"),
        (
            lambda: make_config(batch_size=6),
            "batch_size 6, with the 16 patches of a square each, is 96 patches a step",
        ),
        (lambda: make_config(batch_divisor=0), "batch_divisor is 0"),
        (lambda: make_config(patch_dropout=0.5), "patch_dropout is 0.5, and preprocess.resize"),
        (lambda: make_config(teacher=("better",)), "teacher is set, and preprocess.resize native"),
        (
            lambda: with_data(make_config(), teacher_vectors=True, augment=AugmentConfig()),
            "data.teacher_vectors is set, and preprocess.resize native",
        ),
        (lambda: make_config("eva02"), "rotary position embeddings of a square"),
        (
            lambda: make_config(
                model=dataclasses.replace(
                    make_config().model, vision=ResNetConfig(32, 8, (1, 1, 1, 1))
                )
            ),
            "only a vision transformer takes images at their own aspect ratio",
        ),
    ],
)
def test_what_does_not_go_with_the_aspect_ratio_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_mesh_that_does_not_divide_the_pairs_is_answered_with_a_divisor():
    mesh = make_mesh(MeshConfig())  # of eight
    check_steps_divide(make_config(), mesh)
    with pytest.raises(
        InputError,
        match=r"steps of 16 patches: 24 pairs.*8 devices in 4 parts(?s:.*)--batch-divisor 32",
    ):
        check_steps_divide(
            dataclasses.replace(with_data(make_config(), token_budget=256 + 128), accumulate=4),
            mesh,
        )


def test_lengths_beyond_what_published_models_have_learned_are_warned_of():
    assert longer_than_learned(tiny_config("unused")) is None
    assert (
        longer_than_learned(with_data(make_config(), sequence_lengths=(16, 64), token_budget=512))
        is None
    )
    longer = longer_than_learned(
        with_data(make_config(), sequence_lengths=(16, 65), token_budget=4096)
    )
    assert longer is not None
    assert "up to 65 patches have positions resampled from 4 x 4 learned ones" in longer


def test_weights_of_squares_can_start_a_run_at_native_aspect_ratio(tmp_path):
    config = make_config(init_from=str(tmp_path))
    squares = config.spec._replace(preprocess=SQUARES)
    save_variables(tmp_path, squares._asdict(), init_variables(jax.random.key(0), config.model))
    changes = open_initial_weights(config).changes
    assert changes == {"preprocess.resize": "'shortest' -> 'native'"}
    vision = dataclasses.replace(config.model.vision, patch_size=8)
    other = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vision=vision), batch_size=64
    )
    with pytest.raises(InputError, match=r"vision\.patch_size: 4 -> 8"):
        open_initial_weights(other)
