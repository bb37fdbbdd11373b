"""Which parameters decay, what the learning rate is at a step, and updates in plain NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxclip.errors import InputError
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import (
    MAX_LOGIT_SCALE,
    OptimConfig,
    applied_updates,
    clamp_logit_scale,
    decay_mask,
    make_optimizer,
    make_schedule,
    update_average,
)
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train_state import abstract_train_state

BLOCK = {
    "ln_1/scale": False,
    "ln_1/bias": False,
    "attention/qkv/kernel": True,
    "attention/qkv/bias": False,  # stacked: [layers, heads, 3, channels]
    "attention/out/kernel": True,
    "attention/out/bias": False,
    "ln_2/scale": False,
    "ln_2/bias": False,
    "mlp/fc1/kernel": True,
    "mlp/fc1/bias": False,
    "mlp/fc2/kernel": True,
    "mlp/fc2/bias": False,
}
BLOCKS = {f"transformer/blocks/{name}": decays for name, decays in BLOCK.items()}
POOL = {
    f"{name}/{kind}": kind == "kernel"
    for name in ("query", "key", "value", "out")
    for kind in ("kernel", "bias")
}
NORM = {"scale": False, "bias": False}
CONV_NORM = {"conv/kernel": True, **{f"bn/{name}": False for name in NORM}}


def under(prefix, names):
    return {f"{prefix}/{name}": decays for name, decays in names.items()}


VISION = {
    "clip": {
        "class_embedding": False,  # open_clip decays nothing of fewer than two dimensions
        "patch_embedding/kernel": True,
        "position_embedding": True,
        **under("ln_pre", NORM),
        **BLOCKS,
        **under("ln_post", NORM),
        "projection/kernel": True,
    },
    "siglip": {
        "patch_embedding/kernel": True,
        "patch_embedding/bias": False,
        "position_embedding": True,
        **BLOCKS,
        **under("ln_post", NORM),
        "pool/probe": False,
        **under("pool/attention", POOL),
        **under("pool/ln", NORM),
        **{f"pool/{name}": decays for name, decays in BLOCK.items() if name.startswith("mlp/")},
    },
    "resnet": {
        **{k: v for n in (1, 2, 3) for k, v in under(f"stem/conv{n}", CONV_NORM).items()},
        **{
            name: decays
            for stage in (1, 2, 3, 4)
            for part in ("first/conv1", "first/conv2", "first/conv3", "first/shortcut",
                         "rest/conv1", "rest/conv2", "rest/conv3")
            for name, decays in under(f"stage{stage}/{part}", CONV_NORM).items()
        },
        "position_embedding": True,
        **under("pool", POOL),
    },
}  # fmt: skip
TEXT = {
    "token_embedding": True,
    "position_embedding": True,
    **BLOCKS,
    **under("ln_final", NORM),
    "projection/kernel": True,
}
VISION["vit"] = {
    "class_embedding": False,
    **{name: decays for name, decays in VISION["siglip"].items() if not name.startswith("pool/")},
    **{"projection/kernel": True, "projection/bias": False},
}
EXTRAS = {
    "siglip": {"text/projection/bias": False, "logit_bias": False},
    "vit": {
        **{"text/segment_embedding": True, "text/projection/bias": False},
        **under("text/ln_embedding", NORM),
    },
}


# Weight decay


@pytest.mark.parametrize("variant", ["ViT-tiny", "RN50", "ViT-B-16-SigLIP", "LiT-B16B"])
def test_every_parameter_of_every_kind_of_tower_decays_or_not_as_listed(variant):
    config = VARIANTS[variant].model
    kind = getattr(config.vision, "family", "resnet")
    expected = {
        "logit_scale": False,
        **under("vision", VISION[kind]),
        **under("text", TEXT),
        **EXTRAS.get(kind, {}),
    }
    if kind == "vit":  # BERT ends with its last block's norm
        expected = {n: d for n, d in expected.items() if not n.startswith("text/ln_final")}
    params = abstract_variables(config)["params"]
    assert flatten_dict(decay_mask(params), sep="/") == expected


def test_a_parameter_of_unknown_name_raises():
    with pytest.raises(
        ValueError, match=r"parameter text/adapter/gain matches none of DECAY_RULES"
    ):
        decay_mask({"text": {"adapter": {"gain": jnp.ones((2, 3))}}})


# Learning rate


def test_the_rate_rises_linearly_to_the_peak_and_falls_as_a_cosine_to_zero():
    schedule = make_schedule(OptimConfig(peak_lr=2e-3, warmup_steps=10), steps=110)
    rates = [float(schedule(step)) for step in (0, 1, 5, 10, 35, 60, 85, 110)]
    half = np.cos(np.pi / 4)
    expected = [0, 2e-4, 1e-3, 2e-3, 1e-3 * (1 + half), 1e-3, 1e-3 * (1 - half), 0]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)


def test_linear_falls_to_zero_and_constant_does_not():
    for schedule, expected in (
        ("linear", [0, 1e-3, 2e-3, 1e-3, 0]),
        ("constant", [0, 1e-3, 2e-3, 2e-3, 2e-3]),
    ):
        config = OptimConfig(peak_lr=2e-3, warmup_steps=10, schedule=schedule)
        rate = make_schedule(config, steps=110)
        rates = [float(rate(step)) for step in (0, 5, 10, 60, 110)]
        np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)


def test_rsqrt_halves_when_steps_quadruple_and_then_cools_down():
    config = OptimConfig(peak_lr=2e-3, warmup_steps=10, schedule="rsqrt", cooldown_steps=20)
    rate = make_schedule(config, steps=180)
    rates = [float(rate(step)) for step in (5, 10, 40, 160, 170, 180)]
    np.testing.assert_allclose(rates, [1e-3, 2e-3, 1e-3, 5e-4, 2.5e-4, 0], rtol=1e-5, atol=1e-9)


def test_schedules_that_contradict_themselves_are_refused():
    with pytest.raises(InputError, match="cooldown_steps is 5 with schedule cosine"):
        OptimConfig(cooldown_steps=5)
    with pytest.raises(InputError, match="warmup_steps is 0 with schedule rsqrt"):
        OptimConfig(schedule="rsqrt", warmup_steps=0)
    config = OptimConfig(schedule="constant", warmup_steps=6, cooldown_steps=4)
    with pytest.raises(InputError, match=r"warmup_steps 6 and .* 4 are not below"):
        make_schedule(config, steps=10)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    schedule = make_schedule(OptimConfig(peak_lr=2e-3, warmup_steps=0), steps=10)
    np.testing.assert_allclose(schedule(0), 2e-3, rtol=1e-6)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(InputError, match="warmup_steps 10 is not below the run's 10 steps"):
        make_schedule(OptimConfig(warmup_steps=10), steps=10)


@pytest.mark.parametrize(
    "field",
    [{"peak_lr": -1e-3}, {"weight_decay": -0.1}, {"max_grad_norm": 0.0}, {"ema_decay": 1.0}],
)
def test_values_that_make_no_sense_are_refused(field):
    with pytest.raises(InputError, match=f"optim.{next(iter(field))} is"):
        OptimConfig(**field)


# Updates

STEPS = 5


@pytest.fixture
def params():
    random = np.random.default_rng(0)
    return {
        "text": {
            "projection": {"kernel": random.normal(size=(4, 3)).astype(np.float32)},
            "ln_final": {"bias": random.normal(size=4).astype(np.float32)},
        },
        "logit_scale": np.float32(2.0),
    }


def random_gradients(params, size=0.1):
    random = np.random.default_rng(1)

    def draw(x):
        return (size * random.normal(size=x.shape)).astype(np.float32)

    return [jax.tree.map(draw, params) for _ in range(STEPS)]


def train(params, gradients, config):
    params = jax.tree.map(jnp.asarray, params)
    tx, _ = make_optimizer(config, steps=10)
    opt_state = tx.init(params)
    for grads in gradients:
        updates, opt_state = jax.jit(tx.update)(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adafactor", "muon"])
@pytest.mark.parametrize("options", [{}, {"freeze": ("bias$",), "lr_multipliers": (("scale", 2),)}])
def test_the_learning_rate_goes_by_the_updates_that_the_optimizer_has_made(
    params, optimizer, options
):
    config = OptimConfig(optimizer=optimizer, peak_lr=0.1, warmup_steps=2, **options)
    tx, schedule = make_optimizer(config, steps=10)
    params = jax.tree.map(jnp.asarray, params)
    opt_state = tx.init(params)
    for updates, grads in enumerate(random_gradients(params)):
        assert applied_updates(opt_state) == updates
        _, opt_state = jax.jit(tx.update)(grads, opt_state, params)
    assert applied_updates(opt_state) == STEPS
    expected = make_schedule(config, steps=10)
    assert [schedule(count) for count in range(10)] == [expected(count) for count in range(10)]


def numpy_adamw(params, gradients, config):
    """Loshchilov & Hutter 2019, algorithm 2, with PyTorch's decay, in float64."""
    decays = {"text/projection/kernel"}
    schedule = make_schedule(config, steps=10)
    flat = {n: np.asarray(x, np.float64) for n, x in flatten_dict(params, sep="/").items()}
    m = dict.fromkeys(flat, 0.0)
    v = dict.fromkeys(flat, 0.0)
    for step, grads in enumerate(gradients):
        lr = float(schedule(step))
        for name, g in flatten_dict(grads, sep="/").items():
            g = np.asarray(g, np.float64)
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            m_hat = m[name] / (1 - config.b1 ** (step + 1))
            v_hat = v[name] / (1 - config.b2 ** (step + 1))
            decay = config.weight_decay * flat[name] * (name in decays)
            flat[name] = flat[name] - lr * (m_hat / (np.sqrt(v_hat) + config.eps) + decay)
    return flat


