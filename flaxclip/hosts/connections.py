"""The start of a job of several hosts: they find each other, and connect."""

import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from jax._src import distributed
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from flaxclip.exit_codes import PREEMPTED
from flaxclip.losses.grid import DeviceGrid
from flaxclip.sharding import pair_axes
from flaxclip.standard_streams import say


def join_hosts(timeout_seconds: float = 300.0) -> None:
    """Connect to the other hosts of the job, if the cluster's environment names any.

    If they are not found in time, the process ends with the code of a restart: they may come later.
    """
    seconds = int(timeout_seconds)
    # JAX would abort the process, with a stack of its own. This is earlier, and says why.
    given_up = threading.Timer(seconds, _give_up_joining, [seconds])
    given_up.daemon = True
    given_up.start()
    try:
        jax.distributed.initialize(
            initialization_timeout=seconds + 30,
            # Later than the watchdog, which knows the lost host's name.
            heartbeat_timeout_seconds=2 * seconds,
            shutdown_timeout_seconds=seconds,
        )
    except ValueError as error:
        # What JAX says where it finds no TPU pod, SLURM, Open MPI or Kubernetes job around it.
        if "coordinator_address should be defined" not in str(error):
            raise
    finally:
        given_up.cancel()


def _give_up_joining(seconds: int) -> None:
    job = distributed.global_state
    say(
        f"flaxclip: the hosts of this job did not find each other in {seconds} s\n"
        f"this is host {job.process_id}; host 0 is to be reached at {job.coordinator_address}\n"
        "are all of them started, and can they reach that address?",
        sys.stderr,
    )
    os._exit(PREEMPTED)


def connect_hosts(mesh: Mesh, batch_sizes: Iterable[int]) -> None:
    """Let all groups of devices of the context's `mesh` communicate once, if they are CPUs.

    XLA on CPUs connects the hosts of a group when they first communicate, one group at a time, and
    runs independent collectives in any order. Hosts that begin with different groups would wait for
    each other, until Gloo gives up after 30 seconds. Here all begin with the same.

    `batch_sizes` are the numbers of pairs that steps of the run have.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    divided = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for number in range(1, len(divided) + 1):
        for axes in itertools.combinations(divided, number):
            _run(functools.partial(jax.lax.psum, axis_name=axes))
    for axes in dict.fromkeys(pair_axes(batch_size, mesh) for batch_size in batch_sizes):
        grid = DeviceGrid.squarest(axes)
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
