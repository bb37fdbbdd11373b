"""Attention on TPU chips that are not here: XLA's and our kernel.

    pip install 'flaxclip[plan]'
    python experiments/perf/attention.py --topology v6e:2x2

For each length and head that a tower has, one transformer block is compiled with its gradients for
each, and its cycles estimated, a thousand an example: by the compiler's cost model, and for kernels
by `planning.account.kernels`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from flaxclip.models.compute import AttentionKernel, ComputeConfig
from flaxclip.models.initializers import BlockInit
from flaxclip.models.layers import BlockConfig
from flaxclip.models.transformer import Transformer
from flaxclip.planning.account.account import make_account
from flaxclip.planning.hlo import Program, parse_program
from flaxclip.planning.topology import Topology, open_topology
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh


@dataclasses.dataclass(frozen=True)
class Options:
    topology: str = "v5e:2x2"
    examples: int = 64
    """A chip."""
    towers: tuple[str, ...] = ()
    """Names of those to compile, such as ViT-B/32. If none, all."""


@dataclasses.dataclass(frozen=True)
class Tower:
    name: str
    heads: int
    length: int
    head_dim: int
    causal: bool = False


TOWERS = (
    Tower("ViT-B/32", 12, 50, 64),
    Tower("ViT-B/16", 12, 197, 64),
    Tower("ViT-L/14", 16, 257, 64),
    Tower("ViT-L/14 at 336", 16, 577, 64),
    Tower("ViT-H/14", 16, 257, 80),
    Tower("ViT-bigG/14", 16, 257, 104),
    Tower("So400M/14", 16, 256, 72),
    Tower("text, B", 8, 77, 64, causal=True),
)


def compiled_block(
    tower: Tower, kernel: AttentionKernel, topology: Topology, examples: int
) -> Program:
    """A block with its gradients for so many examples a chip, attention by `kernel`."""
    mesh = make_mesh(MeshConfig(), list(topology.devices))
    width = tower.heads * tower.head_dim
    config = BlockConfig(
        tower.heads, 4 * width, "gelu", BlockInit.torch_default(width, 4 * width), tower.causal
    )
    block = Transformer(1, config, ComputeConfig("bfloat16", attention=kernel))
    x = jax.ShapeDtypeStruct(
        (examples * mesh.size, tower.length, width), jnp.bfloat16, sharding=batch_sharding(mesh)
    )
    whole = NamedSharding(mesh, PartitionSpec())

    def total(params, x):
        return block.apply(params, x).astype(jnp.float32).sum()

    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
        jax.eval_shape(block.init, jax.random.key(0), x),
    )
    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(total, (0, 1))).trace(params, x)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    assert text is not None, "the TPU compiler tells"
    return parse_program(text)


def block_cycles(tower: Tower, kernel: AttentionKernel, topology: Topology, examples: int) -> float:
    """Cycles an example of a block with its gradients, attention by `kernel`."""
    program = compiled_block(tower, kernel, topology, examples)
    return sum(row.cycles for row in make_account(program, topology.chip)) / examples


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    topology = open_topology(options.topology)
    print(f"{options.topology}, {options.examples} examples a chip: thousand cycles an example")
    print(f"{'':16} {'length':>6} {'XLA':>8} {'ours':>8} {'ratio':>5}")
    for tower in TOWERS:
        if options.towers and tower.name not in options.towers:
            continue
        plain, ours = (
            block_cycles(tower, "xla", topology, options.examples),
            block_cycles(tower, "pallas", topology, options.examples),
        )
        line = f"{tower.name:16} {tower.length:6} {plain / 1e3:8.1f} {ours / 1e3:8.1f}"
        line += f" {ours / plain:5.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
