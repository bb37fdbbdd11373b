"""Memory and traffic of the contrastive loss on TPU chips that are not here.

    pip install 'flaxclip[plan]'
    python experiments/perf/loss_memory.py

Loss and gradients are compiled by the TPU compiler, with nothing around them. Memory is what the
compiler allocates in HBM besides arguments and results; traffic, what a chip receives at least, by
the collectives in the compiled program; time, the compiler's own estimate of everything but these,
at the chip's clock. The named alternative is a matrix for each direction (`two_matrices.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import NamedSharding, PartitionSpec
from two_matrices import two_matrix_loss

from flaxclip.losses.sigmoid import sigmoid_contrastive_loss
from flaxclip.losses.softmax import softmax_contrastive_loss
from flaxclip.planning.collectives import find_collectives
from flaxclip.planning.compiled_step import estimated_cycles, parse_refusal
from flaxclip.planning.hlo import parse_program
from flaxclip.planning.topology import open_topology
from flaxclip.sharding import BATCH_AXES, MeshConfig, batch_sharding, make_mesh

MIB = 2**20
LOSSES = {
    "softmax, two matrices": lambda zimg, ztxt, scale, _: two_matrix_loss(
        zimg, ztxt, scale, BATCH_AXES
    ),
    "softmax, gathered": lambda zimg, ztxt, scale, _: (
        softmax_contrastive_loss(zimg, ztxt, scale, BATCH_AXES, "gathered").loss
    ),
    "softmax, tiled": lambda zimg, ztxt, scale, _: (
        softmax_contrastive_loss(zimg, ztxt, scale, BATCH_AXES, "tiled").loss
    ),
    "sigmoid, gathered": lambda *inputs: (
        sigmoid_contrastive_loss(*inputs, BATCH_AXES, "gathered").loss
    ),
    "sigmoid, tiled": lambda *inputs: sigmoid_contrastive_loss(*inputs, BATCH_AXES, "tiled").loss,
}


@dataclasses.dataclass(frozen=True)
class Options:
    topology: str = "v5e:2x4"
    batch_sizes: tuple[int, ...] = (32_768, 131_072, 1_048_576)
    """Pairs over all chips."""
    embed_dim: int = 768


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    mesh = make_mesh(MeshConfig(), list(open_topology(options.topology).devices))
    whole = NamedSharding(mesh, PartitionSpec())
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    divided = batch_sharding(mesh)
    print(f"{options.topology}, d {options.embed_dim}: MiB a chip, and million cycles")
    print(f"{'':22} {'batch':>9} {'memory':>7} {'received':>8} {'cycles':>7}")
    for batch_size in options.batch_sizes:
        shape = batch_size, options.embed_dim
        z = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=divided)
        for name, loss in LOSSES.items():
            step = jax.jit(
                jax.value_and_grad(loss, (0, 1, 2)),
                out_shardings=(whole, (divided, divided, whole)),
            )
            with jax.set_mesh(mesh):
                lowered = step.trace(z, z, scalar, scalar).lower(lowering_platforms=("tpu",))
            try:
                compiled = lowered.compile()
            except jax.errors.JaxRuntimeError as error:
                if parse_refusal(str(error)) is None:
                    raise
                print(f"{name:22} {batch_size:9} does not fit", flush=True)
                continue
            program = parse_program(compiled.as_text())
            received = sum(c.repeats * c.received_bytes for c in find_collectives(program))
            print(
                f"{name:22} {batch_size:9} "
                f"{compiled.memory_analysis().temp_size_in_bytes / MIB:7.0f} "
                f"{received / MIB:8.0f} {estimated_cycles(program) / 1e6:7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
