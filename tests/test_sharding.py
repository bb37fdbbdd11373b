import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flaxclip.data.loader import load_batches
from flaxclip.data.scenes import ScenesSource
from flaxclip.errors import InputError
from flaxclip.models.clip import check_tensor_divides
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import make_optimizer
from flaxclip.sharding import MeshConfig, check_batch_divides, make_mesh, mesh_shardings
from flaxclip.train_state import init_train_state
from flaxclip.train_step import make_train_step
from tests.tiny_run import TINY_MODEL, tiny_config

STEPS = 10


def run(mesh_config, devices, **changes):
    """Losses and final parameters of ten steps in float32."""
    config = tiny_config("unused", steps=STEPS + 1, batch_size=32, **changes)
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    tx = make_optimizer(config.optim, config.steps)
    source = ScenesSource("train", config.model.vision.image_size)
    losses = []
    with jax.set_mesh(mesh):
        state = init_train_state(jax.random.key(0), config.model, tx, mesh)
        step = make_train_step(config, tx, mesh, state)
        for loaded in load_batches(
            config.data, config.model, source, mesh,
            batch_size=config.batch_size, seed=0, start_step=0, stop_step=STEPS,
        ):  # fmt: skip
            state, metrics = step(state, loaded.batch)
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


SIGMOID = {
    "loss": "sigmoid",
    "model": dataclasses.replace(TINY_MODEL, init_logit_scale=2.3, init_logit_bias=-3.0),
}


@pytest.fixture(scope="module")
def one_device():
    """Plain runs, one for each loss."""
    return {"softmax": run(MeshConfig(), 1), "sigmoid": run(MeshConfig(), 1, **SIGMOID)}


# Every mesh with either loss; forms and parts take turns.
@pytest.mark.parametrize(
    ("mesh", "loss", "form", "accumulate"),
    [
        ((8, 1, 1), "softmax", "gathered", 4),
        ((8, 1, 1), "sigmoid", "tiled", 1),
        ((1, 8, 1), "softmax", "tiled", 4),
        ((1, 8, 1), "sigmoid", "gathered", 1),
        ((2, 2, 2), "softmax", "tiled", 1),
        ((2, 2, 2), "sigmoid", "gathered", 4),
        ((4, 1, 2), "softmax", "gathered", 1),
        ((4, 1, 2), "sigmoid", "tiled", 4),
        ((1, 1, 1), "softmax", "tiled", 4),
        ((2, 1, 1), "sigmoid", "tiled", 4),
    ],
)
def test_ten_steps_equal_those_of_one_device(one_device, mesh, loss, form, accumulate):
    changes = {"loss_form": form, "accumulate": accumulate} | (SIGMOID if loss == "sigmoid" else {})
    losses, params = run(MeshConfig(*mesh), math.prod(mesh), **changes)
    expected_losses, expected = one_device[loss]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    for name, ours, theirs in zip(*flatten(params), flatten(expected)[1], strict=True):
        if name.endswith("qkv/bias"):
            # Softmax does not see what is added to all keys, so the true gradient of their bias is
            # zero, and what Adam scales up to a step is rounding.
            ours, theirs = np.delete(ours, 1, axis=2), np.delete(theirs, 1, axis=2)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=name)


def flatten(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return names, [leaf for _, leaf in leaves]


def test_fsdp_divides_parameters_and_moments():
    config = tiny_config("unused")
    mesh = make_mesh(MeshConfig(fsdp=8))
    tx = make_optimizer(config.optim, config.steps)
    state = init_train_state(jax.random.key(0), config.model, tx, mesh)
    kernel = state.params["text"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
    assert len(moments) >= 2
    for array in (kernel, *moments):
        assert array.sharding.shard_shape(array.shape)[1] == array.shape[1] // 8


def test_a_mesh_that_does_not_fit_is_refused_with_the_numbers():
    with pytest.raises(InputError, match=r"(?s)data=3 .* does not fit 8 devices.*--mesh.data 8"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(InputError, match=r"try --mesh.fsdp 2 or --mesh.tensor 2"):
        make_mesh(MeshConfig(fsdp=4, tensor=4))


def test_heads_that_tensor_does_not_divide_are_refused_with_those_that_it_may_be():
    with pytest.raises(InputError, match=r"(?s)vision tower's 12 heads.*tensor can be 1, 2, 4 "):
        check_tensor_divides(VARIANTS["ViT-B-32"], 8)


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(InputError, match="choose 8 or 16"):
        check_batch_divides(12, make_mesh(MeshConfig()))


def test_parts_of_a_batch_that_do_not_divide_are_refused_with_the_numbers():
    with pytest.raises(InputError, match=r"(?s)8 devices.*in each of 4 parts.*choose 32 or 64"):
        check_batch_divides(48, make_mesh(MeshConfig()), accumulate=4)


def test_axes_that_collide_raise():
    shape = jax.ShapeDtypeStruct((8, 8), np.float32)
    with pytest.raises(ValueError, match="collide"):
        mesh_shardings(PartitionSpec("heads", "mlp"), shape, make_mesh(MeshConfig()))
