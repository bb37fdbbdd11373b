"""cuDNN's attention computes what XLA's does: `python -m pytest -o addopts=-ra tests/gpu`.

Skipped where there is no NVIDIA GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.models.attention.dot_product import dot_product_attention, has_cudnn_attention

# Batch, heads, length, channels of a head: the towers of ViT-B/32, its text, B/16, L/14 at two
# resolutions, H/14 and bigG/14.
SHAPES = [
    ((8, 12, 50, 64), False),
    ((8, 8, 77, 64), True),
    ((8, 12, 197, 64), False),
    ((8, 16, 257, 64), False),
    ((4, 16, 577, 64), False),
    ((4, 16, 257, 80), False),
    ((4, 16, 257, 104), False),
]


@pytest.fixture(autouse=True)
def gpu():
    if not jax.devices()[0].device_kind.startswith("NVIDIA"):
        pytest.skip("no NVIDIA GPU")


@pytest.mark.parametrize(("shape", "causal"), SHAPES)
def test_values_and_gradients_are_as_close_to_float32_as_those_of_xla(shape, causal):
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, weights = (jax.random.normal(key, shape, jnp.bfloat16) for key in keys)
    assert has_cudnn_attention(qkv[0])

    def results(kernel, dtype):
        def total(*qkv):
            z = dot_product_attention(*qkv, causal, kernel)
            return (z.astype(jnp.float32) * weights.astype(jnp.float32)).sum(), z

        inputs = [x.astype(dtype) for x in qkv]
        with jax.default_matmul_precision("highest"):
            gradient = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))
            calls = gradient.lower(*inputs).compile().as_text().count("__cudnn$fmha")
            (*gradients,), z = gradient(*inputs)
        return calls, [np.asarray(x, np.float64) for x in (z, *gradients)]

    calls, fused = results("auto", jnp.bfloat16)
    assert calls >= 2, "forward and backward are cuDNN's"
    _, plain = results("xla", jnp.bfloat16)
    _, exact = results("xla", jnp.float32)
    for name, x, y, reference in zip(("z", "dq", "dk", "dv"), fused, plain, exact, strict=True):
        errors = [np.linalg.norm(a - reference) / np.linalg.norm(reference) for a in (x, y)]
        print(shape, name, "relative error: cuDNN {:.2e}, XLA {:.2e}".format(*errors))
        assert errors[0] < max(1.5 * errors[1], 2**-8), name  # bfloat16 rounds to 2^-9
