"""Ten steps of training on any mesh, and the same ten in the plainest form that there is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxclip.data.loader import load_batches
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.models.clip import CLIP
from flaxclip.optim import clamp_logit_scale, make_optimizer
from flaxclip.sharding import MeshConfig, make_mesh
from flaxclip.train_state import abstract_train_state, init_train_state
from flaxclip.train_step import make_train_step
from tests.helpers.tiny_run import TINY_MODEL, tiny_config

STEPS, BATCH_SIZE = 10, 32

LOSSES = {
    "softmax": {},
    "sigmoid": {
        "loss": "sigmoid",
        "model": dataclasses.replace(TINY_MODEL, init_logit_scale=2.3, init_logit_bias=-3.0),
    },
}


def configure(**changes):
    return tiny_config("unused", steps=STEPS + 1, batch_size=BATCH_SIZE, **changes)


def batches(config, mesh):
    source = ScenesSource("train", config.model.vision.image_size)
    for loaded in load_batches(
        config.data, config.spec, source, mesh,
        batch_size=config.batch_size, seed=0, start_step=0, stop_step=STEPS,
    ):  # fmt: skip
        yield loaded.batch


@functools.cache
def initial_state(model):
    """On the host, since what is tested is the steps after it: drawn once for all meshes."""
    config = configure(model=model)
    tx, _ = make_optimizer(config.optim, config.steps)
    one_device = make_mesh(MeshConfig(), jax.devices()[:1])
    return jax.device_get(init_train_state(jax.random.key(0), model, tx, one_device))


def run(mesh_config, devices, **changes):
    """Losses, final parameters, and the compiled program, of the training step."""
    config = configure(**changes)
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    tx, schedule = make_optimizer(config.optim, config.steps)
    initial, losses = initial_state(config.model), []
    with jax.set_mesh(mesh):
        abstract = abstract_train_state(config.model, tx, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        state = jax.device_put(initial, shardings)
        step = make_train_step(config, tx, schedule, mesh, state)
        for batch in batches(config, mesh):
            if not losses:
                step = step.lower(state, batch).compile()
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params), step.as_text()


def plain_run(loss):
    """The same on one device, float32, by the matrix of all pairs as one would write it down."""
    config = configure(**LOSSES[loss])
    model, (tx, _) = CLIP(config.model), make_optimizer(config.optim, config.steps)

    def plain_loss(params, batch):
        zimg, ztxt, log_scale = model.apply({"params": params}, batch.images, batch.tokens)
        logits = jnp.exp(log_scale) * jnp.matmul(zimg, ztxt.T, precision="highest")
        if loss == "softmax":
            both = jax.nn.log_softmax(logits, axis=0) + jax.nn.log_softmax(logits, axis=1)
            return -jnp.diagonal(both).mean() / 2
        signs = 2 * jnp.eye(len(zimg)) - 1
        return -jax.nn.log_sigmoid(signs * (logits + params["logit_bias"])).sum() / len(zimg)

    @jax.jit
    def step(params, opt_state, batch):
        value, grads = jax.value_and_grad(plain_loss)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return clamp_logit_scale(params) if loss == "softmax" else params, opt_state, value

    mesh, losses = make_mesh(MeshConfig(), jax.devices()[:1]), []
    # Placed as the step returns it, or the second step would be compiled again.
    state = jax.device_put(initial_state(config.model), jax.NamedSharding(mesh, jax.P()))
    params, opt_state = state.params, state.opt_state
    for batch in batches(config, mesh):
        params, opt_state, value = step(params, opt_state, batch)
        losses.append(float(value))
    return losses, jax.device_get(params)


def assert_equal_runs(ours, theirs):
    """Losses within 1e-5 of themselves, parameters within 1e-5 of themselves and 1e-6."""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    expected = jax.tree_util.tree_leaves_with_path(theirs[1])
    for (path, right), left in zip(expected, jax.tree.leaves(ours[1]), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("qkv/bias"):
            # Softmax does not see what is added to all keys, so the true gradient of their bias is
            # zero, and what Adam scales up to a step is rounding.
            left, right = np.delete(left, 1, axis=2), np.delete(right, 1, axis=2)
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6, err_msg=name)
