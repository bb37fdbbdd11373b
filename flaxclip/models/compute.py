"""Settings of speed and memory, which affect the results by rounding alone."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

AttentionKernel = Literal["auto", "xla", "pallas"]
"""Implementation of attention. `auto`: cuDNN where the GPU and the type allow it, on TPUs `pallas`
for what it has room for in 16 bits, XLA elsewhere. `pallas`: our kernel for TPUs
(`models.attention.tpu_attention`)."""

KERNEL_POSITIONS = {
    "TPU v4": 160,
    "TPU v5 lite": 1024,
    "TPU v5": 640,
    "TPU v6 lite": 1024,
    "TPU7x": 640,
}
"""The most positions of an example that `pallas` has room for, by JAX's name of the device: as the
compiler takes them, with 91 kB of a core's own memory for each."""

KERNEL_CHANNELS = 128
"""The most channels of a head that `pallas` has room for."""

Remat = Literal["auto", "none", "names", "dots", "offload", "full"]
"""Activations that a block keeps for its backward pass. `none` recomputes nothing. `names` keeps
those that are expensive to recompute, `transformer.SAVED_BY_NAMES`: half the memory, at about 1%
more FLOPs. `dots` keeps the results of all matrix products with parameters. `offload` keeps those
of `names` in the host's memory. `full` keeps the block's input alone: least memory, a quarter more
FLOPs. `auto`: the first of `remat_by_speed` whose step fits the devices; the caller that compiles
the step chooses."""


def remat_by_speed(platform: str, is_scanned: bool) -> tuple[Remat, ...]:
    """The choices of `auto` on a JAX platform (`gpu`, `tpu`, `cpu`), the fastest first.

    Keeping everything is fastest on an H100, and elsewhere if the blocks are not scanned. If they
    are, it is slower than `names`, and larger: writing what all blocks keep into the scan's stacks,
    and reading it, takes longer than recomputing it. TPUs by their compiler's cost model
    (experiments/perf/remat.py), the others as timed (experiments/perf/step.py).
    """
    if platform == "gpu" or not is_scanned:
        return ("none", "names", "full")
    return ("names", "full")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """Computation of both towers. None of it comes with weights, or is needed to use them."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations. Parameters, norms, embeddings and the loss are always float32."""
    unroll: int | None = None
    """Blocks that one iteration of a scan holds: compile time against speed. If None, all of them
    in training transformers on a single CPU, unless `remat` makes that useless; otherwise 1."""
    remat: Remat | None = None
    """Activations kept by blocks for the backward pass: memory against recomputation. If None, auto
    in training on a single CPU with all blocks unrolled; otherwise names."""
    attention: AttentionKernel = "auto"
    """auto: in bfloat16, cuDNN on NVIDIA GPUs and pallas on TPUs; XLA elsewhere. xla: XLA
    everywhere. pallas: our kernel for TPUs, which keeps logits on the chip."""

    @property
    def activation_dtype(self) -> jnp.dtype:
        """`dtype` as JAX takes it."""
        return jnp.dtype(self.dtype)

    def filled_from(self, other: "ComputeConfig") -> "ComputeConfig":
        """These settings, with those of `other` where they are left open."""
        open_fields = {
            name: value for name, value in vars(other).items() if getattr(self, name) is None
        }
        return dataclasses.replace(self, **open_fields)

    def for_training(self, platform: str, devices: int, blocks: int) -> "ComputeConfig":
        """These settings for a training step on `devices` of a JAX platform, with none left open.

        On a single CPU, a step in which nothing is recomputed and nothing is scanned takes 5 to 15%
        less time than the default elsewhere, and up to twice as long to compile; either change
        alone brings little or nothing (experiments/perf/README.md).

        Args:
            platform: `gpu`, `tpu` or `cpu`.
            devices: number of devices in the mesh.
            blocks: those of the deeper tower.
        """
        unroll, remat = self.unroll, self.remat
        on_one_cpu = platform == "cpu" and devices == 1
        if unroll is None:
            unroll = blocks if on_one_cpu and remat in (None, "auto", "none") else 1
        if remat is None:
            remat = "auto" if on_one_cpu and unroll >= blocks else "names"
        return dataclasses.replace(self, unroll=unroll, remat=remat)
