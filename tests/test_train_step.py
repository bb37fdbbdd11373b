"""One compiled update on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxclip.config import TrainConfig
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import MAX_LOGIT_SCALE, OptimConfig, make_optimizer
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh
from flaxclip.train_state import init_train_state
from flaxclip.train_step import Batch, make_train_step
from tests.helpers.collectives import collectives
from tests.parity.clip_cases import TINY, random_inputs

CONFIG = CLIPConfig(
    vision=ViTConfig(**TINY["vision"]),
    text=TextConfig(**TINY["text"]),
    embed_dim=TINY["embed_dim"],
)
BATCH_SIZE = 24


@pytest.fixture(scope="module")
def compiled():
    """The mesh, a state, a batch, the compiled step for them, and its learning rates."""
    mesh = make_mesh(MeshConfig())
    run = TrainConfig(
        "unused", 10, BATCH_SIZE, model=CONFIG, optim=OptimConfig(peak_lr=1e-3, warmup_steps=0)
    )
    tx, schedule = make_optimizer(run.optim, run.steps)
    with jax.set_mesh(mesh):
        state = init_train_state(jax.random.key(0), CONFIG, tx, mesh)
        inputs = map(jnp.asarray, random_inputs(TINY, BATCH_SIZE))
        batch = jax.device_put(Batch(*inputs), batch_sharding(mesh))
        step = make_train_step(run, tx, schedule, mesh, state).lower(state, batch).compile()
    return mesh, state, batch, step, schedule


def test_no_device_receives_all_embeddings(compiled):
    """On a grid of 4 x 2 a device compares 2 parts of the images with 4 of the texts."""
    *_, step, _ = compiled
    d, part = CONFIG.embed_dim, BATCH_SIZE // 8
    travelling = sorted(x for x in collectives(step.as_text()) if x[1][-1:] == (d,))
    gathered = [("all-gather", (2 * part, d)), ("all-gather", (4 * part, d))]
    reduced = [("reduce-scatter", (part, d))] * 2
    assert [x for x in travelling if x[1][0] % part == 0] == gathered + reduced


def test_a_logit_scale_above_100_is_clamped_after_the_update(compiled):
    mesh, state, batch, step, _ = compiled
    too_large = jax.device_put(jnp.float32(9.0), state.params["logit_scale"].sharding)
    # Copied: the step donates what it is given.
    state = jax.tree.map(jnp.copy, state)
    state = state._replace(params=state.params | {"logit_scale": too_large})
    with jax.set_mesh(mesh):
        state, metrics = step(state, batch)
    assert state.params["logit_scale"] == np.float32(MAX_LOGIT_SCALE)
    np.testing.assert_allclose(metrics["logit_scale"], 100, rtol=1e-6)
    assert state.step == 1


def test_an_update_that_is_not_finite_is_skipped_and_counted(compiled):
    mesh, state, batch, step, schedule = compiled
    with jax.set_mesh(mesh):
        state, _ = step(jax.tree.map(jnp.copy, state), batch)
        # One weight of one layer overflows: the loss, and every gradient with it, is NaN.
        table = state.params["text"]["token_embedding"].at[0, 0].set(jnp.inf)
        broken = state.params | {"text": state.params["text"] | {"token_embedding": table}}
        before = jax.device_get(state._replace(params=broken))
        after, metrics = step(state._replace(params=broken), batch)
        assert not np.isfinite(metrics["loss"])
        assert after.step == 2
        assert after.skipped == metrics["skipped_updates"] == 1
        for new, old in ((after.params, before.params), (after.opt_state, before.opt_state)):
            jax.tree.map(np.testing.assert_array_equal, new, old)
        after, metrics = step(after, batch)
        assert metrics["skipped_updates"] == 2
        # That of the update after the one that was applied, also at the second attempt.
        np.testing.assert_allclose(metrics["learning_rate"], schedule(1), rtol=1e-6)