def test_updates_are_those_of_adamw(params):
    config = OptimConfig(peak_lr=0.1, warmup_steps=2, weight_decay=0.5, eps=1e-2)
    gradients = random_gradients(params)
    actual = flatten_dict(train(params, gradients, config), sep="/")
    for name, expected in numpy_adamw(params, gradients, config).items():
        np.testing.assert_allclose(actual[name], expected, rtol=1e-5, atol=1e-6)


def test_large_gradients_are_scaled_to_the_maximal_norm_and_small_ones_left(params):
    config = OptimConfig(peak_lr=0.1, warmup_steps=0, eps=1.0, max_grad_norm=0.5)
    for size, clipped in ((10.0, True), (0.01, False)):
        gradients = random_gradients(params, size)
        norms = [
            np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(grads)))
            for grads in gradients
        ]
        assert all((norm > 0.5) == clipped for norm in norms)
        scaled = [
            jax.tree.map(lambda x, norm=norm: x * min(1, 0.5 / norm), grads)
            for grads, norm in zip(gradients, norms, strict=True)
        ]
        actual = flatten_dict(train(params, gradients, config), sep="/")
        for name, expected in numpy_adamw(params, scaled, config).items():
            np.testing.assert_allclose(actual[name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("before", "after"), [(9.0, np.log(100)), (4.6, 4.6), (0.5, 0.5), (-0.5, 0.0)]
)
def test_the_logit_scale_is_kept_between_1_and_100_and_nothing_else_is(before, after):
    other = {"kernel": jnp.array([-9.0, 9.0])}
    clamped = clamp_logit_scale({"logit_scale": jnp.float32(before), "text": other})
    np.testing.assert_allclose(clamped["logit_scale"], after, rtol=1e-6)
    assert clamped["text"] is other


def test_a_scale_at_its_bound_can_come_down_again(params):
    params["logit_scale"] = np.float32(MAX_LOGIT_SCALE)
    config = OptimConfig(peak_lr=0.1, warmup_steps=0)
    gradients = [jax.tree.map(np.zeros_like, params) | {"logit_scale": np.float32(0.3)}]
    assert clamp_logit_scale(train(params, gradients, config))["logit_scale"] < MAX_LOGIT_SCALE


# Other optimizers

BLOCKS = "vision/transformer/blocks"


def stacked_params():
    """Two blocks' attention and MLP, as the model stacks them."""
    random = np.random.default_rng(0)
    shapes = {
        f"{BLOCKS}/attention/qkv/kernel": (2, 16, 4, 3, 4),
        f"{BLOCKS}/attention/out/kernel": (2, 4, 4, 16),
        f"{BLOCKS}/mlp/fc1/kernel": (2, 16, 64),
        f"{BLOCKS}/mlp/fc1/bias": (2, 64),
    }
    return unflatten_dict(
        {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
        sep="/",
    )


def change(params, gradients, **options):
    """What the updates of a plain rate of 1 add up to."""
    config = OptimConfig(
        peak_lr=1.0, schedule="constant", warmup_steps=0, weight_decay=0.0, **options
    )
    after = train(params, gradients, config)
    return flatten_dict(
        jax.tree.map(lambda new, old: np.asarray(new - old), after, params), sep="/"
    )


def test_lion_moves_every_parameter_by_the_rate():
    params = stacked_params()
    gradients = random_gradients(params)[:2]
    moved = change(params, gradients, optimizer="lion", b1=0.9, b2=0.99)
    for name, update in moved.items():
        first, second = (flatten_dict(g, sep="/")[name] for g in gradients)
        expected = -np.sign(first) - np.sign(0.9 * 0.01 * first + 0.1 * second)
        np.testing.assert_allclose(update, expected, atol=1e-5)


def test_adafactor_is_momentum_over_the_root_of_a_mean_square():
    params = stacked_params()
    gradients = random_gradients(params)
    moved = change(params, gradients, optimizer="adafactor", b1=0.9)
    for name, update in moved.items():
        square = momentum = expected = 0.0
        for step, g in enumerate((flatten_dict(g, sep="/")[name] for g in gradients), 1):
            decay = 1 - step**-0.8
            square = decay * square + (1 - decay) * (np.float64(g) ** 2 + 1e-30)
            momentum = 0.9 * momentum + 0.1 * g / np.sqrt(square)
            expected = expected - momentum
        np.testing.assert_allclose(update, expected, rtol=1e-4, atol=1e-5)


def test_muon_makes_each_matrix_orthogonal():
    params = stacked_params()
    moved = change(params, random_gradients(params)[:1], optimizer="muon")
    qkv = moved[f"{BLOCKS}/attention/qkv/kernel"]
    matrices = [qkv[layer, :, :, part].reshape(16, 16) for layer in (0, 1) for part in (0, 1, 2)]
    matrices += list(moved[f"{BLOCKS}/attention/out/kernel"].reshape(2, 16, 16))
    matrices += list(moved[f"{BLOCKS}/mlp/fc1/kernel"])
    for matrix in matrices:
        values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * max(matrix.shape) ** 0.5)
        # Five Newton-Schulz steps with Jordan's coefficients: about 1, and no smaller ones left.
        assert 0.3 < values.min() < values.max() < 1.3
    # What is no matrix is Adam's, with Nesterov's momentum: at first 0.9 * 0.1 / (1 - 0.9^2) + 1.
    np.testing.assert_allclose(abs(moved[f"{BLOCKS}/mlp/fc1/bias"]), 0.09 / 0.19 + 1, rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adafactor", "muon"])
def test_moments_lie_like_their_parameters_with_momentum_in_bfloat16(optimizer):
    config = CLIPConfig()
    mesh = make_mesh(MeshConfig(fsdp=8))
    optim = OptimConfig(optimizer=optimizer, momentum_dtype="bfloat16")
    state = abstract_train_state(config, make_optimizer(optim, 10_000)[0], mesh, ema=True)
    kernel = state.params["text"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == kernel.shape]
    assert moments
    assert all(moment.sharding == kernel.sharding for moment in moments)
    assert [moment.dtype for moment in moments].count(jnp.bfloat16) == 1
    shards = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state))
    assert shards < sum(x.size for x in jax.tree.leaves(state)) / 4
    average = state.ema["text"]["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert (average.shape, average.sharding) == (kernel.shape, kernel.sharding)


def test_the_average_forgets_the_first_parameters_and_then_keeps_its_share(params):
    average, expected = params, params
    for step, decay in enumerate((0.1, 2 / 11, 0.2, 0.2)):
        params = jax.tree.map(lambda x: x + 1, params)
        average = update_average(average, params, 0.2, jnp.int32(step))
        expected = jax.tree.map(
            lambda old, new, keep=decay: keep * old + (1 - keep) * new, expected, params
        )
    for ours, theirs in zip(jax.tree.leaves(average), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
