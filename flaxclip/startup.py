"""What happens once, before the first step of a run."""

import ctypes
import sys

import jax
from jax.sharding import Mesh

from flaxclip.config import TrainConfig
from flaxclip.data.source import Source
from flaxclip.errors import InputError
from flaxclip.flops import count_flops
from flaxclip.models.clip import CLIP, example_inputs, init_params


def keep_freed_memory() -> None:
    """Have glibc keep what is freed, for the next step.

    On the CPU a step's buffers come from malloc. Given back to the kernel after each step, their
    pages would be zeroed anew for the next: a quarter of the time of a small model's step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            for parameter, value in (
                (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: keep up to 2 GiB at the top of the heap
                (-4, 0),  # M_MMAP_MAX: no mappings of their own for large blocks
                (-8, 1),  # M_ARENA_MAX: one heap, since those of threads cannot grow large
            ):
                mallopt(parameter, value)


def join_hosts(timeout_seconds: float) -> None:
    """Connect to the other hosts of the job, where a cluster says that there are some.

    Raises:
        InputError: they cannot be reached in time.
    """
    seconds = int(timeout_seconds)
    try:
        jax.distributed.initialize(
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=seconds,
            shutdown_timeout_seconds=seconds,
        )
    except ValueError as error:
        # What JAX says where it finds no TPU pod, SLURM, Open MPI or Kubernetes job around it.
        if "coordinator_address should be defined" not in str(error):
            raise
    except jax.errors.JaxRuntimeError as error:
        raise InputError(
            f"the hosts of this job did not find each other in {seconds} s\n"
            f"{str(error).splitlines()[0]}\n"
            "are all of them started, and can they reach host 0 at its coordinator address?"
        ) from None


def announce(config: TrainConfig, mesh: Mesh, source: Source, start_step: int) -> None:
    """What is about to run, in a few lines, before anything slow happens."""
    if jax.process_index() != 0:
        return
    params = jax.eval_shape(lambda key: init_params(key, config.model), jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    c = config.model
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    seen = config.steps * config.batch_size
    lines = {
        "model": f"{size / 1e6:.1f} M parameters, "
        f"{c.vision.image_size} px in patches of {c.vision.patch_size}, "
        f"image {c.vision.layers} x {c.vision.width}, text {c.text.layers} x {c.text.width}, "
        f"{c.dtype} activations",
        "data": f"{' '.join(config.data.path)}: {len(source):,} pairs, "
        f"{seen:,} seen in the run ({seen / len(source):.3g} epochs)",
        "batch": f"{config.batch_size:,} pairs, {step_flops(config) / 1e12:.3g} TFLOP a step",
        "devices": f"{mesh.size} x {jax.devices()[0].device_kind}, "
        f"{jax.process_count()} host(s), mesh {axes}",
        "workdir": config.workdir,
        "start": f"step {start_step} of {config.steps}"
        + ("" if start_step < config.steps else ": this run is finished"),
    }
    for name, text in lines.items():
        print(f"{name:8} {text}", flush=True)


def step_flops(config: TrainConfig) -> int:
    """Model FLOPs of one update: the backward pass takes twice those of the forward pass."""
    params = jax.eval_shape(lambda key: init_params(key, config.model), jax.random.key(0))
    images, tokens = example_inputs(config.model)
    apply = CLIP(config.model).apply
    return 3 * config.batch_size * count_flops(apply, {"params": params}, images, tokens)
