"""Connect hosts without accelerators in one order, before a step would connect them in any order.

XLA on CPUs connects the hosts of a group when they first communicate, one group at a time, and runs
independent collectives in any order. Hosts that begin with different groups would wait for each
other, until Gloo gives up after 30 seconds.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from flaxclip.losses.grid import DeviceGrid
from flaxclip.sharding import pair_axes


def connect_hosts(mesh: Mesh, batch_size: int) -> None:
    """Let all groups of devices of the context's `mesh` communicate once, if they are CPUs."""
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    divided = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for number in range(1, len(divided) + 1):
        for axes in itertools.combinations(divided, number):
            _run(functools.partial(jax.lax.psum, axis_name=axes))
    grid = DeviceGrid.squarest(pair_axes(batch_size, mesh))
    for over in ("row", "column"):
        _run(functools.partial(_gather, grid, over))


def _gather(
    grid: DeviceGrid, over: Literal["row", "column"], x: Float[Array, "1"]
) -> Float[Array, "1"]:
    return grid.gather(x, over).sum(keepdims=True)


def _run(communicate: Callable[[Float[Array, "1"]], Float[Array, "1"]]) -> None:
    everywhere = PartitionSpec()
    run = jax.shard_map(communicate, in_specs=everywhere, out_specs=everywhere, check_vma=False)
    jax.block_until_ready(jax.jit(run)(jnp.ones(1)))
