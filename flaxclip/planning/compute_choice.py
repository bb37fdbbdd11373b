"""The settings of computation that a run leaves to the program."""

import dataclasses
import os

import jax
import optax
from jax.sharding import Mesh

from flaxclip.config import TrainConfig
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.planning.estimate import estimated_memory
from flaxclip.planning.topology import Topology
from flaxclip.train_step import choose_remat, settle_compute, step_fits


def choose_compute(
    config: TrainConfig,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    stored: tuple[StoredTeacher, ...] = (),
) -> TrainConfig:
    """`config` with every field of `compute` decided, and its choices printed.

    Only what `config` leaves open is chosen: `ComputeConfig.for_training`, `choose_remat`, for
    batches with the vectors of `stored`. Must be called on every host.
    """
    device = mesh.devices.flat[0]
    settled = settle_compute(config, device, mesh.size)
    on_one_cpu = device.platform == "cpu" and mesh.size == 1

    def fits(tried: TrainConfig) -> bool:
        if on_one_cpu:
            return _fits_this_machine(tried, device)
        return step_fits(tried, tx, schedule, mesh, stored)

    chosen = choose_remat(settled, device.platform, fits)
    open_fields = [
        name for name in ("unroll", "remat") if getattr(config.compute, name) in (None, "auto")
    ]
    if open_fields and jax.process_index() == 0:
        choices = ", ".join(
            f"--compute.{name} {getattr(chosen.compute, name)}" for name in open_fields
        )
        print(f"compute  chosen for this {device.platform.upper()}: {choices}", flush=True)
    return chosen


def _fits_this_machine(config: TrainConfig, device: jax.Device) -> bool:
    """True if a step takes at most half of this machine's memory, by an estimate.

    A CPU has no limit of its own at which compilation would fail: a step that is too large is
    killed by the kernel, or sets the machine swapping.
    """
    # What blocks keep does not depend on how many are unrolled; one is traced sooner than all.
    compute = dataclasses.replace(config.compute, unroll=1)
    scanned = dataclasses.replace(config, compute=compute)
    memory = estimated_memory(scanned, Topology("cpu:1", [device], None))
    return memory.total <= machine_memory() / 2


def machine_memory() -> int:
    """Bytes of memory that this process may use, by the machine and its control group's limit."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/sys/fs/cgroup/memory.max") as file:  # what Kubernetes limits
            limit = file.read().strip()
        return memory if limit == "max" else min(memory, int(limit))
    except (OSError, ValueError):
        return memory
