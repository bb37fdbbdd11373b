"""The state of a run at a step, and its sharded initialization."""

import functools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from flaxclip.fine_tuning.lora import LoRA, axes_with_pairs, with_pairs
from flaxclip.models.clip import CLIPConfig, init_variables, logical_axes
from flaxclip.sharding import mesh_shardings

_LLVM_LEVEL = "xla_backend_optimization_level"


class TrainState(NamedTuple):
    """Everything that an update reads and writes. Data needs no state: a batch is f(seed, step)."""

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: optax.OptState
    batch_stats: dict[str, Any]
    """Running statistics of batch norms; empty if the model has none."""
    ema: dict[str, Any]
    """The average of `params` over past steps; empty if none is kept."""

    skipped: Int[Array, ""]
    """Steps whose update was skipped because the loss or a gradient was not finite."""

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of `CLIP.apply`: all of a checkpoint that anyone but the trainer needs."""
        stats = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        average = {"ema": self.ema} if self.ema else {}
        return {"params": self.params} | stats | average

    @property
    def trees(self) -> dict[str, Any]:
        """The parts of a checkpoint: `variables`, and `training`, which only the trainer reads."""
        training = {"step": self.step, "opt_state": self.opt_state, "skipped": self.skipped}
        return self.variables | {"training": training}

    @classmethod
    def from_trees(cls, trees: dict[str, Any]) -> "TrainState":
        """The inverse of `trees`."""
        variables = {name: tree for name, tree in trees.items() if name != "training"}
        return cls(**({"batch_stats": {}, "ema": {}} | variables | trees["training"]))


def _new_state(
    key: Array,
    config: CLIPConfig,
    tx: optax.GradientTransformation,
    ema: bool,
    lora: LoRA | None,
) -> TrainState:
    variables = init_variables(key, config)
    params = with_pairs(lora, variables["params"], jax.random.fold_in(key, 1))
    step = jnp.zeros((), jnp.int32)
    return TrainState(
        step=step,
        params=params,
        opt_state=tx.init(params),
        batch_stats=variables.get("batch_stats", {}),
        ema=jax.tree.map(jnp.copy, params) if ema else {},
        skipped=jnp.zeros((), jnp.int32),
    )


@functools.lru_cache(maxsize=8)
def abstract_train_state(
    config: CLIPConfig,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    ema: bool = False,
    lora: LoRA | None = None,
) -> TrainState:
    """Shapes, types and shardings of the state, without allocating: the target of a restore.

    With `lora`, `params` also hold its pairs.
    Arrays as large as a parameter have its sharding: moments, and the average if `ema` asks for
    one. All else, scalars and the factors of factored moments, is replicated.
    """
    shapes = jax.eval_shape(lambda key: _new_state(key, config, tx, ema, lora), jax.random.key(0))
    axes = axes_with_pairs(lora, logical_axes(config), shapes.params)
    param_shardings = mesh_shardings(axes, shapes.params, mesh)
    # A state of shardings, in place of arrays.
    replicated: Any = NamedSharding(mesh, PartitionSpec())
    shardings = TrainState(
        step=replicated,
        params=param_shardings,
        opt_state=_like_params(shapes.opt_state, shapes.params, param_shardings, replicated),
        batch_stats=jax.tree.map(lambda _: replicated, shapes.batch_stats),
        ema=param_shardings if ema else {},
        skipped=replicated,
    )
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def bytes_per_device(state: Any) -> int:
    """Bytes of `state`, or another tree of arrays, on one device; the arrays may be abstract."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )


def _like_params(
    opt_state: Any, params: dict[str, Any], shardings: dict[str, Any], replicated: NamedSharding
) -> Any:
    """Shardings of `opt_state`: a moment's path ends like that of the parameter it belongs to."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    known = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)
    }

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = known.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


def init_train_state(
    key: Array,
    config: CLIPConfig,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    ema: bool = False,
    lora: LoRA | None = None,
) -> TrainState:
    """Initialize the state, divided over the mesh: no device ever holds all of it."""
    abstract = abstract_train_state(config, tx, mesh, ema, lora)
    options = {}
    if mesh.devices.flat[0].platform == "cpu" and _LLVM_LEVEL not in os.environ.get(
        "XLA_FLAGS", ""
    ):
        # Full optimization of the random generator, once for each parameter, takes two to three
        # times as long, and the program is no faster.
        options[_LLVM_LEVEL] = 1
    init = jax.jit(
        _new_state,
        static_argnums=(1, 2, 3, 4),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
        compiler_options=options,
    )
    return init(key, config, tx, ema, lora)
