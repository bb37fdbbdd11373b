"""The contrastive losses against float64 loops over all pairs, on one device and on eight."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.errors import InputError
from flaxclip.losses import ring, sigmoid, softmax
from flaxclip.losses.sigmoid import neutral_logit_bias, sigmoid_contrastive_loss
from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.optim import MAX_LOGIT_SCALE
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh, pair_axes

B, D = 64, 24
LOG_SCALE = math.log(1 / 0.07)


def all_logits(zimg, ztxt, log_scale, bias=0.0):
    scale, n = math.exp(log_scale), len(zimg)
    return [[scale * math.fsum(zimg[i] * ztxt[j]) + bias for j in range(n)] for i in range(n)]


def accuracy(lines):
    hits = [(line[i] == max(line)) / line.count(max(line)) for i, line in enumerate(lines)]
    return sum(hits) / len(lines)


def transposed(lines):
    return [list(column) for column in zip(*lines, strict=True)]


def softmax_double_loop(zimg, ztxt, log_scale):
    """(loss, both accuracies) and gradients by both embeddings and the log scale, pair by pair."""
    rows = all_logits(zimg, ztxt, log_scale)
    loss, by_logits = 0.0, np.zeros((len(zimg), len(zimg)))
    for lines, by_lines in ((rows, by_logits), (transposed(rows), by_logits.T)):
        for i, line in enumerate(lines):
            top = max(line)
            total = math.fsum(math.exp(x - top) for x in line)
            loss += (top + math.log(total) - line[i]) / (2 * len(lines))
            for j, x in enumerate(line):
                by_lines[i, j] += (math.exp(x - top) / total - (i == j)) / (2 * len(lines))
    gradients = gradients_of_logits(by_logits, rows, 0.0, zimg, ztxt, log_scale)
    return (loss, accuracy(rows), accuracy(transposed(rows))), gradients[:3]


def sigmoid_double_loop(zimg, ztxt, log_scale, bias):
    """The same, with the gradient by the bias at the end."""
    rows = all_logits(zimg, ztxt, log_scale, bias)
    loss, by_logits = 0.0, np.zeros((len(zimg), len(zimg)))
    for i, line in enumerate(rows):
        for j, x in enumerate(line):
            sign = 1 if i == j else -1
            loss += math.log1p(math.exp(-sign * x)) / len(rows)
            by_logits[i, j] = -sign / (1 + math.exp(sign * x)) / len(rows)
    gradients = gradients_of_logits(by_logits, rows, bias, zimg, ztxt, log_scale)
    return (loss, accuracy(rows), accuracy(transposed(rows))), gradients


def gradients_of_logits(by_logits, logits, bias, zimg, ztxt, log_scale):
    scale = math.exp(log_scale)
    return (
        scale * by_logits @ ztxt,
        scale * by_logits.T @ zimg,
        (by_logits * (np.array(logits) - bias)).sum(),
        by_logits.sum(),
    )


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


@jax.jit
def value_and_gradients(zimg, ztxt, log_scale):
    def loss(*inputs):
        result = softmax_contrastive_loss(*inputs)
        return result.loss, result

    gradients, result = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(zimg, ztxt, log_scale)
    return result, gradients


@pytest.mark.parametrize("log_scale", [0.0, LOG_SCALE, MAX_LOGIT_SCALE])
def test_loss_and_accuracies_equal_a_double_loop(embeddings, log_scale):
    log_scale = float(np.float32(log_scale))
    expected, _ = softmax_double_loop(*embeddings, log_scale)
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
                shifted.append(softmax_double_loop(*moved)[0][0])
            expected = (shifted[0] - shifted[1]) / (2 * step)
            np.testing.assert_allclose(gradient[index], expected, rtol=1e-4, atol=2e-6)


def test_ties_share_the_credit():
    # Images 0 and 1 are the same, and so are texts 1 and 2: exact ties, one in each direction.
    zimg = np.eye(4)[[0, 0, 1, 2]]
    ztxt = np.eye(4)[[0, 1, 1, 3]]
    (_, by_image, by_text), _ = softmax_double_loop(zimg, ztxt, LOG_SCALE)
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
    (loss, *_), _ = softmax_double_loop(zimg, ztxt, MAX_LOGIT_SCALE)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(result.loss, 200, rtol=1e-2)
    np.testing.assert_array_equal(result[1:], 0)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


MESHES = {
    "1": MeshConfig(),
    "2": MeshConfig(),
    "8,1,1": MeshConfig(8, 1, 1),
    "1,8,1": MeshConfig(1, 8, 1),
    "2,2,2": MeshConfig(2, 2, 2),
    "4,1,2": MeshConfig(4, 1, 2),
}


@pytest.fixture(params=MESHES)
def mesh(request):
    config = MESHES[request.param]
    devices = int(request.param) if config == MeshConfig() else 8
    return make_mesh(config, jax.devices()[:devices])


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles a device on eight devices, in both directions."""
    monkeypatch.setattr(ring, "MAX_TILE", 4)
    monkeypatch.setattr(ring, "MIN_TILE", 1)


