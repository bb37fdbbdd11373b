"""What a run is at a step, and its birth on the mesh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from flaxclip.models.clip import CLIPConfig, init_params, logical_axes
from flaxclip.sharding import mesh_shardings


class TrainState(NamedTuple):
    """All that an update reads and writes. Data needs no state: a batch is f(seed, step)."""

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: optax.OptState
    skipped: Int[Array, ""]
    """Steps whose update was left out, since the loss or a gradient was not finite."""


def _new_state(key: Array, config: CLIPConfig, tx: optax.GradientTransformation) -> TrainState:
    params = init_params(key, config)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )


def abstract_train_state(
    config: CLIPConfig, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, types and shardings of the state, nothing allocated: what a restore fills in.

    Optimizer moments lie like the parameters they belong to; scalars are on every device.
    """
    shapes = jax.eval_shape(lambda key: _new_state(key, config, tx), jax.random.key(0))
    param_shardings = mesh_shardings(logical_axes(config), shapes.params, mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = TrainState(
        step=replicated,
        params=param_shardings,
        opt_state=optax.tree_map_params(
            tx,
            lambda _, sharding: sharding,
            shapes.opt_state,
            param_shardings,
            transform_non_params=lambda _: replicated,
        ),
        skipped=replicated,
    )
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_train_state(
    key: Array, config: CLIPConfig, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """A fresh state, born divided over the mesh: no device ever holds all of it."""
    abstract = abstract_train_state(config, tx, mesh)
    init = jax.jit(
        _new_state,
        static_argnums=(1, 2),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
    )
    return init(key, config, tx)
