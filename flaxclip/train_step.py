"""One update: batch -> loss -> gradients -> optimizer. The only place where buffers are donated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from flaxclip.data.source import Batch
from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.models.clip import CLIP, CLIPConfig
from flaxclip.optim import clamp_logit_scale
from flaxclip.sharding import BATCH_AXES, batch_sharding
from flaxclip.train_state import TrainState

Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    config: CLIPConfig, tx: optax.GradientTransformation, mesh: Mesh, state: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The compiled update for states that are laid out like `state`.

    The step donates its state: after `state, metrics = step(state, batch)` only the new one may be
    used. Call it under `jax.set_mesh(mesh)`.

    Where the loss or a gradient is not finite, everything but `step` stays as it was, and
    `metrics["skipped_updates"]`, which counts such steps over the whole run, rises by one.
    """
    model = CLIP(config)

    def loss_fn(params, batch):
        zimg, ztxt, logit_scale = model.apply({"params": params}, *batch)
        result = softmax_contrastive_loss(zimg, ztxt, logit_scale, BATCH_AXES)
        return result.loss, result

    def train_step(state, batch):
        grads, result = jax.grad(loss_fn, has_aux=True)(state.params, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = clamp_logit_scale(optax.apply_updates(state.params, updates))
        updated = state._replace(params=params, opt_state=opt_state)

        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(result.loss) & jnp.isfinite(grad_norm)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        kept = kept._replace(step=state.step + 1, skipped=state.skipped + ~finite)
        metrics = result._asdict() | {
            "logit_scale": jnp.exp(kept.params["logit_scale"]),
            "grad_norm": grad_norm,
            "skipped_updates": kept.skipped,
        }
        return kept, metrics

    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, NamedSharding(mesh, PartitionSpec())),
    )
