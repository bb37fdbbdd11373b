"""Image towers of `models/trunks/`: numbers equal to timm's, by the names that open_clip has."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from flaxclip.config import TrainConfig
from flaxclip.errors import InputError
from flaxclip.fine_tuning.parameter_rules import rate_multipliers
from flaxclip.interop.name_table import unflatten
from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.matrix_optimizers import muon_matrices
from flaxclip.models.clip import CLIP, abstract_variables, logical_axes
from flaxclip.models.initializers import sincos_2d
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh, mesh_shardings
from flaxclip.train_state import abstract_train_state
from flaxclip.train_step import Batch, make_train_step
from tests.helpers.trunk_configs import CONFIGS
from tests.parity.clip_cases import random_inputs
from tests.parity.open_clip_cases import random_tensors, sampled
from tests.parity.trunk_cases import ADAMW, BATCH_SIZE, STEPS, TEXT


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "golden" / "trunk_reference.npz") as arrays:
        return dict(arrays)


def tensors_of(name, reference):
    return random_tensors(json.loads(str(reference[f"{name}/shapes"])))


def variables_of(name, tensors):
    shapes = {tensor: x.shape for tensor, x in tensors.items()}
    table = open_clip_table(CONFIGS[name], shapes)
    return jax.tree.map(jnp.asarray, unflatten(dict(table.to_ours(tensors))))


def inputs_of(name):
    side = {"image_size": CONFIGS[name].vision.image_size}
    return tuple(map(jnp.asarray, random_inputs({"vision": side, "text": TEXT}, BATCH_SIZE)))


def flat(tree):
    return {name: np.asarray(x) for name, x in flatten_dict(tree, sep="/").items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_embeddings_equal_those_stored_from_timm(name, reference):
    config, variables = CONFIGS[name], variables_of(name, tensors_of(name, reference))
    fresh = abstract_variables(config)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, fresh)
    zimg, ztxt, _ = jax.jit(CLIP(config).apply)(variables, *inputs_of(name))
    np.testing.assert_allclose(zimg, reference[f"{name}/zimg"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, reference[f"{name}/ztxt"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_come_back_as_they_were(name, reference):
    tensors = tensors_of(name, reference)
    shapes = {tensor: x.shape for tensor, x in tensors.items()}
    back = open_clip_table(CONFIGS[name], shapes).to_theirs(variables_of(name, tensors))
    assert back.keys() == tensors.keys()
    for tensor, value in tensors.items():
        np.testing.assert_array_equal(back[tensor], value, strict=True)


@pytest.mark.parametrize("name", STEPS)
def test_one_adamw_step_equals_torchs(name, reference):
    """The compiled step of training itself; batch and parameters divided over devices."""
    config, tensors = CONFIGS[name], tensors_of(name, reference)
    variables = variables_of(name, tensors)
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    b1, b2 = ADAMW["betas"]
    optim = OptimConfig(
        peak_lr=ADAMW["lr"], warmup_steps=0, b1=b1, b2=b2, eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
    )  # fmt: skip
    tx, schedule = make_optimizer(optim, steps=10)
    with jax.set_mesh(mesh):
        abstract = abstract_train_state(config, tx, mesh)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
        # Copied: the step donates what it is given.
        state = zeros._replace(**jax.tree.map(jnp.copy, variables))
        state = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), state, abstract)
        run = TrainConfig("unused", 10, BATCH_SIZE, model=config)
        step = make_train_step(run, tx, schedule, mesh, state)
        batch = jax.device_put(Batch(*inputs_of(name)), batch_sharding(mesh))
        after, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], reference[f"{name}/step/loss"], rtol=1e-5)

    # Torch's samples, in our layout: NaN is what the reference does not hold.
    expected = {}
    for tensor, value in tensors.items():
        if f"{name}/step/statistic/{tensor}" in reference:
            expected[tensor] = reference[f"{name}/step/statistic/{tensor}"]
            continue
        change = np.full(value.size, np.nan, np.float32)
        change[sampled(value.size)] = reference[f"{name}/step/change/{tensor}"]
        expected[tensor] = change.reshape(value.shape)
    expected = variables_of(name, expected)
    for path, statistic in flat(expected.get("batch_stats", {})).items():
        ours = flat(after.batch_stats)[path]
        np.testing.assert_allclose(ours, statistic, rtol=1e-4, atol=1e-5, err_msg=path)
    before, params = flat(variables["params"]), flat(after.params)
    for path, change in flat(expected["params"]).items():
        known = ~np.isnan(change)
        update = params[path] - before[path]
        np.testing.assert_allclose(update[known], change[known], rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_has_axes_a_layer_and_a_rule_of_every_optimizer(name):
    config = CONFIGS[name]
    shapes = abstract_variables(config)["params"]
    tx, _ = make_optimizer(OptimConfig(weight_decay=0.1, warmup_steps=0), steps=10)
    jax.eval_shape(tx.init, shapes)
    muon_matrices(shapes)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=1), jax.devices()[:2])
    shardings = flatten_dict(mesh_shardings(logical_axes(config), shapes, mesh), sep="/")
    for path, leaf in flatten_dict(shapes, sep="/").items():
        if leaf.size >= 1000 and path.startswith("vision/"):
            assert "fsdp" in jax.tree.leaves(tuple(shardings[path].spec)), path
    rates = flatten_dict(rate_multipliers((), [("^vision/", 0.5)], shapes), sep="/")
    vision = {path: np.ravel(rate) for path, rate in rates.items() if path.startswith("vision/")}
    lowest = min(rate.min() for rate in vision.values())
    inputs = [rate for path, rate in vision.items()
              if path.startswith(("vision/patch_embedding/", "vision/stem/"))]  # fmt: skip
    assert inputs
    assert {rate.item() for rate in inputs} == {lowest}


def test_rates_fall_by_the_layers_of_the_tower_itself():
    shapes = abstract_variables(CONFIGS["eva02"])["params"]
    rates = rate_multipliers((), [("^vision/", 0.5)], shapes)["vision"]
    gate = rates["transformer"]["blocks"]["mlp"]["gate"]["kernel"]
    assert np.ravel(gate).tolist() == [1 / 8, 1 / 4, 1 / 2]
    assert rates["class_embedding"] == 1 / 16
    assert rates["projection"]["bias"] == 1


@pytest.mark.parametrize("name", ["pe", "pe_patches", "eva02"])
def test_patches_that_are_left_out_take_their_rotation_with_them(name, reference):
    """All patches in another order are the same image."""
    config, variables = CONFIGS[name], variables_of(name, tensors_of(name, reference))
    images = inputs_of(name)[0]
    order = np.random.default_rng(0).permuted(
        np.tile(np.arange(config.vision.grid**2), (BATCH_SIZE, 1)), axis=1
    )
    model = CLIP(config)
    shuffled = model.apply(variables, images, False, jnp.asarray(order), method="encode_image")
    np.testing.assert_allclose(shuffled, reference[f"{name}/zimg"], rtol=0, atol=1e-5)


def test_rates_fall_by_the_block_of_a_convnext():
    """A downsampling is a layer, as in timm."""
    shapes = abstract_variables(CONFIGS["convnext"])["params"]
    rates = rate_multipliers((), [("^vision/", 0.5)], shapes)["vision"]
    # Stages of 1, 2, 3 and 1 blocks, three of them behind a downsampling: 10 layers.
    assert rates["patch_embedding"]["kernel"] == rates["ln_pre"]["scale"] == 0.5**11
    assert np.ravel(rates["stage1"]["rest"]["layer_scale"]).tolist() == [0.5**10]
    assert rates["stage2"]["downsample"]["conv"]["kernel"] == 0.5**9
    assert np.ravel(rates["stage2"]["rest"]["mlp"]["fc1"]["bias"]).tolist() == [0.5**8, 0.5**7]
    assert np.ravel(rates["stage4"]["rest"]["ln"]["scale"]).tolist() == [0.5]
    assert rates["ln_post"]["bias"] == rates["projection"]["kernel"] == 1


def test_rates_fall_by_the_block_of_a_fastvit():
    shapes = abstract_variables(CONFIGS["fastvit"])["params"]
    rates = rate_multipliers((), [("^vision/", 0.5)], shapes)["vision"]
    # Stages of 1, 2, 1 and 2 blocks, three of them behind a downsampling: 9 layers.
    assert rates["stem"]["conv3"]["identity"]["scale"] == 0.5**10
    assert np.ravel(rates["stage1"]["rest"]["mixer_scale"]).tolist() == [0.5**9]
    assert rates["stage4"]["downsample"]["position_depthwise"]["bias"] == 0.5**3
    attention = rates["stage4"]["rest"]["attention"]["qkv"]["kernel"]
    assert np.ravel(attention).tolist() == [0.5**2, 0.5]
    assert rates["final"]["size3"]["depthwise"]["kernel"] == 1
    assert rates["projection"]["bias"] == 1


@pytest.mark.parametrize("name", ["mobile_vit", "vitamin"])
def test_convolutions_before_a_transformer_are_its_inputs(name):
    """As in timm, all of them are one layer; so are the positions."""
    shapes = abstract_variables(CONFIGS[name])["params"]
    rates = rate_multipliers((), [("^vision/", 0.5)], shapes)["vision"]
    assert {float(rate) for rate in jax.tree.leaves(rates["stem"])} == {0.5**3}
    assert rates["position_embedding"] == 0.5**3
    fc2 = rates["transformer"]["blocks"]["mlp"]["fc2"]["kernel"]
    assert np.ravel(fc2).tolist() == [0.5**2, 0.5]


def test_positions_of_clipa_start_as_sines_and_cosines_of_column_and_row():
    config = CONFIGS["clipa"].vision
    init = sincos_2d(config.grid, 1)
    positions = np.asarray(init(jax.random.key(0), (config.grid**2 + 1, 8)))
    assert not positions[0].any()
    row, column = 2, 1
    expected = [f(place / rate) for place in (column, row) for f in (np.sin, np.cos)
                for rate in (1, 10_000)]  # fmt: skip
    np.testing.assert_allclose(positions[1 + row * config.grid + column], expected, rtol=1e-5)


def test_settings_that_a_family_has_not_are_refused():
    with pytest.raises(InputError, match=r'rotary_grid is 3, and family "clip" has no rotary'):
        ViTConfig(rotary_grid=3)
    with pytest.raises(InputError, match="6 channels\nwith rotary position embeddings"):
        ViTConfig(32, 8, 24, 2, 4, family="eva02")
    with pytest.raises(InputError, match="not divisible by the 8 heads of the pooling"):
        ViTConfig(32, 8, 12, 2, 1, family="pe")
