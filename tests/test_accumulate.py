"""A batch embedded in parts: what travels, what is kept, and what batch norms see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.accumulate import loss_and_gradients
from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.sharding import BATCH_AXES, MeshConfig, batch_sharding, make_mesh
from tests.helpers.collectives import collectives

B, IN, WIDE, OUT = 512, 12, 300, 8


def embed(params, stats, inputs):
    """Towers of one hidden layer, wide enough for its activations to be most of the memory."""

    def tower(x, first, second):
        z = jnp.tanh(x @ first) @ second
        return z / jnp.linalg.norm(z, axis=1, keepdims=True)

    x, y = inputs
    new_stats = {"mean": 0.5 * stats["mean"] + 0.5 * x.mean(0)}
    return (tower(x, *params["image"]), tower(y, *params["text"])), new_stats


def loss(embeddings, params):
    result = softmax_contrastive_loss(*embeddings, params["logit_scale"], BATCH_AXES)
    return result.loss, result


@pytest.fixture(scope="module")
def compiled():
    """Parts of the batch -> compiled gradients, on eight devices."""
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    keys = jax.random.split(jax.random.key(0), 6)
    params = {
        "image": (jax.random.normal(keys[0], (IN, WIDE)), jax.random.normal(keys[1], (WIDE, OUT))),
        "text": (jax.random.normal(keys[2], (IN, WIDE)), jax.random.normal(keys[3], (WIDE, OUT))),
        "logit_scale": jnp.float32(2.0),
    }
    inputs = tuple(jax.random.normal(key, (B, IN)) for key in keys[4:])
    arguments = params, {"mean": jnp.zeros(IN)}, jax.device_put(inputs, batch_sharding(mesh))
    with jax.set_mesh(mesh):
        programs = {
            parts: jax.jit(lambda *a, parts=parts: loss_and_gradients(embed, loss, *a, parts))
            .lower(*arguments)
            .compile()
            for parts in (1, 8)
        }
    return programs, arguments


def test_parts_give_what_the_whole_gives(compiled):
    programs, arguments = compiled
    whole, parts = (programs[n](*arguments) for n in (1, 8))
    for ours, theirs in zip(jax.tree.leaves(parts[0]), jax.tree.leaves(whole[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * abs(theirs).max())
    np.testing.assert_allclose(parts[2], whole[2], rtol=1e-6)


def test_statistics_are_updated_part_after_part(compiled):
    programs, (params, stats, inputs) = compiled
    _, new_stats, _ = programs[8](params, stats, inputs)
    mean = np.zeros(IN)
    for part in np.asarray(inputs[0]).reshape(8, 8, -1, IN).swapaxes(0, 1):
        mean = 0.5 * mean + 0.5 * part.mean((0, 1))
    np.testing.assert_allclose(new_stats["mean"], mean, rtol=1e-5, atol=1e-6)


def test_activations_kept_are_those_of_one_part(compiled):
    programs, _ = compiled
    memory = {n: p.memory_analysis().temp_size_in_bytes for n, p in programs.items()}
    hidden = 2 * 4 * B // 8 * WIDE  # bytes a device, of both towers
    second_gradients = 2 * 4 * (IN + OUT) * WIDE
    assert memory[1] - memory[8] > hidden * 7 // 8 - second_gradients > 0


def test_examples_stay_on_their_devices(compiled):
    """Embeddings, gradients and statistics travel; inputs and activations do not."""
    programs, _ = compiled
    travelling = {shape for _, shape in collectives(programs[8].as_text())}
    assert {shape for shape in travelling if shape[-1:] == (OUT,)} - {(WIDE, OUT)}
    matrices = {shape for shape in travelling if {IN, WIDE} & set(shape) and len(shape) > 1}
    assert matrices <= {(IN, WIDE), (WIDE, IN), (WIDE, OUT), (OUT, WIDE)}
