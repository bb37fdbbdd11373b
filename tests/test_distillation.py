"""The losses of teachers against float64 loops over all pairs, on one device, two and eight."""

import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.accumulate import loss_and_gradients
from flaxclip.losses import distillation, ring
from flaxclip.losses.distillation import distillation_loss, feature_regression
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh, pair_axes

B, D, DT = 64, 24, 40
LOG_SCALE, TEACHER_LOG_SCALE = (float(np.float32(math.log(scale))) for scale in (1 / 0.07, 30))


def lines_of(zimg, ztxt, log_scale):
    scale = math.exp(log_scale)
    return [[scale * math.fsum(image * text) for text in ztxt] for image in zimg]


def transposed(lines):
    return [list(column) for column in zip(*lines, strict=True)]


def softmax(line):
    terms = [math.exp(x - max(line)) for x in line]
    return [term / math.fsum(terms) for term in terms]


def double_loop(zimg, ztxt, log_scale, timg, ttxt, teacher_log_scale):
    """(loss, both agreements), and gradients by both embeddings and the log scale."""
    student, teacher = lines_of(zimg, ztxt, log_scale), lines_of(timg, ttxt, teacher_log_scale)
    n = len(student)
    loss, agreements, by_logits = 0.0, [], np.zeros((n, n))
    for ours, theirs, by_lines in (
        (student, teacher, by_logits),
        (transposed(student), transposed(teacher), by_logits.T),
    ):
        agreed = 0.0
        for i in range(n):
            total = math.log(math.fsum(math.exp(x - max(ours[i])) for x in ours[i]))
            wanted, found = softmax(theirs[i]), softmax(ours[i])
            for j in range(n):
                loss -= wanted[j] * (ours[i][j] - max(ours[i]) - total) / (2 * n)
                by_lines[i, j] += (found[j] - wanted[j]) / (2 * n)
            chosen = max(ours[i][j] for j in range(n) if theirs[i][j] == max(theirs[i]))
            agreed += (chosen == max(ours[i])) / ours[i].count(max(ours[i])) / n
        agreements.append(agreed)
    scale = math.exp(log_scale)
    gradients = (
        scale * by_logits @ ztxt,
        scale * by_logits.T @ zimg,
        (by_logits * np.array(student)).sum(),
    )
    return (loss, *agreements), gradients


def unit_vectors(seed, shape, near=None, noise=1.0):
    z = noise * np.random.default_rng(seed).normal(size=shape)
    z = z if near is None else z + near
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)


