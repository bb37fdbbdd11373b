#!/usr/bin/env bash
# jax 0.10.2, on a CPU. Each pair of programs computes the same; the times are far apart.
#
# 1. `x @ w` for x of three axes, [batch, position, channel], is as fast as the product of two
#    matrices that results from joining the first two, but its gradient is not: the result's gradient
#    is transposed for the product that gives the gradient of w, and that copy is fused with all that
#    leads to it (here LayerNorm's gradient), which is computed anew in the order of the transposed.
#    Gradients of four MLPs with LayerNorm of 2,176 x 128: 1.5 times as fast with `x` reshaped (1.1
#    times with jax 0.12.0.1).
# 2. Of a program that draws random numbers for many arrays, as initialization does, LLVM's full
#    optimization (XLA's default) takes more than half of the compile time, and neither the numbers
#    nor the time they take depend on it: at `xla_backend_optimization_level` 1, compiled 1.5 times or
#    more as fast, with the same bits.
#
# Seen on two cores (ratios vary by some 20%; the script asks for less):
#   gradients, three axes over two: 1.55
#   compiling, level 3 over level 1: 1.62
#   numbers that differ: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/programs.py" <<'PYTHON'
import time

import jax
import jax.numpy as jnp
import numpy as np

BATCH, LENGTH, WIDTH, LAYERS = 128, 17, 128, 4


def two_axes(x, w):
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], -1)


def loss(product, weights, x):
    for up, down in weights:
        mean = x.mean(-1, keepdims=True)
        normed = (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)
        h = product(normed, up)
        x = jax.lax.optimization_barrier(x + product(h * jax.nn.sigmoid(h), down))
    return (x**2).mean()


draw = np.random.default_rng(0).standard_normal
weights = [
    (0.1 * draw((WIDTH, 4 * WIDTH), np.float32), 0.1 * draw((4 * WIDTH, WIDTH), np.float32))
    for _ in range(LAYERS)
]
x = draw((BATCH, LENGTH, WIDTH), np.float32)
forms = [
    jax.jit(jax.value_and_grad(lambda w, x, product=product: loss(product, w, x)))
    for product in (jnp.matmul, two_axes)
]
times = [[], []]
for _ in range(20):
    for form, seconds in zip(forms, times):
        start = time.perf_counter()
        jax.block_until_ready(form(weights, x))
        seconds.append(time.perf_counter() - start)
gradients = np.median(times[0]) / np.median(times[1])
print(f"gradients, three axes over two: {gradients:.2f}")


def initialize(key):
    keys = jax.random.split(key, 30)
    return [jax.random.truncated_normal(k, -2, 2, (n, 64)) for n, k in enumerate(keys, 1)]


lowered = jax.jit(initialize).lower(jax.random.key(0))
seconds, numbers = [], []
for level in (3, 1):
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": level})
    seconds.append(time.perf_counter() - start)
    numbers.append(np.concatenate([np.asarray(a) for a in compiled(jax.random.key(0))]))
compiling, different = seconds[0] / seconds[1], int((numbers[0] != numbers[1]).sum())
print(f"compiling, level 3 over level 1: {compiling:.2f}")
print(f"numbers that differ: {different}")
assert gradients > 1.2 and compiling > 1.2 and different == 0
PYTHON
JAX_ENABLE_COMPILATION_CACHE=0 JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/programs.py"