def test_every_implementation_on_every_mesh_equals_the_double_loop(embeddings, mesh, small_tiles):
    zimg, ztxt = (np.float32(z) for z in embeddings)
    divided = jax.device_put((zimg, ztxt), batch_sharding(mesh))
    scale, bias = float32(LOG_SCALE, -3.0)
    axes = pair_axes(B, mesh)

    @jax.jit
    def all_implementations(zimg, ztxt, scale, bias):
        def evaluate(loss, implementation, *more):
            def value(*inputs):
                result = loss(*inputs, batch_axes=axes, implementation=implementation)
                return result.loss, result

            inputs = (zimg, ztxt, scale, *more)
            positions = tuple(range(len(inputs)))
            return jax.grad(value, positions, has_aux=True)(*inputs)

        return {
            (name, implementation): evaluate(loss, implementation, *more)
            for implementation in ("gathered", "tiled")
            for name, loss, more in (
                ("softmax", softmax_contrastive_loss, ()),
                ("sigmoid", sigmoid_contrastive_loss, (bias,)),
            )
        }

    with jax.set_mesh(mesh):
        results = jax.device_get(all_implementations(*divided, scale, bias))
    expected = {
        "softmax": softmax_double_loop(*embeddings, float(scale)),
        "sigmoid": sigmoid_double_loop(*embeddings, float(scale), float(bias)),
    }
    for (name, implementation), (gradients, result) in results.items():
        (loss, *accuracies), expected_gradients = expected[name]
        what = f"{name} {implementation}"
        np.testing.assert_allclose(result.loss, loss, rtol=1e-6, err_msg=what)
        np.testing.assert_allclose(result[1:], accuracies, rtol=1e-6, err_msg=what)
        for gradient, exact in zip(gradients, expected_gradients, strict=True):
            # The scale's is a small difference of sums, and so are its rounding errors larger.
            np.testing.assert_allclose(
                gradient, exact, rtol=0, atol=1e-5 * np.abs(exact).max(), err_msg=what
            )


def test_a_model_that_knows_nothing_loses_least_at_the_neutral_bias():
    zimg, ztxt = float32(np.eye(B, D), np.eye(B, D)[::-1])  # all but a few cosines are 0

    def loss(bias):
        return sigmoid_contrastive_loss(0 * zimg, ztxt, jnp.float32(LOG_SCALE), bias).loss

    neutral = jnp.float32(neutral_logit_bias(B))
    np.testing.assert_allclose(jax.grad(loss)(neutral), 0, atol=1e-6)
    np.testing.assert_allclose(neutral_logit_bias(22027), -10, atol=1e-4)


def test_pairs_that_cannot_be_cut_into_tiles_are_refused():
    assert ring.tile_size(16384) == 1024
    assert ring.tile_size(1500) == 750
    assert ring.tile_size(7) == 7
    with pytest.raises(
        InputError, match=r"(?s)2053 pairs a device cannot be cut .* multiple of 128"
    ):
        ring.tile_size(2053)


@pytest.mark.parametrize("module", [softmax, sigmoid])
def test_the_example_in_the_docstring_says_what_it_prints(module):
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed
