"""What each optimizer keeps for each kind of parameter; layers do not know of each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxclip.fine_tuning.parameter_rules import is_stacked
from flaxclip.matrix_optimizers import muon_matrices, scale_by_adafactor
from flaxclip.models.clip import CLIPConfig, abstract_variables
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig, make_optimizer
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train_state import init_train_state

# Parameter: shape; of Adafactor's second moments; what Muon does with it.
# AdamW keeps two arrays of the parameter's shape, Lion one, Adafactor one (momentum) and the second
# moments, Muon one for what it makes orthogonal, and AdamW's two for the rest.
STATES = {
    "ViT-B-16": """
    logit_scale                              |                  |                          | adamw
    text/token_embedding                     | 49408 512        | 512, 49408               | adamw
    text/position_embedding                  | 77 512           | 77, 512                  | adamw
    text/ln_final/scale                      | 512              | 512                      | adamw
    text/projection/kernel                   | 512 512          | 512, 512                 | adamw
    vision/class_embedding                   | 768              | 768                      | adamw
    vision/patch_embedding/kernel            | 768 768          | 768, 768                 | adamw
    vision/transformer/blocks/ln_1/scale     | 12 768           | 12 768                   | adamw
    .../attention/qkv/kernel                 | 12 768 12 3 64   | 12 12 3 64, 12 768 12 3  | muon
    .../attention/qkv/bias                   | 12 12 3 64       | 12 12 3 64               | adamw
    .../attention/out/kernel                 | 12 12 64 768     | 12 12 64, 12 12 768      | muon
    .../attention/out/bias                   | 12 768           | 12 768                   | adamw
    .../mlp/fc1/kernel                       | 12 768 3072      | 12 768, 12 3072          | muon
    .../mlp/fc1/bias                         | 12 3072          | 12 3072                  | adamw
    .../mlp/fc2/kernel                       | 12 3072 768      | 12 768, 12 3072          | muon
    vision/projection/kernel                 | 768 512          | 512, 768                 | adamw
""",
    "ViT-H-14": """
    vision/transformer/blocks/ln_1/bias      | 32 1280          | 32 1280                  | adamw
    .../attention/qkv/bias                   | 32 16 3 80       | 32 16 3 80               | adamw
    .../attention/qkv/kernel                 | 32 1280 16 3 80  | 32 16 3 80, 32 1280 16 3 | muon
    .../mlp/fc1/kernel                       | 32 1280 5120     | 32 1280, 32 5120         | muon
""",
    "ViT-B-16-SigLIP": """
    logit_bias                               |                  |                          | adamw
    text/projection/bias                     | 768              | 768                      | adamw
    vision/patch_embedding/bias              | 768              | 768                      | adamw
    vision/pool/probe                        | 1 768            | 1 768                    | adamw
    vision/pool/attention/query/kernel       | 768 12 64        | 12 64, 768 12            | muon
    vision/pool/attention/key/kernel         | 768 12 64        | 12 64, 768 12            | muon
    vision/pool/attention/value/bias         | 12 64            | 12 64                    | adamw
    vision/pool/attention/out/kernel         | 12 64 768        | 12 64, 12 768            | muon
    vision/pool/mlp/fc1/kernel               | 768 3072         | 768, 3072                | muon
    vision/pool/mlp/fc2/kernel               | 3072 768         | 768, 3072                | muon
""",
    "RN50": """
    vision/stem/conv1/conv/kernel            | 3 3 3 32         | 3 3 3 32                 | adamw
    vision/stem/conv2/conv/kernel            | 3 3 32 32        | 3 3 32, 3 3 32           | muon
    vision/stem/conv2/bn/scale               | 32               | 32                       | adamw
    vision/stage1/first/conv1/conv/kernel    | 1 1 64 64        | 1 1 64, 1 1 64           | muon
    vision/stage1/first/shortcut/conv/kernel | 1 1 64 256       | 1 1 64, 1 1 256          | muon
    vision/stage3/rest/conv2/conv/kernel     | 5 3 3 256 256    | 5 3 3 256, 5 3 3 256     | muon
    vision/stage3/rest/conv2/bn/scale        | 5 256            | 5 256                    | adamw
    vision/position_embedding                | 50 2048          | 50, 2048                 | adamw
    vision/pool/query/kernel                 | 2048 32 64       | 32 64, 2048 32           | muon
    vision/pool/key/bias                     | 32 64            | 32, 64                   | adamw
    vision/pool/out/kernel                   | 32 64 1024       | 32 64, 32 1024           | adamw
