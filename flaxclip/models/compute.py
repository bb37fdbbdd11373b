"""Settings of speed and memory, which change no more of the numbers than their rounding."""

import dataclasses
from typing import Literal

import jax.numpy as jnp

AttentionKernel = Literal["auto", "xla"]
"""What computes attention. `auto`: cuDNN where the GPU and the type allow it, XLA elsewhere."""

Remat = Literal["auto", "none", "names", "dots", "offload", "full"]
"""What a block keeps for its backward pass. `none` recomputes nothing. `names` keeps what is
expensive to recompute, `transformer.SAVED_BY_NAMES`: half the memory, at about 1% more FLOPs.
`dots` keeps the results of all matrix products with parameters. `offload` keeps what `names` does
in the host's memory. `full` keeps the block's input alone: least memory, a quarter more FLOPs.
`auto`: the first of `remat_by_speed` whose step fits the devices; whoever compiles the step
chooses."""


def remat_by_speed(platform: str, is_scanned: bool) -> tuple[Remat, ...]:
    """The choices of `auto` on a JAX platform (`gpu`, `tpu`, `cpu`), the fastest first.

    Keeping everything is fastest on an H100, and on TPUs where no scan is over the blocks. Else it
    is slower than `names`, and larger: to write what all blocks keep into the scan's stacks, and to
    read it, takes longer than to recompute it. TPUs by their compiler's cost model
    (experiments/perf/remat.py), the others as timed (experiments/perf/step.py).
    """
    if platform == "gpu" or (platform == "tpu" and not is_scanned):
        return ("none", "names", "full")
    return ("names", "full")


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How both towers are computed. None of it comes with weights, or is needed to use them."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations. Parameters, norms, embeddings and the loss are float32 always."""
    unroll: int = 1
    """Blocks that one iteration of a scan holds: compile time against speed."""
    remat: Remat = "names"
    """What transformer blocks keep for their backward pass: memory against recomputation."""
    attention: AttentionKernel = "auto"
    """auto: by cuDNN on NVIDIA GPUs in bfloat16, by XLA elsewhere. xla: by XLA everywhere."""

    @property
    def activation_dtype(self) -> jnp.dtype:
        """`dtype` as JAX takes it."""
        return jnp.dtype(self.dtype)