@pytest.fixture(scope="module")
def inputs():
    """A student and a teacher that agree in part: shares are neither 0 nor 1, nor equal."""
    zimg = unit_vectors(0, (B, D))
    ztxt = unit_vectors(1, (B, D), near=zimg, noise=0.25)
    wide = np.pad(zimg, ((0, 0), (0, DT - D)))
    timg = unit_vectors(2, (B, DT), near=wide, noise=0.05)
    ttxt = unit_vectors(3, (B, DT), near=np.roll(wide, B // 8, 0) + wide, noise=0.1)
    return zimg, ztxt, np.float64(LOG_SCALE), timg, ttxt, np.float64(TEACHER_LOG_SCALE)


def float32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def value_and_gradients(*inputs, **options):
    def loss(*inputs):
        result = distillation_loss(*inputs, **options)
        return result.loss, result

    gradients, result = jax.grad(loss, (0, 1, 2), has_aux=True)(*inputs)
    return result, gradients


def assert_equal_the_double_loop(result, gradients, expected, what=""):
    (loss, *agreements), exact_gradients = expected
    np.testing.assert_allclose(result.loss, loss, rtol=1e-6, err_msg=what)
    np.testing.assert_allclose(result[1:], agreements, rtol=1e-6, err_msg=what)
    for gradient, exact in zip(gradients, exact_gradients, strict=True):
        atol = 1e-5 * np.abs(exact).max()
        np.testing.assert_allclose(gradient, exact, rtol=0, atol=atol, err_msg=what)


def test_gradients_of_the_double_loop_are_its_finite_differences():
    b, step = 5, 1e-6
    z = [unit_vectors(seed, (b, width)) for seed, width in ((0, 3), (1, 3), (2, 4), (3, 4))]
    inputs = [z[0], z[1], np.float64(LOG_SCALE), z[2], z[3], TEACHER_LOG_SCALE]
    _, gradients = double_loop(*inputs)
    for position, gradient in enumerate(gradients):
        for index in np.ndindex(np.shape(inputs[position])):
            shifted = []
            for sign in (1, -1):
                moved = [np.array(x) for x in inputs]
                moved[position][index] += sign * step
                shifted.append(double_loop(*moved)[0][0])
            expected = (shifted[0] - shifted[1]) / (2 * step)
            np.testing.assert_allclose(gradient[index], expected, rtol=1e-5, atol=1e-8)


MESHES = {
    "1": MeshConfig(),
    "2": MeshConfig(),
    "1,8,1": MeshConfig(1, 8, 1),
    "2,2,2": MeshConfig(2, 2, 2),
}


@pytest.mark.parametrize("name", MESHES)
def test_every_implementation_on_every_mesh_equals_the_double_loop(inputs, name, monkeypatch):
    monkeypatch.setattr(ring, "MAX_TILE", 4)  # several a device, in both directions
    monkeypatch.setattr(ring, "MIN_TILE", 1)
    config = MESHES[name]
    mesh = make_mesh(config, jax.devices()[: int(name) if config == MeshConfig() else 8])
    zimg, ztxt, scale, timg, ttxt, teacher_scale = float32(*inputs)
    zimg, ztxt, timg, ttxt = jax.device_put((zimg, ztxt, timg, ttxt), batch_sharding(mesh))

    @jax.jit
    def all_implementations(*inputs):
        return {
            implementation: value_and_gradients(
                *inputs, batch_axes=pair_axes(B, mesh), implementation=implementation
            )
            for implementation in ("gathered", "tiled")
        }

    with jax.set_mesh(mesh):
        results = jax.device_get(all_implementations(zimg, ztxt, scale, timg, ttxt, teacher_scale))
    expected = double_loop(*inputs)
    assert 0.1 < expected[0][1] != expected[0][2] < 0.9
    for implementation, (result, gradients) in results.items():
        assert_equal_the_double_loop(result, gradients, expected, implementation)


def test_without_gradients_the_loss_is_the_same(inputs):
    result = distillation_loss(*float32(*inputs))
    np.testing.assert_allclose(result, double_loop(*inputs)[0], rtol=1e-6)


def test_a_teacher_in_bfloat16_is_rounded_and_nothing_else(inputs):
    zimg, ztxt, scale, timg, ttxt, teacher_scale = float32(*inputs)
    rounded = [z.astype(jnp.bfloat16) for z in (timg, ttxt)]
    ours = value_and_gradients(zimg, ztxt, scale, *rounded, teacher_scale)
    exact = [np.asarray(z, np.float64) for z in rounded]
    expected = double_loop(*inputs[:3], *exact, inputs[5])
    assert_equal_the_double_loop(*ours, expected)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    zimg = unit_vectors(0, (B, D))
    ztxt = unit_vectors(1, (B, D), near=zimg, noise=0.25)
    same = float32(zimg, ztxt, LOG_SCALE)
    result, gradients = value_and_gradients(*same, *same)
    np.testing.assert_allclose(result[1:], 1, rtol=1e-6)
    entropies = [
        -math.fsum(p * math.log(p) for p in softmax(line))
        for lines in (lines_of(zimg, ztxt, LOG_SCALE),)
        for line in lines + transposed(lines)
    ]
    np.testing.assert_allclose(result.loss, math.fsum(entropies) / (2 * B), rtol=1e-5)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_a_collapsed_student_agrees_as_chance_does(inputs):
    z = np.tile(unit_vectors(0, (1, D)), (B, 1))
    result = distillation_loss(*float32(z, z, *inputs[2:]))
    np.testing.assert_allclose(result.loss, math.log(B), rtol=1e-6)
    np.testing.assert_allclose(result[1:], 1 / B, rtol=1e-6)


def test_an_example_that_is_there_twice_counts_half():
    # Texts 1 and 2 are the same, for student and teacher alike.
    z, t = np.eye(4), np.eye(4)[[0, 1, 1, 3]]
    result = distillation_loss(*float32(z, t, LOG_SCALE, z, t, LOG_SCALE))
    (_, by_image, by_text), _ = double_loop(z, t, LOG_SCALE, z, t, LOG_SCALE)
    np.testing.assert_allclose(result[1:], (by_image, by_text), rtol=1e-6)
    np.testing.assert_allclose(by_image, (1 + 1 / 2 + 1 / 4 + 1) / 4)


def test_the_largest_scale_with_the_worst_student_stays_finite():
    ztxt = np.repeat(unit_vectors(0, (B // 2, D)), 2, axis=0) * np.tile([[1], [-1]], (B // 2, 1))
    inputs = (-ztxt, ztxt, math.log(100), ztxt, ztxt, math.log(100))
    result, gradients = value_and_gradients(*float32(*inputs))
    np.testing.assert_allclose(result.loss, double_loop(*inputs)[0][0], rtol=1e-5)
    np.testing.assert_allclose(result.loss, 200, rtol=1e-2)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_a_batch_in_parts_learns_the_same(inputs):
    zimg, ztxt, scale, timg, ttxt, teacher_scale = float32(*inputs)
    weights = unit_vectors(5, (D, D)).astype(np.float32)

    def embed(params, stats, batch):
        z = [x @ params["kernel"] for x in batch]
        return tuple(x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in z), stats

    def loss(embeddings, params):
        result = distillation_loss(*embeddings, params["scale"], timg, ttxt, teacher_scale)
        regression = feature_regression(*embeddings, timg[:, :D], ttxt[:, :D])
        return result.loss + regression, result

    def gradients(parts):
        params = {"kernel": jnp.asarray(weights), "scale": scale}
        grads, _, result = loss_and_gradients(embed, loss, params, {}, (zimg, ztxt), parts)
        return grads, result

    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        (whole, result), (in_parts, same) = gradients(1), gradients(4)
    np.testing.assert_allclose(same, result, rtol=1e-6)
    for name, gradient in in_parts.items():
        atol = 1e-5 * np.abs(whole[name]).max()
        np.testing.assert_allclose(gradient, whole[name], rtol=0, atol=atol)


def test_regression_equals_a_loop_and_moves_the_student_alone(inputs):
    zimg, ztxt, _, timg, ttxt, _ = inputs
    timg, ttxt = timg[:, :D], ttxt[:, :D]
    expected = sum(
        math.fsum((ours - theirs) ** 2)
        for pair in ((zimg, timg), (ztxt, ttxt))
        for ours, theirs in zip(*pair, strict=True)
    )
    value, gradients = jax.value_and_grad(feature_regression, (0, 1, 2, 3))(
        *float32(zimg, ztxt, timg, ttxt)
    )
    np.testing.assert_allclose(value, expected / B, rtol=1e-5)
    np.testing.assert_allclose(gradients[0], 2 * (zimg - timg) / B, atol=1e-6)
    np.testing.assert_allclose(gradients[1], 2 * (ztxt - ttxt) / B, atol=1e-6)
    np.testing.assert_array_equal(gradients[2:], 0)


def test_the_examples_in_the_docstrings_say_what_they_print():
    failed, attempted = doctest.testmod(distillation)
    assert attempted
    assert not failed
