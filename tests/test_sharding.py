import ast
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import flaxclip
from flaxclip.errors import InputError
from flaxclip.models.clip import check_tensor_divides
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import make_optimizer
from flaxclip.sharding import (
    MESH_AXES,
    MeshConfig,
    check_batch_divides,
    constrain,
    make_mesh,
    mesh_shardings,
)
from flaxclip.train_state import init_train_state
from tests.helpers.collectives import collectives
from tests.helpers.ten_steps import BATCH_SIZE, LOSSES, assert_equal_runs, plain_run, run
from tests.helpers.tiny_run import TINY_MODEL, tiny_config


@pytest.fixture(scope="module")
def plain():
    """Runs to be equal to, one for each loss."""
    return {loss: plain_run(loss) for loss in LOSSES}


# Each mesh, loss, implementation and number of parts once or twice. All of them: tests/exactness.
@pytest.mark.parametrize(
    ("mesh", "loss", "implementation", "accumulate"),
    [
        ((8, 1, 1), "softmax", "gathered", 4),
        ((1, 8, 1), "sigmoid", "gathered", 1),
        ((2, 2, 2), "softmax", "tiled", 1),
        ((4, 1, 2), "sigmoid", "tiled", 4),
    ],
)
def test_ten_steps_equal_the_plain_form(plain, mesh, loss, implementation, accumulate):
    changes = {"loss_form": implementation, "accumulate": accumulate} | LOSSES[loss]
    ours = run(MeshConfig(*mesh), math.prod(mesh), **changes)
    assert_equal_runs(ours, plain[loss])

    # What a device is sent of activations, [b, l, c], is of its own examples: sums over `tensor`,
    # four a block, and, all to all, what was looked up for others along `fsdp`.
    data, fsdp, tensor = mesh
    lengths = (TINY_MODEL.text.context_length, TINY_MODEL.vision.grid**2 + 1)
    own = BATCH_SIZE // accumulate // (data * fsdp)
    sent = {
        (operation, tuple(n for n in shape if n > 1)) for operation, shape in collectives(ours[2])
    }
    activations = {x for x in sent if len(x[1]) == 3 and x[1][1] in lengths}
    sums = {("all-reduce", (own, length, TINY_MODEL.vision.width)) for length in lengths}
    looked_up = {("all-to-all", (own, lengths[0], TINY_MODEL.text.width // fsdp))}
    assert activations == (sums if tensor > 1 else set()) | (looked_up if fsdp > 1 else set())


@pytest.mark.parametrize(("channels", "own"), [(34, 17), (33, 33)])
def test_channels_that_tensor_does_not_divide_stay_whole(channels, own):
    with jax.set_mesh(make_mesh(MeshConfig(tensor=2))):
        x = jax.jit(lambda x: constrain(x, "batch", None, "mlp"))(np.ones((8, 3, channels)))
    assert x.sharding.shard_shape(x.shape) == (2, 3, own)


def test_fsdp_divides_parameters_and_moments():
    config = tiny_config("unused")
    mesh = make_mesh(MeshConfig(fsdp=8))
    tx, _ = make_optimizer(config.optim, config.steps)
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
        check_tensor_divides(VARIANTS["ViT-B-32"].model, 8)


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


@pytest.mark.parametrize("axes", [("batch", None, "embed"), ("heads", None, "mlp")])
def test_axes_of_activations_that_collide_raise_with_and_without_a_mesh(axes):
    x = jnp.ones((8, 3, 8))
    with pytest.raises(ValueError, match="collide"):
        constrain(x, *axes)
    with jax.set_mesh(make_mesh(MeshConfig())), pytest.raises(ValueError, match="collide"):
        constrain(x, *axes)


def test_an_activation_needs_a_rule_for_each_name_and_an_axis_for_each_rule():
    with pytest.raises(KeyError, match="channels"):
        constrain(jnp.ones((8, 3)), "batch", "channels")
    with pytest.raises(
        ValueError, match=r"\('batch', None, 'mlp'\) for an array of shape \(8, 3\)"
    ):
        constrain(jnp.ones((8, 3)), "batch", None, "mlp")


def test_a_batch_that_the_mesh_does_not_divide_is_left_as_it_is():
    with jax.set_mesh(make_mesh(MeshConfig(tensor=2))):
        program = jax.jit(lambda x: constrain(x, "batch", "mlp")).lower(np.ones((1, 8)))
    assert "sharding_constraint" not in program.as_text()


def test_mesh_axes_are_named_in_sharding_alone():
    """Everywhere else arrays are divided by logical axes, and shards counted by them."""
    package = Path(flaxclip.__file__).parent
    named = []
    for path in sorted(package.rglob("*.py")):
        if path == package / "sharding.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_size = isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith(".shape")
            if is_size or (isinstance(node, ast.Call) and _is_about_devices(node.func)):
                inside = {x.value for x in ast.walk(node) if isinstance(x, ast.Constant)}
                named += [f"{path.name}:{node.lineno}" for axis in MESH_AXES if axis in inside]
    assert not named


def _is_about_devices(function):
    """Whether a call's arguments may be mesh axes."""
    name = ast.unparse(function).split(".")[-1]
    return name in {
        "PartitionSpec", "P", "NamedSharding", "with_sharding_constraint", "constrain", "Mesh",
        "psum", "pmean", "ppermute", "all_gather", "all_to_all", "psum_scatter", "axis_index",
    }  # fmt: skip
