"""The convolutional tower: batch norms as state, and numbers equal to open_clip's."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from flaxclip.config import TrainConfig
from flaxclip.errors import InputError
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, init_variables
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.modified_resnet import (
    BATCH_NORM_MOMENTUM,
    Bottleneck,
    ModifiedResNet,
    ResNetConfig,
    Stage,
)
from flaxclip.models.text_transformer import TextConfig
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh
from flaxclip.train_state import abstract_train_state
from flaxclip.train_step import Batch, make_train_step
from tests.parity.clip_cases import random_inputs
from tests.parity.foreign_params import from_open_clip
from tests.parity.open_clip_cases import (
    ADAMW,
    EMBED_DIM,
    RESNET,
    RESNET_INPUTS,
    TEXT,
    random_tensors,
    sampled,
)

CONFIG = CLIPConfig(
    vision=ResNetConfig(**RESNET), text=TextConfig(**TEXT, activation="gelu"), embed_dim=EMBED_DIM
)
FROZEN = dataclasses.replace(CONFIG.vision, frozen_statistics=True)


@pytest.fixture(scope="module")
def reference():
    path = Path(__file__).parent / "golden" / "open_clip_reference.npz"
    with np.load(path) as arrays:
        return {name.removeprefix("resnet/"): x for name, x in arrays.items() if "resnet/" in name}


@pytest.fixture(scope="module")
def variables(reference):
    shapes = json.loads(str(reference["shapes"]))
    return jax.tree.map(jnp.asarray, from_open_clip(random_tensors(shapes), CONFIG))


@pytest.fixture(scope="module")
def inputs():
    return tuple(
        map(jnp.asarray, random_inputs({"vision": RESNET, "text": TEXT}, 6, RESNET_INPUTS))
    )


def flat(tree):
    return {name: np.asarray(x) for name, x in flatten_dict(tree, sep="/").items()}


def in_training(config, variables, inputs, compute=ComputeConfig()):
    """Outputs, and the new statistics."""
    apply = functools.partial(CLIP(config, compute).apply, train=True, mutable=["batch_stats"])
    return jax.jit(apply)(variables, *inputs)


def relative_error(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def test_the_tree_is_that_of_a_fresh_model(variables):
    fresh = abstract_variables(CONFIG)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, fresh)


def test_embeddings_equal_those_stored_from_open_clip(variables, reference, inputs):
    zimg, ztxt, _ = jax.jit(CLIP(CONFIG).apply)(variables, *inputs)
    np.testing.assert_allclose(zimg, reference["zimg"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, reference["ztxt"], rtol=0, atol=1e-5)


def test_one_adamw_step_in_training_mode_equals_torchs(variables, reference, inputs):
    """The compiled step of training itself; batch, parameters and heads divided over devices."""
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=3), jax.devices()[:6])
    b1, b2 = ADAMW["betas"]
    optim = OptimConfig(
        peak_lr=ADAMW["lr"], warmup_steps=0, b1=b1, b2=b2, eps=ADAMW["eps"],
        weight_decay=ADAMW["weight_decay"],
    )  # fmt: skip
    tx, schedule = make_optimizer(optim, steps=10)
    with jax.set_mesh(mesh):
        abstract = abstract_train_state(CONFIG, tx, mesh)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract)
        # Copied: the step donates what it is given.
        state = zeros._replace(**jax.tree.map(jnp.copy, variables))
        state = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), state, abstract)
        step = make_train_step(
            TrainConfig("unused", 10, 6, model=CONFIG), tx, schedule, mesh, state
        )
        batch = jax.device_put(Batch(*inputs), batch_sharding(mesh))
        after, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], reference["step/loss"], rtol=1e-5)

    # Torch's samples, in our layout: NaN is what the reference does not hold.
    shapes = json.loads(str(reference["shapes"]))
    expected = {}
    for name, shape in shapes.items():
        if f"step/statistic/{name}" in reference:
            expected[name] = reference[f"step/statistic/{name}"]
        elif f"step/change/{name}" in reference:
            change = np.full(int(np.prod(shape)), np.nan, np.float32)
            change[sampled(change.size)] = reference[f"step/change/{name}"]
            expected[name] = change.reshape(shape)
    expected = from_open_clip(expected, CONFIG)

    statistics = flat(after.batch_stats)
    for name, statistic in flat(expected["batch_stats"]).items():
        np.testing.assert_allclose(statistics[name], statistic, rtol=1e-4, atol=1e-5, err_msg=name)

    before, params = flat(variables["params"]), flat(after.params)
    for name, change in flat(expected["params"]).items():
        update, known = params[name] - before[name], ~np.isnan(change)
        if name.endswith("qkv/bias"):
            # A key's bias adds the same to all logits of a query: its gradient is 0, and what
            # AdamW makes of rounding errors is not compared.
            known[:, :, 1] = False
        if name.endswith("pool/key/bias"):
            continue
        assert known.any(), name
        np.testing.assert_allclose(
            params[name][known], (before[name] + change)[known], rtol=0, atol=1e-6, err_msg=name
        )
        assert relative_error(update[known], change[known]) < 1e-3, name


def test_running_statistics_move_by_the_momentum_and_only_in_training(variables, inputs):
    images, _ = inputs
    tower = ModifiedResNet(CONFIG.vision, CONFIG.embed_dim)
    mine = {kind: tree["vision"] for kind, tree in variables.items()}
    pixels = images.astype(jnp.float32) / 255
    trained, updated = jax.jit(functools.partial(tower.apply, train=True, mutable=["batch_stats"]))(
        mine, pixels
    )
    evaluated, unchanged = jax.jit(functools.partial(tower.apply, mutable=["batch_stats"]))(
        mine, pixels
    )
    assert relative_error(trained, evaluated) > 0.1
    jax.tree.map(np.testing.assert_array_equal, unchanged["batch_stats"], mine["batch_stats"])

    # The first norm's batch, by hand: an unbiased variance over the three other axes.
    kernel = mine["params"]["stem"]["conv1"]["conv"]["kernel"]
    x = np.asarray(
        jax.lax.conv_general_dilated(
            pixels, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        np.float64,
    ).reshape(-1, kernel.shape[-1])
    old = mine["batch_stats"]["stem"]["conv1"]["bn"]
    new = updated["batch_stats"]["stem"]["conv1"]["bn"]
    for name, of_batch in (("mean", x.mean(axis=0)), ("var", x.var(axis=0, ddof=1))):
        expected = (1 - BATCH_NORM_MOMENTUM) * old[name] + BATCH_NORM_MOMENTUM * of_batch
        np.testing.assert_allclose(new[name], expected, rtol=1e-4)


def test_frozen_statistics_are_used_in_training_and_stay(variables, inputs):
    frozen = dataclasses.replace(CONFIG, vision=FROZEN)
    (zimg, *_), updated = in_training(frozen, variables, inputs)
    evaluated, *_ = jax.jit(CLIP(CONFIG).apply)(variables, *inputs)
    np.testing.assert_allclose(zimg, evaluated, rtol=0, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_unrolling_the_blocks_changes_nothing(variables, inputs):

    (zimg, *_), stats = in_training(CONFIG, variables, inputs)
    (unrolled_zimg, *_), unrolled_stats = in_training(
        CONFIG, variables, inputs, ComputeConfig(unroll=3)
    )
    np.testing.assert_allclose(unrolled_zimg, zimg, rtol=0, atol=1e-5)
    for name, statistic in flat(stats).items():
        np.testing.assert_allclose(flat(unrolled_stats)[name], statistic, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_scanned_stage_of_any_depth_is_the_loop_over_its_blocks(depth):
    channels, args = 4, (False, jnp.dtype("float32"))  # the batch's statistics
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((3, 8, 8, 10)).astype(np.float32))
    stage = Stage(depth, channels, 2, *args, unroll=1)
    shapes = nn.unbox(jax.eval_shape(stage.init, jax.random.key(0), x))
    variables = jax.tree.map(lambda s: jnp.asarray(random.standard_normal(s.shape)), shapes)
    expected, updated = stage.apply(variables, x, mutable=["batch_stats"])

    def apply(block, part, x):
        mine = {kind: part(tree) for kind, tree in variables.items()}
        x, new = block.apply(mine, x, mutable=["batch_stats"])
        stats = part(updated["batch_stats"])
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
            new["batch_stats"],
            stats,
        )
        return x

    x = apply(Bottleneck(channels, 2, True, *args), lambda tree: tree["first"], x)
    for i in range(depth - 1):
        x = apply(
            Bottleneck(channels, 1, False, *args),
            lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree["rest"]),
            x,
        )
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)


# Initialisation: openai/CLIP, `ModifiedResNet` and `CLIP.initialize_parameters`.


def test_parameters_are_initialized_as_openais():
    config = dataclasses.replace(CONFIG, vision=ResNetConfig(64, 16, (1, 1, 2, 1)))
    # Another generator: it compiles sooner.
    key = jax.random.key(0, impl="rbg")
    fresh = flat(jax.jit(init_variables, static_argnums=1)(key, config))
    width = 32 * 16
    for name, x in fresh.items():
        if not name.startswith(("params/vision", "batch_stats")):
            continue
        if name.endswith("conv/kernel"):
            bound = np.prod(x.shape[-4:-1]) ** -0.5
            assert 0.97 * bound < abs(x).max() <= bound, name
        elif name.endswith("kernel") or name.endswith("position_embedding"):
            np.testing.assert_allclose(x.std(), width**-0.5, rtol=5 / (2 * x.size) ** 0.5)
        elif "/pool/" in name:
            assert 0.8 * width**-0.5 < abs(x).max() <= width**-0.5, name
        elif name.endswith("scale"):
            np.testing.assert_array_equal(x, 0.0 if "/conv3/" in name and "stem" not in name else 1)
        else:
            np.testing.assert_array_equal(x, float(name.endswith("var")), err_msg=name)


# Bad input


def test_an_image_that_does_not_halve_five_times_is_refused():
    with pytest.raises(InputError, match="image_size 230 is not divisible by 32"):
        ResNetConfig(image_size=230)


def test_an_odd_width_is_refused():
    with pytest.raises(InputError, match="ResNet width 63 is odd"):
        ResNetConfig(width=63)


def test_a_batch_of_one_value_a_channel_is_refused():
    config = ResNetConfig(image_size=32, width=2, layers=(1, 1, 1, 1))
    tower = ModifiedResNet(config, 8)
    with pytest.raises(InputError, match="single value a channel"):
        jax.eval_shape(
            lambda key, x: tower.init_with_output(key, x, train=True),
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32),
        )
