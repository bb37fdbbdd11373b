"""The TPU's attention kernel, interpreted on the CPU, beside XLA's in float32."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.experimental.pallas import tpu as pltpu

from flaxclip.errors import InputError
from flaxclip.flops import count_bfloat16_passes
from flaxclip.models import projections
from flaxclip.models.attention import dot_product, tpu_attention
from flaxclip.models.attention.dot_product import dot_product_attention
from flaxclip.models.attention.tpu_attention import attention
from flaxclip.models.clip import check_kernel
from flaxclip.models.compute import KERNEL_CHANNELS, KERNEL_POSITIONS, ComputeConfig
from flaxclip.models.initializers import BlockInit
from flaxclip.models.layers import BlockConfig
from flaxclip.models.transformer import Transformer
from flaxclip.models.variants import VARIANTS
from flaxclip.planning.account.kernels import is_kernel, kernel_cycles
from flaxclip.planning.hlo import parse_program
from flaxclip.planning.topology import open_topology
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh

# Raises where an index is out of bounds, unlike `interpret=True`.
STRICT = pltpu.InterpretParams()


def inputs(examples, heads, length, head_dim, dtype=jnp.float32, padded=False):
    *arrays, key = jax.random.split(jax.random.key(length), 5)
    shape = examples, length, heads * head_dim
    mask = jax.random.bernoulli(key, 0.7, shape[:2]).at[0].set(False) if padded else None
    return [jax.random.normal(key, shape, dtype) for key in arrays], mask


def results(attend, q, k, v, dz):
    """What attention returns, and the gradients of its inputs."""
    z, gradients = jax.vjp(attend, q, k, v)
    return [np.asarray(x, np.float32) for x in (z, *gradients(dz.astype(z.dtype)))]


def by_xla(heads, causal, mask):
    def attend(*qkv):
        q, k, v = (rearrange(x, "b l (h k) -> b h l k", h=heads) for x in qkv)
        return rearrange(
            dot_product_attention(q, k, v, causal, "xla", mask), "b h l k -> b l (h k)"
        )

    return attend


def by_kernel(heads, causal, mask):
    masks = [] if mask is None else [mask]
    return lambda *qkv: attention(*qkv, *masks, heads=heads, causal=causal, interpret=STRICT)


# Towers' lengths and heads; examples that do not fill a tile, and some of two.
@pytest.mark.parametrize(
    ("examples", "heads", "length", "head_dim", "causal", "padded"),
    [
        (3, 2, 50, 64, False, False),
        (10, 4, 17, 32, True, False),
        (2, 2, 77, 64, True, False),
        (2, 2, 77, 64, False, True),
        (2, 1, 40, 64, True, True),
        (1, 1, 197, 72, False, False),
        (1, 2, 257, 64, False, False),
        (1, 1, 257, 88, False, True),
        (1, 1, 257, 104, False, False),
        (1, 1, 577, 80, True, False),
    ],
)
def test_values_and_gradients_are_those_of_xla(examples, heads, length, head_dim, causal, padded):
    arrays, mask = inputs(examples, heads, length, head_dim, padded=padded)
    found = results(by_kernel(heads, causal, mask), *arrays)
    expected = results(by_xla(heads, causal, mask), *arrays)
    for name, x, y in zip(("z", "dq", "dk", "dv"), found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5, err_msg=name)


def test_rounded_to_16_bits_it_is_as_close_to_float32_as_xla():
    arrays, _ = inputs(5, 2, 50, 64, jnp.bfloat16)
    exact = results(by_xla(2, False, None), *(x.astype(jnp.float32) for x in arrays))
    found = results(by_kernel(2, False, None), *arrays)
    plain = results(by_xla(2, False, None), *arrays)
    for name, *both, reference in zip(("z", "dq", "dk", "dv"), found, plain, exact, strict=True):
        errors = [np.linalg.norm(x - reference) / np.linalg.norm(reference) for x in both]
        assert errors[0] < 1.1 * errors[1] < 0.01, (name, errors)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs 4 devices")
def test_every_device_attends_to_its_own_examples_and_heads():
    arrays, mask = inputs(4, 2, 20, 128, padded=True)
    attend = functools.partial(attention, heads=2, causal=True, interpret=True)

    with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:4])):
        found = results(jax.jit(lambda *qkv: attend(*qkv, mask)), *arrays)
    expected = results(by_xla(2, True, mask), *arrays)
    for name, x, y in zip(("z", "dq", "dk", "dv"), found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5, err_msg=name)


def test_what_matrix_units_do_is_counted():
    q = jax.ShapeDtypeStruct((16, 50, 256), jnp.bfloat16)
    traced = jax.make_jaxpr(lambda *qkv: attention(*qkv, heads=4, causal=False))(q, q, q)
    # Two products of 64 rows, 128 columns and a depth of 128 for two heads of each example.
    assert count_bfloat16_passes(traced) == 16 * 2 * 2 * 2 * 64 * 128 * 128


def test_the_forward_kernel_is_not_run_again_for_the_backward_pass(monkeypatch):
    for module in (projections, dot_product):
        monkeypatch.setattr(module, "target_platform", lambda: "tpu")
    block = BlockConfig(2, 64, "gelu", BlockInit.xavier(128, 64))
    transformer = Transformer(1, block, ComputeConfig(remat="names", attention="pallas"))
    x = jax.ShapeDtypeStruct((8, 5, 128), jnp.float32)
    params = jax.eval_shape(transformer.init, jax.random.key(0), x)
    traced = jax.make_jaxpr(jax.grad(lambda p, x: transformer.apply(p, x).sum()))(params, x)
    assert str(traced).count("pallas_call[") == 2, "one kernel forward, one backward"


@pytest.mark.parametrize(("head_dim", "turns"), [(72, False), (104, False), (96, True)])
def test_heads_get_their_zeros_from_the_projections(head_dim, turns, monkeypatch):
    """Behind activations they would be copies of these, forward and backward."""
    width = 2 * head_dim
    block = BlockConfig(2, 64, "gelu", BlockInit.xavier(width, 64), causal=True)

    def tower(kernel):
        return Transformer(2, block, ComputeConfig(remat="names", attention=kernel))

    x, dz = jax.random.normal(jax.random.key(0), (2, 3, 17, width))
    angles = jax.random.normal(jax.random.key(2), (1, 17, head_dim // 2)) if turns else None
    params = tower("xla").init(jax.random.key(1), x)
    params = jax.tree.map(lambda p: p + 0.01, params)  # biases too

    def run(kernel):
        apply = functools.partial(tower(kernel).apply, places=angles)
        z, gradients = jax.vjp(apply, params, x)
        return z, *gradients(dz)

    expected = run("xla")
    widths = set()

    def attend(q, *arrays, **settings):
        widths.add(q.shape[2])
        return attention(q, *arrays, **settings, interpret=True)

    for module in (projections, dot_product):
        monkeypatch.setattr(module, "target_platform", lambda: "tpu")
    monkeypatch.setattr(tpu_attention, "attention", attend)
    found = run("pallas")
    assert widths == {2 * KERNEL_CHANNELS}
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("kind", "length", "head_dim", "dtype", "kernels"),
    [
        ("TPU v5 lite", 50, 64, jnp.bfloat16, 1),
        ("TPU v5 lite", 1024, 64, jnp.bfloat16, 1),
        ("TPU v5 lite", 1025, 64, jnp.bfloat16, 0),
        ("TPU v5", 729, 72, jnp.bfloat16, 0),
        ("TPU v6 lite", 197, 136, jnp.bfloat16, 0),
        ("TPU v6 lite", 197, 64, jnp.float32, 0),
        ("TPU v3", 50, 64, jnp.bfloat16, 0),
        ("cpu", 50, 64, jnp.bfloat16, 0),
    ],
)
def test_by_default_tpus_use_it_for_what_it_has_room_for(
    monkeypatch, kind, length, head_dim, dtype, kernels
):
    monkeypatch.setattr(dot_product, "target_device_kind", lambda: kind)
    x = jax.ShapeDtypeStruct((2, 2, length, head_dim), dtype)

    def count(queries):
        traced = jax.make_jaxpr(lambda q, k, v: dot_product_attention(q, k, v, causal=False))
        return str(traced(queries, x, x)).count("pallas_call[")

    assert count(x) == kernels
    assert count(jax.ShapeDtypeStruct((2, 2, 1, head_dim), dtype)) == 0, "pooling's probe"


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("ViT-L-14-336", "TPU v5", None),
        ("ViT-B-32", "NVIDIA H200", r"(?s)attention pallas is for TPUs.*NVIDIA H200"),
        ("ViT-SO400M-14-SigLIP-384", "TPU v5 lite", None),
        # These have less memory of their own, and the compiler has none for 729 positions.
        ("ViT-SO400M-14-SigLIP-384", "TPU v5", "729 positions, .* room for 640 on TPU v5"),
        ("ViT-B-16", "TPU v4", "197 positions, .* room for 160 on TPU v4"),
        ("RN50", "TPU v5 lite", None),
    ],
)
def test_the_kernel_is_refused_where_there_is_none(model, kind, message):
    config = VARIANTS[model].model
    if message is None:
        check_kernel(config, ComputeConfig(attention="pallas"), kind)
        return
    with pytest.raises(InputError, match=message):
        check_kernel(config, ComputeConfig(attention="pallas"), kind)
    check_kernel(config, ComputeConfig(), kind)


def test_too_many_positions_or_channels_are_refused():
    config = VARIANTS["ViT-B-32"].model
    for tower, width, message in (
        ("vision", {"image_size": 1600}, r"vision tower has 2501 positions"),
        ("text", {"heads": 2}, r"text tower has 256 channels a head"),
    ):
        changed = dataclasses.replace(getattr(config, tower), **width)
        with pytest.raises(InputError, match=message):
            check_kernel(
                dataclasses.replace(config, **{tower: changed}),
                ComputeConfig(attention="pallas"),
                "TPU v5 lite",
            )


needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install 'flaxclip[plan]'",
)


@needs_tpu_compiler
@pytest.mark.parametrize("name", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize(
    ("heads", "length", "head_dim", "causal", "padded"),
    [(12, 50, 64, False, False), (8, 77, 64, True, True), (16, 197, 72, False, False)],
)
def test_the_tpu_compiler_takes_the_kernel(name, heads, length, head_dim, causal, padded):
    topology = open_topology(name)
    mesh = make_mesh(MeshConfig(tensor=2), list(topology.devices))
    divided = jax.NamedSharding(mesh, jax.P(("data", "fsdp"), None, "tensor"))
    shape = 40, length, heads * head_dim
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=divided)
    mask = jax.ShapeDtypeStruct(
        shape[:2], jnp.bool_, sharding=jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    )

    def total(q, k, v, mask):
        z = attention(q, k, v, mask if padded else None, heads=heads, causal=causal)
        return z.astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(x, x, x, mask)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    chip = topology.chip
    program = parse_program(text)
    kernels = [
        kernel_cycles(line, 0, chip)
        for computation, _ in program.running()
        for line in computation.instructions.values()
        if is_kernel(line)
    ]
    assert len(kernels) == 1, "the forward kernel is not needed for gradients"
    assert kernels[0] > 0
    assert "all-gather" not in text, "every device has what it needs"


@needs_tpu_compiler
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_tpu_compiler_has_room_for_as_many_positions_as_are_allowed(name):
    device = open_topology(name).devices[0]
    mesh = make_mesh(MeshConfig(), open_topology(name).devices)
    shape = 16 * mesh.size, KERNEL_POSITIONS[device.device_kind], KERNEL_CHANNELS
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=batch_sharding(mesh))

    def total(*qkv):
        return attention(*qkv, heads=1, causal=False).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        traced = jax.jit(jax.value_and_grad(total, (0, 1, 2))).trace(x, x, x)
        assert traced.lower(lowering_platforms=("tpu",)).compile() is not None