""",
    "LiT-B16B": """
    text/segment_embedding                   | 2 768            | 2 768                    | adamw
    text/ln_embedding/scale                  | 768              | 768                      | adamw
    vision/projection/bias                   | 768              | 768                      | adamw
""",
}  # fmt: skip


def shapes_of(variant):
    return abstract_variables(VARIANTS[variant].model)["params"]


def state_shapes(optimizer, params):
    """Name of each parameter -> shapes of its arrays in the state, but for those of one element a
    layer, which stand for nothing."""
    state = jax.eval_shape(make_optimizer(OptimConfig(optimizer=optimizer), 10_000)[0].init, params)
    paths = {path: [] for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    shapes = {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        owner = next((path[start:] for start in range(len(path)) if path[start:] in paths), None)
        if owner and (leaf.shape == shapes[owner] or leaf.shape[-1:] != (1,)):
            paths[owner].append(leaf.shape)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): found
        for path, found in paths.items()
    }


def rows(variant):
    def shape(text):
        return tuple(int(size) for size in text.split())

    stack = "vision/transformer/blocks"
    for line in STATES[variant].strip().splitlines():
        name, size, moments, muon = (cell.strip() for cell in line.split("|"))
        second = [shape(each) for each in moments.split(",")]
        yield name.replace("...", stack), shape(size), second, muon


@pytest.mark.parametrize("variant", STATES)
def test_each_optimizer_keeps_what_the_table_says(variant):
    params = shapes_of(variant)
    shapes = {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}
    kept = {name: state_shapes(name, params) for name in ("adamw", "lion", "adafactor", "muon")}
    for name, shape, moments, muon in rows(variant):
        assert shapes[name] == shape, name
        assert kept["adamw"][name] == [shape, shape], name
        assert kept["lion"][name] == [shape], name
        assert sorted(kept["adafactor"][name]) == sorted([*moments, shape]), name
        assert kept["muon"][name] == [shape] * {"muon": 1, "adamw": 2}[muon], name


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_every_variant_has_a_rule_and_layers_stay_apart(variant):
    params = shapes_of(variant)
    axes = flatten_dict(muon_matrices(params), sep="/")
    adafactor = state_shapes("adafactor", params)
    for name, leaf in flatten_dict(params, sep="/").items():
        if is_stacked(name):
            assert all(shape[0] == leaf.shape[0] for shape in adafactor[name]), name
        if axes[name] is not None:
            matrix = {*np.ravel(axes[name].reduction_axis), *np.ravel(axes[name].output_axis)}
            batch = set(range(leaf.ndim)) - matrix
            assert (0 in batch) == is_stacked(name), name


def test_a_vit_b_16_has_1_1_million_second_moments():
    """Factored from 128 upwards, as optax does it, there are 41.3 million."""
    params = shapes_of("ViT-B-16")
    state = jax.eval_shape(scale_by_adafactor(0.9, jnp.float32).init, params)[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 1_114_378  # the step among them
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 149_620_737


def test_an_unknown_parameter_is_not_left_to_adamw_by_accident():
    with pytest.raises(ValueError, match="text/adapter/kernel matches none of MUON_RULES"):
        muon_matrices({"text": {"adapter": {"kernel": jnp.ones((2, 3))}}})


# Adafactor

DIVIDED = CLIPConfig(
    vision=ViTConfig(image_size=16, patch_size=8, width=64, layers=3, heads=2),
    text=TextConfig(context_length=8, vocab_size=40, width=64, layers=2, heads=2),
    embed_dim=32,
)
BLOCKS = "text/transformer/blocks"


def draw(shapes, seed=0):
    random = np.random.default_rng(seed)
    flat = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return unflatten_dict(flat, sep="/")


def factored(square):
    """Of one layer: products of means over the two largest axes, where both have 32 or more."""
    if square.ndim < 2 or sorted(square.shape)[-2] < 32:
        return square
    *_, second, first = np.argsort(square.shape, kind="stable")
    row = square.mean(axis=first, keepdims=True)
    column = square.mean(axis=second, keepdims=True)
    return row * column / row.mean(axis=second, keepdims=True)


def numpy_adafactor(gradients, b1):
    """Shazeer & Stern 2018, algorithm 4, of one layer's gradients; its last direction."""
    square, momentum = 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        decay = min(0.999, 1 - step**-0.8)
        gradient = np.float64(gradient)
        # Means over axes and over steps can be taken in any order: it may be kept whole.
        square = decay * square + (1 - decay) * (gradient**2 + 1e-30)
        momentum = b1 * momentum + (1 - b1) * gradient / np.sqrt(factored(square))
    return momentum


