"""The contrastive loss against float64 loops over all pairs, on one device and on eight."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.optim import MAX_LOGIT_SCALE
from flaxclip.sharding import BATCH_AXES, MeshConfig, batch_sharding, make_mesh
from tests.collectives import collectives

B, D = 64, 24  # unlike each other, so that [B, D] in a compiled program can be nothing else
LOG_SCALE = math.log(1 / 0.07)


def double_loop(zimg, ztxt, log_scale):
    """Loss, image-to-text accuracy, text-to-image accuracy, one pair at a time."""
    scale, n = math.exp(log_scale), len(zimg)
    logits = [[scale * math.fsum(zimg[i] * ztxt[j]) for j in range(n)] for i in range(n)]
    columns = [list(column) for column in zip(*logits, strict=True)]

    def cross_entropy(lines):
        total = 0.0
        for i, line in enumerate(lines):
            top = max(line)
            total += top + math.log(math.fsum(math.exp(x - top) for x in line)) - line[i]
        return total / n

    def accuracy(lines):
        hits = [(line[i] == max(line)) / line.count(max(line)) for i, line in enumerate(lines)]
        return sum(hits) / n

    loss = (cross_entropy(logits) + cross_entropy(columns)) / 2
    return loss, accuracy(logits), accuracy(columns)


def unit_vectors(seed, shape, near=None, noise=1.0):
    z = noise * np.random.default_rng(seed).normal(size=shape)
    z = z if near is None else z + near
    # Rounded to what the loss is given, so that both sides read the same numbers.
    z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
    return z.astype(np.float64)


@pytest.fixture(scope="module")
def embeddings():
    """Pairs that are partly alike: accuracies are neither 0 nor 1, nor equal."""
    zimg = unit_vectors(0, (B, D))
    return zimg, unit_vectors(1, (B, D), near=zimg, noise=0.25)


def float32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@functools.partial(jax.jit, static_argnames="batch_axes")
def value_and_gradients(zimg, ztxt, log_scale, batch_axes=None):
    def loss(*inputs):
        result = softmax_contrastive_loss(*inputs, batch_axes)
        return result.loss, result

    gradients, result = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(zimg, ztxt, log_scale)
    return result, gradients


@pytest.mark.parametrize("log_scale", [0.0, LOG_SCALE, MAX_LOGIT_SCALE])
def test_loss_and_accuracies_equal_a_double_loop(embeddings, log_scale):
    log_scale = float(np.float32(log_scale))
    expected = double_loop(*embeddings, log_scale)
    result = softmax_contrastive_loss(*float32(*embeddings, log_scale))
    np.testing.assert_allclose(result.loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(result[1:], expected[1:], rtol=1e-6)
    assert 0.1 < expected[1] != expected[2] < 0.9


def test_gradients_equal_finite_differences_of_the_double_loop():
    b, d, step = 7, 5, 1e-5
    zimg = unit_vectors(0, (b, d))
    inputs = (zimg, unit_vectors(1, (b, d), near=zimg), np.array(np.float32(LOG_SCALE), np.float64))
    _, gradients = value_and_gradients(*float32(*inputs))
    for position, gradient in enumerate(gradients):
        for index in np.ndindex(inputs[position].shape):
            shifted = []
            for sign in (1, -1):
                moved = [x.copy() for x in inputs]
                moved[position][index] += sign * step
                shifted.append(double_loop(*moved)[0])
            expected = (shifted[0] - shifted[1]) / (2 * step)
            np.testing.assert_allclose(gradient[index], expected, rtol=1e-4, atol=2e-6)


def test_ties_share_the_credit():
    # Images 0 and 1 are the same, and so are texts 1 and 2: exact ties, one in each direction.
    zimg = np.eye(4)[[0, 0, 1, 2]]
    ztxt = np.eye(4)[[0, 1, 1, 3]]
    _, by_image, by_text = double_loop(zimg, ztxt, LOG_SCALE)
    result = softmax_contrastive_loss(*float32(zimg, ztxt, LOG_SCALE))
    # Images: 0 is right; 1 is wrong; 2 ties texts 1 and 2; 3 ties all four at 0.
    np.testing.assert_allclose(result.image_to_text_accuracy, (1 + 0 + 1 / 2 + 1 / 4) / 4)
    # Texts: 0 ties images 0 and 1; 1 is wrong; 2 is right; 3 ties all four at 0.
    np.testing.assert_allclose(result.text_to_image_accuracy, (1 / 2 + 0 + 1 + 1 / 4) / 4)
    np.testing.assert_allclose(result[1:], (by_image, by_text))


def test_collapsed_towers_score_as_chance_does():
    z = np.tile(unit_vectors(0, (1, D)), (B, 1))
    result = softmax_contrastive_loss(*float32(z, z, LOG_SCALE))
    np.testing.assert_allclose(result.loss, math.log(B), rtol=1e-6)
    np.testing.assert_allclose(result[1:], 1 / B, rtol=1e-6)


def test_one_pair_has_nothing_to_lose():
    result, gradients = value_and_gradients(
        *float32(unit_vectors(0, (1, D)), unit_vectors(1, (1, D)), LOG_SCALE)
    )
    np.testing.assert_allclose(result, (0, 1, 1), rtol=0, atol=1e-6)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, rtol=0, atol=1e-6)


def test_the_largest_scale_with_the_worst_pairs_stays_finite():
    # Every image is the opposite of its own text and equal to its neighbour's.
    ztxt = np.repeat(unit_vectors(0, (B // 2, D)), 2, axis=0) * np.tile([[1], [-1]], (B // 2, 1))
    zimg = -ztxt
    result, gradients = value_and_gradients(*float32(zimg, ztxt, MAX_LOGIT_SCALE))
    np.testing.assert_allclose(result.loss, double_loop(zimg, ztxt, MAX_LOGIT_SCALE)[0], rtol=1e-5)
    np.testing.assert_allclose(result.loss, 200, rtol=1e-2)
    np.testing.assert_array_equal(result[1:], 0)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.fixture(
    params=[MeshConfig(), MeshConfig(fsdp=4), MeshConfig(fsdp=2, tensor=2)],
    ids=["data=8", "data=2,fsdp=4", "data=2,fsdp=2,tensor=2"],
)
def mesh(request):
    return make_mesh(request.param)


def test_eight_devices_give_what_one_gives(embeddings, mesh):
    zimg, ztxt, log_scale = float32(*embeddings, LOG_SCALE)
    expected, expected_gradients = value_and_gradients(zimg, ztxt, log_scale)
    divided = jax.device_put((zimg, ztxt), batch_sharding(mesh))
    assert divided[0].addressable_shards[0].data.size < zimg.size
    with jax.set_mesh(mesh):
        result, gradients = value_and_gradients(*divided, log_scale, BATCH_AXES)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    for gradient, one in zip(gradients, expected_gradients, strict=True):
        # The scale's gradient is a small difference of sums; another order rounds otherwise.
        np.testing.assert_allclose(gradient, one, rtol=0, atol=1e-5 * abs(one).max())


def test_embeddings_travel_once_in_each_direction(mesh):
    """Texts are gathered, their gradient is reduced; all else that travels is [B] or smaller."""
    sharding = batch_sharding(mesh)
    z = jax.ShapeDtypeStruct((B, D), jnp.float32, sharding=sharding)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    with jax.set_mesh(mesh):
        program = jax.jit(
            lambda *inputs: value_and_gradients(*inputs, BATCH_AXES),
            out_shardings=(None, (sharding, sharding, None)),
        ).lower(z, z, scale)
    large = [
        (operation, shape)
        for operation, shape in collectives(program.compile().as_text())
        if math.prod(shape) > B
    ]
    gathers = [shape for operation, shape in large if operation == "all-gather"]
    reductions = [shape for operation, shape in large if operation != "all-gather"]
    assert gathers == [(B, D)]
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    assert reductions in ([(B, D)], [(B // shards, D)])  # by all-reduce, or by reduce-scatter
    assert {operation for operation, _ in large} <= {"all-gather", "all-reduce", "reduce-scatter"}
