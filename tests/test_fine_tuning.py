"""Which parameters stay as they are, and at which rate the others learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from flaxclip.errors import InputError
from flaxclip.fine_tuning.parameter_rules import rate_multipliers, stop_frozen_gradients
from flaxclip.flops import count_flops
from flaxclip.models.clip import CLIP, CLIPConfig, abstract_variables, example_inputs, init_params
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.cost import model_cost
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig, check_optim_patterns, make_optimizer

TINY = CLIPConfig(
    vision=ViTConfig(image_size=16, patch_size=8, width=16, layers=4, heads=2),
    text=TextConfig(context_length=4, vocab_size=9, width=16, layers=2, heads=2),
    embed_dim=8,
)


def shapes_of(name):
    return abstract_variables(VARIANTS[name].model)["params"]


def rates_of(name, multipliers=(), layer_decay=()):
    """Name of each parameter -> its factor, those of stacked layers as a list."""
    rates = flatten_dict(rate_multipliers(multipliers, layer_decay, shapes_of(name)), sep="/")
    return {name: np.ravel(rate).tolist() for name, rate in rates.items()}


def test_rates_fall_by_the_layer_from_a_towers_output_to_its_input():
    rates = rates_of("ViT-tiny", layer_decay=[("^vision/", 0.5)])
    assert rates["vision/transformer/blocks/mlp/fc1/kernel"] == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert rates["vision/transformer/blocks/ln_1/bias"] == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    for name in ("class_embedding", "patch_embedding/kernel", "position_embedding", "ln_pre/scale"):
        assert rates[f"vision/{name}"] == [1 / 32]
    for name in ("ln_post/scale", "projection/kernel"):
        assert rates[f"vision/{name}"] == [1]
    others = [rate for name, rate in rates.items() if not name.startswith("vision/")]
    assert others == [[1]] * len(others)


def test_rates_fall_by_the_block_of_a_resnet():
    rates = rates_of("RN50", layer_decay=[("^vision/", 0.5), (".", 0.1)])
    # Stages of 3, 4, 6 and 3 blocks: 16 between the stem and the pooling.
    assert rates["vision/stem/conv1/conv/kernel"] == [0.5**17]
    assert rates["vision/stage1/first/conv1/bn/scale"] == [0.5**16]
    assert rates["vision/stage1/rest/conv1/bn/scale"] == [0.5**15, 0.5**14]
    assert rates["vision/stage2/first/shortcut/conv/kernel"] == [0.5**13]
    assert rates["vision/stage4/rest/conv3/conv/kernel"] == [0.25, 0.5]
    assert rates["vision/position_embedding"] == rates["vision/pool/out/kernel"] == [1]
    np.testing.assert_allclose(rates["text/token_embedding"], 0.1**13, rtol=1e-5)
    assert rates["logit_scale"] == [1]


def test_the_embeddings_and_the_pooling_of_siglip_are_at_the_ends():
    rates = rates_of("ViT-B-16-SigLIP", layer_decay=[(".", 0.5)])
    assert rates["vision/patch_embedding/bias"] == rates["text/token_embedding"] == [0.5**13]
    assert rates["vision/pool/probe"] == rates["text/projection/bias"] == [1]
    assert rates["logit_bias"] == [1]


def test_the_embeddings_of_lits_bert_are_at_its_beginning():
    rates = rates_of("LiT-B16B", layer_decay=[(".", 0.5)])
    inputs = ("token_embedding", "position_embedding", "segment_embedding", "ln_embedding/scale")
    assert [rates[f"text/{name}"] for name in inputs] == [[0.5**13]] * 4
    assert rates["text/projection/bias"] == rates["vision/projection/bias"] == [1]


def test_the_first_pattern_that_is_found_counts_and_both_kinds_multiply():
    rates = rates_of(
        "ViT-tiny",
        multipliers=[("bias$", 0), ("^text/", 3), ("text", 7)],
        layer_decay=[("^text/", 0.5)],
    )
    assert rates["text/projection/kernel"] == [3]
    assert rates["text/transformer/blocks/mlp/fc1/kernel"] == [3 / 4, 3 / 2]
    assert rates["text/transformer/blocks/mlp/fc1/bias"] == [0, 0]
    assert rates["vision/projection/kernel"] == [1]


@pytest.fixture(scope="module")
def step():
    """Updates of one step from fixed parameters and gradients, and the optimizer's state."""
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), TINY)
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params
    )

    def step(**options):
        tx, _ = make_optimizer(OptimConfig(peak_lr=1e-2, warmup_steps=0, **options), steps=10)
        state = jax.jit(tx.init)(params)
        updates, _ = jax.jit(tx.update)(gradients, state, params)
        return flatten_dict(updates, sep="/"), state

    return step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_parameters_get_no_update_and_take_no_memory(step, optimizer):
    plain, plain_state = step(optimizer=optimizer)
    updates, state = step(optimizer=optimizer, freeze=("^vision/", "logit"))
    for name, update in updates.items():
        if name.startswith("text/"):
            np.testing.assert_allclose(update, plain[name], rtol=1e-4, atol=1e-7, err_msg=name)
            assert np.any(update)
        else:
            assert not np.any(update), name
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert any("'text'" in path for path in paths)
    assert not any("'vision'" in path for path in paths)
    assert len(paths) < len(jax.tree.leaves(plain_state))


