"""Attention on TPU chips that are not here: what is there to win for a kernel of our own.

    pip install 'flaxclip[plan]'
    python experiments/perf/attention.py

For each length and head that a tower has, one transformer block and its attention alone (softmax of
Q K^T, times V) are compiled with their gradients, and the compiler's own estimates of their time
compared: a kernel that took no time at all would save that share of a block. The compiler has no
estimate for Pallas kernels, so theirs cannot be put beside it; JAX's flash attention wants lengths
in multiples of 128, and the last column is how much more it would compute for that.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import tyro
from jax.sharding import NamedSharding, PartitionSpec

from flaxclip.models.layers import BlockInit, dot_product_attention
from flaxclip.models.transformer import Transformer
from flaxclip.planning.compiled_step import estimated_cycles
from flaxclip.planning.hlo import parse_program
from flaxclip.planning.topology import open_topology
from flaxclip.sharding import MeshConfig, batch_sharding, make_mesh


@dataclasses.dataclass(frozen=True)
class Options:
    topology: str = "v5e:2x2"
    examples: int = 64
    """A chip."""


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
    Tower("text, B", 8, 77, 64, causal=True),
)


def compiled_cycles(mesh, function, params, *inputs: jax.ShapeDtypeStruct) -> int | None:
    """Million cycles of the gradient of `function`'s sum, by the compiler's estimate."""

    def total(params, *inputs):
        return function(params, *inputs).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        traced = jax.jit(jax.grad(total, tuple(range(1 + len(inputs))))).trace(params, *inputs)
        text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
    return estimated_cycles(parse_program(text))


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    mesh = make_mesh(MeshConfig(), list(open_topology(options.topology).devices))
    divided, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    examples = options.examples * mesh.size
    print(f"{options.topology}, {options.examples} examples a chip: million cycles")
    print(f"{'':16} {'length':>6} {'block':>6} {'attention':>9} {'share':>6} {'flash padding':>13}")
    for tower in TOWERS:
        width = tower.heads * tower.head_dim
        block = Transformer(
            1, tower.heads, 4 * width, "gelu", tower.causal,
            BlockInit.xavier(width, 4 * width), jnp.bfloat16,
        )  # fmt: skip

        def shape(*sizes: int, dtype=jnp.bfloat16, sharding=divided) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

        x = shape(examples, tower.length, width)
        params = jax.tree.map(
            lambda leaf: shape(*leaf.shape, dtype=leaf.dtype, sharding=whole),
            jax.eval_shape(block.init, jax.random.key(0), x),
        )
        q = shape(examples, tower.heads, tower.length, tower.head_dim)
        cycles = [
            compiled_cycles(mesh, block.apply, params, x),
            compiled_cycles(
                mesh, lambda _, *qkv, c=tower.causal: dot_product_attention(*qkv, c), (), q, q, q
            ),
        ]
        padded = 128 * math.ceil(tower.length / 128)
        print(
            f"{tower.name:16} {tower.length:6} {cycles[0] / 1e6:6.2f} {cycles[1] / 1e6:9.2f} "
            f"{cycles[1] / cycles[0]:6.0%} {(padded / tower.length) ** 2 - 1:13.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