def adafactor_directions(params, gradients, b1=0.9):
    tx = scale_by_adafactor(b1, jnp.float32)
    state, update = tx.init(params), jax.jit(tx.update)
    for gradient in gradients:
        direction, state = update(gradient, state, params)
    return flatten_dict(direction, sep="/")


def test_adafactor_factors_each_layer_head_and_one_of_queries_keys_and_values_by_itself():
    params = draw(
        {
            # More layers than heads, head channels or a narrow width.
            f"{BLOCKS}/attention/qkv/kernel": (70, 48, 2, 3, 33),
            f"{BLOCKS}/attention/out/kernel": (70, 2, 33, 48),
            f"{BLOCKS}/mlp/fc1/kernel": (70, 48, 96),
            f"{BLOCKS}/mlp/fc1/bias": (70, 96),
            "vision/stage1/rest/conv2/conv/kernel": (40, 3, 3, 32, 32),
            "text/token_embedding": (90, 48),
            "vision/stem/conv1/conv/kernel": (3, 3, 3, 40),
            "logit_scale": (),
        }
    )
    gradients = [draw(shapes_like(params), seed) for seed in (1, 2, 3)]
    actual = adafactor_directions(params, gradients)
    for name, direction in actual.items():
        ours = [flatten_dict(gradient, sep="/")[name] for gradient in gradients]
        if is_stacked(name):
            layers = zip(*ours, strict=True)
            expected = np.stack([numpy_adafactor(layer, 0.9) for layer in layers])
        else:
            expected = numpy_adafactor(ours, 0.9)
        np.testing.assert_allclose(direction, expected, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_step_on_a_divided_state_is_that_of_one_device():
    tx, _ = make_optimizer(OptimConfig(optimizer="adafactor", warmup_steps=0), 10)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    state = init_train_state(jax.random.key(0), DIVIDED, tx, mesh)
    gradients = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape), state.params
    )
    update = jax.jit(lambda *args: tx.update(*args)[0])
    divided = update(
        jax.device_put(gradients, jax.tree.map(lambda x: x.sharding, state.params)),
        state.opt_state,
        state.params,
    )
    whole = jax.device_get((gradients, state.opt_state, state.params))
    jax.tree.map(
        lambda ours, one: np.testing.assert_allclose(ours, one, rtol=1e-4, atol=1e-8),
        jax.device_get(divided),
        jax.device_get(update(*whole)),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        # Factors are small, and every device needs nearly all of them.
        if any(getattr(key, "name", None) in ("v_row", "v_col") for key in path):
            assert leaf.sharding.is_fully_replicated


def shapes_like(params):
    return {name: leaf.shape for name, leaf in flatten_dict(params, sep="/").items()}


def test_the_decay_of_second_moments_stops_at_0_999():
    """At step 100,000 the rule of Shazeer & Stern would keep 0.9999."""
    params = {"text": {"ln_final": {"bias": jnp.ones(4)}}}
    tx = scale_by_adafactor(0.0, jnp.float32)
    first, momentum = tx.init(params)
    for step, decay in ((0, 0.0), (99, 1 - 100**-0.8), (100_000, 0.999), (10**9, 0.999)):
        late = first._replace(count=jnp.int32(step), v=jax.tree.map(jnp.ones_like, params))
        _, (state, _) = tx.update(jax.tree.map(lambda x: 3 * x, params), (late, momentum), params)
        expected = decay + (1 - decay) * 9
        np.testing.assert_allclose(state.v["text"]["ln_final"]["bias"], expected, rtol=1e-6)
        assert int(state.count) == step + 1


def test_large_steps_of_adafactor_are_not_cut():
    """As big_vision has it; optax's own Adafactor limits the mean square of each parameter's."""
    params = {"text": {"ln_final": {"bias": jnp.ones(4)}}}
    tx = scale_by_adafactor(0.0, jnp.float32)
    state = tx.init(params)
    small = jax.tree.map(lambda x: 1e-3 * x, params)
    for _ in range(20):
        _, state = tx.update(small, state, params)
    direction, _ = tx.update(params, state, params)
    assert float(optax.tree.max(direction)) > 3


# Muon


def directions(params, gradients, **options):
    """What steps of rate 1 add up to."""
    config = OptimConfig(
        peak_lr=1.0, schedule="constant", warmup_steps=0, weight_decay=0.0, **options
    )
    tx, _ = make_optimizer(config, steps=10)
    state, update = tx.init(params), jax.jit(tx.update)
    total = jax.tree.map(np.zeros_like, params)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        total = jax.tree.map(np.add, total, updates)
    return flatten_dict(total, sep="/")


def test_muon_takes_the_matrices_of_pooling_and_convolutions_too():
    shapes = {
        "vision/pool/attention/query/kernel": ((16, 2, 8), (1, 16, 16)),
        "vision/pool/attention/out/kernel": ((2, 8, 16), (1, 16, 16)),
        "vision/pool/mlp/fc2/kernel": ((64, 16), (1, 64, 16)),
        "vision/stage1/first/conv1/conv/kernel": ((1, 1, 12, 24), (1, 12, 24)),
        "vision/stage1/rest/conv2/conv/kernel": ((5, 3, 3, 8, 8), (5, 72, 8)),
    }
    params = draw({name: shape for name, (shape, _) in shapes.items()})
    moved = directions(params, [draw(shapes_like(params), seed=1)], optimizer="muon")
    for name, (_, matrices) in shapes.items():
        for matrix in moved[name].reshape(matrices):
            values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * max(matrix.shape) ** 0.5)
            assert 0.3 < values.min() < values.max() < 1.3, name
            # That of AdamW's steps, whatever the shape (Liu et al. 2025, section 2.2).
            assert 0.1 < math.sqrt((matrix**2).mean()) < 0.26, name


def test_what_muon_leaves_to_adamw_has_the_decays_of_the_configuration():
    params = draw({"text/projection/kernel": (6, 4), "text/ln_final/bias": (4,)})
    gradients = [draw(shapes_like(params), seed) for seed in (1, 2, 3)]
    b1, b2, eps = 0.8, 0.5, 1e-6
    moved = directions(params, gradients, optimizer="muon", b1=b1, b2=b2, eps=eps)
    for name, total in moved.items():
        first = second = expected = 0.0
        for step, gradient in enumerate(gradients, 1):
            g = np.float64(flatten_dict(gradient, sep="/")[name])
            first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g**2
            ahead = b1 * first / (1 - b1 ** (step + 1)) + (1 - b1) * g / (1 - b1**step)
            expected = expected - ahead / (np.sqrt(second / (1 - b2**step)) + eps)
        np.testing.assert_allclose(total, expected, rtol=1e-5, err_msg=name)