def test_frozen_gradients_do_not_count_for_clipping(step):
    def norm(**options):
        updates, _ = step(max_grad_norm=1e-3, eps=1.0, weight_decay=0.0, **options)
        return optax.tree.norm([u for name, u in updates.items() if name.startswith("text/")])

    # With an eps that drowns the second moment, AdamW's first step is in proportion to gradients.
    np.testing.assert_allclose(norm(freeze=("^vision/", "logit")), 1e-2 * 1e-3, rtol=1e-2)
    assert norm() < 0.9e-2 * 1e-3


def test_rates_scale_updates_and_weight_decay_alike(step):
    plain, _ = step()
    updates, _ = step(
        lr_multipliers=(("^text/token_embedding", 0.1),), layer_decay=(("^vision/", 0.5),)
    )
    name = "vision/transformer/blocks/attention/out/kernel"
    rates = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2]).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(updates[name], plain[name] * rates, rtol=1e-6)
    name = "text/token_embedding"
    np.testing.assert_allclose(updates[name], plain[name] * 0.1, rtol=1e-6)
    name = "text/projection/kernel"
    np.testing.assert_array_equal(updates[name], plain[name])


def test_a_locked_tower_has_no_backward_pass():
    config = VARIANTS["ViT-tiny"].model
    images, tokens = example_inputs(config)
    variables = abstract_variables(config)

    def gradient_flops(freeze):
        def total(params, images, tokens):
            params = stop_frozen_gradients(freeze, params)
            zimg, ztxt, _ = CLIP(config, ComputeConfig(remat="none")).apply(
                {"params": params}, images, tokens
            )
            return zimg.sum() + ztxt.sum()

        return count_flops(jax.make_jaxpr(jax.grad(total))(variables["params"], images, tokens))

    cost = model_cost(config)
    # No gradient with respect to pixels: a little less than the rule of three.
    for freeze, locked in (((), ()), (("^vision/",), ("vision",)), (("^text/",), ("text",))):
        flops = gradient_flops(freeze)
        assert 0.97 * cost.training_flops(locked) < flops <= cost.training_flops(locked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ("^visual/",)}, r"optim.freeze has the pattern '\^visual/', which is in the"),
        ({"lr_multipliers": (("proj(", 1.0),)}, r"'proj\(', which is no regular expression"),
        ({"layer_decay": (("^txt/", 0.7),)}, "names are such as logit_scale"),
        ({"freeze": (".",)}, "freezes all parameters"),
    ],
)
def test_patterns_that_would_do_something_else_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        check_optim_patterns(OptimConfig(**options), shapes_of("ViT-tiny"))


@pytest.mark.parametrize("factor", [-0.1, float("inf"), float("nan")])
def test_factors_that_cannot_be_are_refused(factor):
    with pytest.raises(InputError, match="must not be negative, nor infinite"):
        OptimConfig(lr_multipliers=(("text", factor),))
