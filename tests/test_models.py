"""The encoders: sizes, initialisation, and numbers equal to `transformers`' CLIPModel."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax._src.cudnn import fused_attention_stablehlo

from flaxclip.errors import InputError
from flaxclip.models import layers, projections
from flaxclip.models.attention import dot_product
from flaxclip.models.clip import (
    CLIP,
    CLIPConfig,
    abstract_variables,
    example_inputs,
    init_params,
)
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit
from flaxclip.models.layers import BlockConfig, layer_norm
from flaxclip.models.patches import sample_patches
from flaxclip.models.projections import add_bias
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.transformer import Transformer, TransformerBlock
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.sharding import MeshConfig, make_mesh
from tests.helpers.peer_params import huggingface_shapes, params_from_huggingface
from tests.parity.clip_cases import TINY, random_tensors

REFERENCE = Path(__file__).parent / "golden" / "clip_reference.npz"


def tiny_config(activation: str = "quick_gelu", **changes) -> CLIPConfig:
    return CLIPConfig(
        vision=ViTConfig(**TINY["vision"], activation=activation),
        text=TextConfig(**TINY["text"], activation=activation),
        embed_dim=TINY["embed_dim"],
        **changes,
    )


CONFIG = tiny_config()
END = CONFIG.text.vocab_size - 1


@pytest.fixture(scope="module")
def params():
    weights = params_from_huggingface(random_tensors(huggingface_shapes(CONFIG)), CONFIG)
    return jax.tree.map(jnp.asarray, weights)


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as arrays:
        return {name: jnp.asarray(x) for name, x in arrays.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def apply(config, compute, method, params, inputs):
    return CLIP(config, compute).apply({"params": params}, inputs, method=method)


def encode_image(params, images, config=CONFIG, compute=ComputeConfig()):
    return apply(config, compute, "encode_image", params, jnp.asarray(images))


def encode_text(params, tokens, config=CONFIG, compute=ComputeConfig()):
    return apply(config, compute, "encode_text", params, jnp.asarray(tokens))


# Sizes


@pytest.mark.parametrize("tower", [ViTConfig, TextConfig])
def test_heads_that_do_not_divide_the_width_are_refused(tower):
    with pytest.raises(InputError, match="width 100 is not divisible by its 3 heads"):
        tower(width=100, heads=3)


def test_patches_that_do_not_divide_the_image_are_refused():
    with pytest.raises(InputError, match="image_size 224 is not divisible by patch_size 15"):
        ViTConfig(patch_size=15)


# Initialisation

INIT_CONFIG = CLIPConfig(
    vision=ViTConfig(image_size=64, patch_size=8, width=256, layers=3, heads=4),
    text=TextConfig(context_length=40, vocab_size=500, width=192, layers=5, heads=3),
    embed_dim=96,
)
# openai/CLIP, `clip/model.py`. V, T: widths of the towers. `nn.Linear` and `nn.Conv2d` begin
# uniform within +-fan_in^-1/2, `nn.MultiheadAttention` with Xavier-uniform projections (a joint
# [3 w, w] matrix) and zero biases; `initialize_parameters` then overwrites the text tower's
# matrices, not the biases, and nothing of the image tower's blocks.
V, T, TEXT_LAYERS = 256, 192, 5
NORMAL = {
    "vision/class_embedding": V**-0.5,
    "vision/position_embedding": V**-0.5,
    "vision/projection/kernel": V**-0.5,
    "text/token_embedding": 0.02,
    "text/position_embedding": 0.01,
    "text/projection/kernel": T**-0.5,
    "text/transformer/blocks/attention/qkv/kernel": T**-0.5,
    "text/transformer/blocks/attention/out/kernel": T**-0.5 * (2 * TEXT_LAYERS) ** -0.5,
    "text/transformer/blocks/mlp/fc1/kernel": (2 * T) ** -0.5,
    "text/transformer/blocks/mlp/fc2/kernel": T**-0.5 * (2 * TEXT_LAYERS) ** -0.5,
}
UNIFORM = {
    "vision/patch_embedding/kernel": (3 * 8 * 8) ** -0.5,
    "vision/transformer/blocks/attention/qkv/kernel": (6 / (V + 3 * V)) ** 0.5,
    "vision/transformer/blocks/attention/out/kernel": V**-0.5,
    "vision/transformer/blocks/mlp/fc1/kernel": V**-0.5,
    "vision/transformer/blocks/mlp/fc1/bias": V**-0.5,
    "vision/transformer/blocks/mlp/fc2/kernel": (4 * V) ** -0.5,
    "vision/transformer/blocks/mlp/fc2/bias": (4 * V) ** -0.5,
    "text/transformer/blocks/mlp/fc1/bias": T**-0.5,
    "text/transformer/blocks/mlp/fc2/bias": (4 * T) ** -0.5,
}


@pytest.fixture(scope="module")
def fresh_params():
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), INIT_CONFIG)
    return {name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()}


@pytest.mark.parametrize("name", NORMAL)
def test_normal_parameters_have_openais_deviation(fresh_params, name):
    x = fresh_params[name]
    # Five standard errors of an estimate from as many numbers.
    np.testing.assert_allclose(x.std(), NORMAL[name], rtol=5 / (2 * x.size) ** 0.5)
    assert abs(x.mean()) < 5 * NORMAL[name] / x.size**0.5
    assert abs(x).max() > 2 * NORMAL[name]  # a uniform distribution ends at sqrt(3) deviations


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_parameters_have_torchs_bounds(fresh_params, name):
    x, bound = fresh_params[name], UNIFORM[name]
    assert 0.99 * bound < abs(x).max() <= bound
    np.testing.assert_allclose(x.std(), bound / 3**0.5, rtol=5 / (2 * x.size) ** 0.5)
    assert abs(x.mean()) < 5 * bound / x.size**0.5


def test_norms_and_biases_are_initialized_trivially_and_the_scale_as_one_over_007(fresh_params):
    rest = set(fresh_params) - set(NORMAL) - set(UNIFORM)
    for name in rest - {"logit_scale"}:
        assert name.endswith(("/scale", "/bias"))
        np.testing.assert_array_equal(fresh_params[name], float(name.endswith("/scale")))
    np.testing.assert_allclose(np.exp(fresh_params["logit_scale"]), 1 / 0.07, rtol=1e-6)


def test_layers_are_initialized_differently_and_all_parameters_in_float32(fresh_params):
    for name in (*NORMAL, *UNIFORM):
        if "/blocks/" in name:
            assert len(np.unique(fresh_params[name].reshape(len(fresh_params[name]), -1)[:, 0])) > 2
    assert {x.dtype for x in fresh_params.values()} == {np.dtype("float32")}


# Numbers


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_and_logits_equal_those_stored_from_transformers(params, reference, activation):
    config = tiny_config(activation)
    zimg = encode_image(params, reference["images"], config)
    ztxt = encode_text(params, reference["tokens"], config)
    np.testing.assert_allclose(zimg, reference[f"{activation}/zimg"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(ztxt, reference[f"{activation}/ztxt"], rtol=0, atol=1e-5)
    expected = reference[f"{activation}/logits_per_image"]
    logits = jnp.exp(params["logit_scale"]) * zimg @ ztxt.T
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_embeddings_have_unit_length(params, reference):
    for z in (encode_image(params, reference["images"]), encode_text(params, reference["tokens"])):
        np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, rtol=0, atol=1e-6)


def test_text_tower_is_causal(params):
    """Row i ends at position i: its embedding depends on positions 0..i and on no later one."""
    length = CONFIG.text.context_length
    tokens = np.random.default_rng(0).integers(1, END - 1, (length, length))
    np.fill_diagonal(tokens, END)

    def of_positions(positions):
        text = params["text"] | {"position_embedding": positions}
        return encode_text(params | {"text": text}, tokens)

    jacobian = jax.jit(jax.jacobian(of_positions))(params["text"]["position_embedding"])
    size = np.linalg.norm(jacobian, axis=(1, 3))  # [end position, position]
    assert size.shape == (length, length)
    np.testing.assert_array_equal(np.triu(size, 1), 0)
    assert size[np.tril_indices(length)].min() > 1e-3


def test_image_tower_sees_every_patch(params, reference):
    def of_positions(positions):
        vision = params["vision"] | {"position_embedding": positions}
        return encode_image(params | {"vision": vision}, reference["images"])

    jacobian = jax.jit(jax.jacobian(of_positions))(params["vision"]["position_embedding"])
    assert np.linalg.norm(jacobian, axis=(1, 3)).min() > 1e-3


def test_what_follows_the_end_of_text_changes_nothing(params, reference):
    tokens = np.array(reference["tokens"])
    for row in tokens:
        after = np.argmax(row) + 1
        row[after:] = np.random.default_rng(0).integers(1, END, len(row) - after)
    assert (tokens != reference["tokens"]).any(axis=1).sum() >= 4
    np.testing.assert_array_equal(
        encode_text(params, tokens), encode_text(params, reference["tokens"])
    )


def test_a_shorter_context_gives_the_same_embeddings(params, reference):
    fits = reference["tokens"][reference["tokens"].argmax(axis=1) < 8]
    assert len(fits) >= 3
    np.testing.assert_allclose(
        encode_text(params, fits[:, :8]), encode_text(params, fits), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_scanned_stack_of_any_depth_is_the_loop_over_its_blocks(depth):
    width, heads, mlp = 24, 3, 40
    init = BlockInit.torch_default(width, mlp)
    args = (BlockConfig(heads, mlp, "gelu", init, causal=True), ComputeConfig())
    stack, block = Transformer(depth, *args), TransformerBlock(*args)
    random = np.random.default_rng(0)
    x = jnp.asarray(random.standard_normal((2, 7, width)).astype(np.float32))
    shapes = nn.unbox(jax.eval_shape(stack.init, jax.random.key(0), x))
    variables = jax.tree.map(
        lambda s: jnp.asarray(0.3 * random.standard_normal(s.shape).astype(s.dtype)), shapes
    )
    expected = stack.apply(variables, x)
    for i in range(depth):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], variables["params"]["blocks"])
        x = block.apply({"params": layer}, x)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unroll", [2, 12])  # with a rest in the image tower, and all of both
def test_unrolling_the_layers_changes_nothing(params, reference, unroll):
    unrolled = ComputeConfig(unroll=unroll)
    for encode, inputs in ((encode_image, "images"), (encode_text, "tokens")):
        np.testing.assert_allclose(
            encode(params, reference[inputs], compute=unrolled),
            encode(params, reference[inputs]),
            rtol=0,
            atol=1e-6,
        )


def test_recomputing_for_the_backward_pass_changes_no_gradient_and_saves_memory(params, reference):
    def compiled(remat):
        compute = ComputeConfig(remat=remat)

        def loss(params):
            return encode_text(params, reference["tokens"], compute=compute)[:, 0].sum()

        return jax.jit(jax.grad(loss)).lower(params).compile()

    steps = {remat: compiled(remat) for remat in ("none", "names", "full", "dots", "offload")}
    expected = steps["none"](params)
    for remat in steps:
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6),
            steps[remat](params),
            expected,
        )
    none, names, full = (
        steps[remat].memory_analysis().temp_size_in_bytes for remat in ("none", "names", "full")
    )
    assert none >= names >= full
    assert none > full


def test_gelu_in_bfloat16_is_exact_but_for_rounding():
    x = jnp.linspace(-8, 8, 4001).astype(jnp.bfloat16)
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(layers.ACTIVATIONS["gelu"])))(x)
    # Of JAX's own, the gradient is off by up to 0.0077.
    expected = np.asarray(x, np.float64)
    probability = 0.5 * (1 + scipy.special.erf(expected / np.sqrt(2)))
    density = np.exp(-(expected**2) / 2) / np.sqrt(2 * np.pi)
    half_a_digit = 2.0**-8
    np.testing.assert_allclose(
        np.asarray(value, np.float64), expected * probability, rtol=half_a_digit, atol=1e-6
    )
    np.testing.assert_allclose(
        np.asarray(gradient, np.float64),
        probability + expected * density,
        rtol=half_a_digit,
        atol=1e-4,
    )


def test_attention_as_tpus_compute_it_is_the_same(monkeypatch):
    width, heads = 24, 3
    config = BlockConfig(heads, 40, "gelu", BlockInit.torch_default(width, 40), causal=True)
    attention = layers.Attention(config, ComputeConfig())
    random = np.random.default_rng(0)
    x, dy = (jnp.asarray(random.standard_normal((2, 7, width)), jnp.float32) for _ in range(2))
    shapes = nn.unbox(jax.eval_shape(attention.init, jax.random.key(0), x))
    variables = jax.tree.map(
        lambda s: jnp.asarray(0.3 * random.standard_normal(s.shape), s.dtype), shapes
    )

    def value_and_gradients():
        value, pull_back = jax.vjp(attention.apply, variables, x)
        return value, pull_back(dy)

    expected = value_and_gradients()
    monkeypatch.setattr(projections, "target_platform", lambda: "tpu")
    assert nn.unbox(jax.eval_shape(attention.init, jax.random.key(0), x)) == shapes
    operations = [e.primitive.name for e in jax.make_jaxpr(attention.apply)(variables, x).eqns]
    assert operations.count("dot_general") == 6  # q, k, v, logits, values, and the sum over heads
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5),
        value_and_gradients(),
        expected,
    )


@pytest.mark.parametrize(("devices", "axes"), [(1, {2}), (2, {2, 3})])
def test_on_one_cpu_projections_and_their_gradients_are_products_of_two_matrices(devices, axes):
    init = BlockInit.torch_default(16, 32)
    mlp = layers.MLP(BlockConfig(2, 32, "gelu", init), ComputeConfig())
    x = jax.ShapeDtypeStruct((2, 7, 16), jnp.float32)
    variables = nn.unbox(jax.eval_shape(mlp.init, jax.random.key(0), x))

    def total(variables, x):
        return mlp.apply(variables, x).sum()

    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:devices])):
        traced = jax.jit(jax.grad(total, (0, 1))).trace(variables, x).jaxpr
    products = [e for e in traced.eqns if e.primitive.name == "dot_general"]
    assert len(products) == 6
    assert {operand.aval.ndim for e in products for operand in e.invars} == axes


@pytest.mark.parametrize(("length", "causal"), [(50, False), (77, True)])
def test_on_nvidia_attention_and_its_gradient_are_calls_of_cudnn(monkeypatch, length, causal):
    """Lowered for a GPU that is not here: that the kernel is called, not what it computes."""
    monkeypatch.setattr(dot_product, "has_cudnn_attention", lambda q: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)

    def total(q, k, v):
        return dot_product.dot_product_attention(q, k, v, causal).astype(jnp.float32).sum()

    x = jax.ShapeDtypeStruct((2, 8, length, 64), jnp.bfloat16)
    traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(x, x, x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for call in ("__cudnn$fmhaSoftmax(", "__cudnn$fmhaSoftmaxBackward("):
        assert text.count(call) == 1, call
    assert ("CAUSAL" in text) == causal


def test_what_cudnn_attention_computed_is_kept_for_the_backward_pass(monkeypatch):
    vision = dataclasses.replace(CONFIG.vision, width=64, heads=4)
    config = dataclasses.replace(CONFIG, vision=vision)
    params, (images, _) = abstract_variables(config)["params"], example_inputs(config, 2)
    monkeypatch.setattr(dot_product, "has_cudnn_attention", lambda q: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91100)
    model = CLIP(config, ComputeConfig(dtype="bfloat16", remat="names"))

    def total(params, images):
        return model.apply({"params": params}, images, method="encode_image").sum()

    traced = jax.jit(jax.grad(total)).trace(params, images)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__cudnn$fmhaSoftmax(") == 1
    assert text.count("__cudnn$fmhaSoftmaxBackward(") == 1


def test_an_image_of_which_all_patches_are_kept_is_the_whole_image(params, reference):
    grid = CONFIG.vision.grid**2
    images = reference["images"]
    patch_ids = sample_patches(jax.random.key(0), len(images), grid, grid)
    assert (np.sort(patch_ids) == np.arange(grid)).all()  # each once, in any order

    def encode(patch_ids):
        return CLIP(CONFIG).apply(
            {"params": params}, images, patch_ids=patch_ids, method="encode_image"
        )

    np.testing.assert_allclose(encode(patch_ids), encode(None), rtol=0, atol=1e-6)
    assert abs(encode(patch_ids[:, : grid // 2]) - encode(None)).max() > 1e-3


def test_bfloat16_is_close_to_float32_and_its_embeddings_are_float32(params, reference):
    types = (ComputeConfig(), ComputeConfig(dtype="bfloat16"))
    for encode, inputs in ((encode_image, "images"), (encode_text, "tokens")):
        exact, rounded = (encode(params, reference[inputs], compute=c) for c in types)
        assert rounded.dtype == jnp.float32
        cosine = (exact * rounded).sum(axis=-1)
        assert (abs(exact - rounded).max(axis=-1) > 1e-4).all(), "computed in float32"
        # bfloat16 rounds to 2^-9; after a few layers, an angle of some hundredths.
        assert cosine.min() > 1 - 0.03**2 / 2


def test_norms_are_those_of_flax():
    x = 3 + jax.random.normal(jax.random.key(0), (2, 5, 32), jnp.float32)
    ours = layer_norm("ln", 1e-6)
    theirs = nn.LayerNorm(1e-6, use_fast_variance=False)
    params = {"scale": jnp.linspace(0.5, 2, 32), "bias": jnp.linspace(-1, 1, 32)}

    def value_and_gradients(norm):
        def total(params, x):
            return jnp.sin(norm.apply({"params": params}, x)).sum()

        return jax.jit(jax.value_and_grad(total, (0, 1)))(params, x)

    for left, right in zip(
        *(jax.tree.leaves(value_and_gradients(norm)) for norm in (ours, theirs)), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


def test_a_backward_pass_takes_mean_and_variance_of_norms_from_the_forward_pass():
    block = BlockConfig(2, 64, "gelu", BlockInit.xavier(32, 64))
    transformer = Transformer(1, block, ComputeConfig(remat="names"))
    x = jax.ShapeDtypeStruct((2, 5, 32), jnp.float32)
    params = jax.eval_shape(transformer.init, jax.random.key(0), x)
    traced = jax.make_jaxpr(jax.grad(lambda p, x: transformer.apply(p, x).sum()))(params, x)
    (recomputed,) = (
        equation.params["jaxpr"]
        for equation in equations(traced)
        if equation.params.get("differentiated")
    )
    steps = [equation.primitive.name for equation in equations(recomputed)]
    assert steps.count("rsqrt") == 2, "both norms are computed again"
    names = [
        equation.params["name"] for equation in equations(recomputed) if "name" in equation.params
    ]
    assert "norm" not in names, "mean and variance are not"


def equations(jaxpr):
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(value)


def test_a_biass_gradient_as_a_product_is_the_sum():
    y, bias = jnp.ones((3, 7, 16)), jnp.zeros(16)
    weights = jax.random.normal(jax.random.key(0), y.shape)
    for dtype, rtol in ((jnp.float32, 1e-6), (jnp.bfloat16, 2**-8)):
        found = jax.grad(lambda bias, y: (add_bias(y, bias) * weights).sum())(
            bias.astype(dtype), y.astype(dtype)
        )
        assert found.dtype == dtype
        expected = weights.astype(dtype).astype(jnp.float32).sum((0, 1))
        np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=rtol, atol=1e-5)
