"""Splash attention, JAX's own kernel for TPUs, beside ours and XLA's, on chips that are not here.

    pip install 'flaxclip[plan]'
    python experiments/perf/splash.py --topology v5e:2x2

As `attention.py`, a block of a tower is compiled with its gradients, with each kind of attention.
Splash attention takes [heads, positions, channels] of one example, in blocks of multiples of 128
positions, so that positions are filled up to those and the filling is masked by segments. It gets
the settings that do least: one block of all positions, the backward pass in one kernel, and the
forward kernel's results kept. It states no cost, and so is priced here by the rule of
`planning.account.kernels`: 1.5 times the larger of its bytes by the memory's bandwidth and its
FLOPs, padding included, by the matrix units' rate, and for its vector units what ours take for a
logit (`tpu_kernels.VECTOR_COST`), without what they take for channels. Its own work is not
counted.
"""

import dataclasses
import math
from unittest import mock

import jax
import jax.numpy as jnp
import tyro
from attention import TOWERS, Tower, compiled_block
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Float

from flaxclip.chips import Chip
from flaxclip.models import layers
from flaxclip.models.attention.tpu_kernels import LANES, VECTOR_COST
from flaxclip.planning.account.account import make_account
from flaxclip.planning.account.kernels import (
    OVERHEAD,
    TRANSCENDENTALS_PER_CYCLE,
    is_kernel,
    states_cost,
)
from flaxclip.planning.account.memory_traffic import hbm_traffic, moved_bytes
from flaxclip.planning.hlo import Program
from flaxclip.planning.topology import Topology, open_topology
from flaxclip.sharding import on_each_device

PRODUCTS = {"forward": 2, "backward": 5}
"""Matrix products of a pass, each of all logits by the channels."""


@dataclasses.dataclass(frozen=True)
class Options:
    topology: str = "v5e:2x2"
    examples: int = 64
    """A chip."""
    towers: tuple[str, ...] = ("ViT-B/32", "ViT-B/16", "ViT-L/14")
    """Names of those to compile."""
    kinds: tuple[str, ...] = ("XLA", "ours", "splash")
    """Of attention."""


def filled(length: int) -> int:
    """Positions that splash attention takes for so many."""
    return math.ceil(length / LANES) * LANES


def attend(
    q: Float[Array, "b h l k"],
    k: Float[Array, "b h l k"],
    v: Float[Array, "b h l k"],
    causal: bool,
    *_: object,
) -> Float[Array, "b h l k"]:
    """`dot_product_attention` by splash attention, on each device for its own examples."""
    length, head_dim = q.shape[2:]
    rows = filled(length)
    mask = splash.CausalMask((rows, rows)) if causal else splash.FullMask((rows, rows))

    def on_device(*parts: Array) -> tuple[Array, ...]:
        kernel = splash.make_splash_mha(
            mask=splash.MultiHeadMask([mask] * parts[0].shape[1]),
            block_sizes=splash.BlockSizes(
                block_q=rows, block_kv=rows, block_q_dkv=rows, block_kv_dkv=rows,
                use_fused_bwd_kernel=True,
            ),
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name="attended",
        )  # fmt: skip
        # Of another segment than the positions, the filling is attended to by none of them.
        segment = (jnp.arange(rows) >= length).astype(jnp.int32)
        segments = splash.SegmentIds(q=segment, kv=segment)
        fill = ((0, 0), (0, 0), (0, rows - length), (0, 0))
        z = jax.vmap(lambda *qkv: kernel(*qkv, segment_ids=segments))(
            *(jnp.pad(x, fill) for x in parts)
        )
        return (z[:, :, :length],)

    axes = ("batch", "heads", None, None)
    (z,) = on_each_device(on_device, [(q * head_dim**-0.5, axes), (k, axes), (v, axes)], axes)
    return z


def kernel_cycles(program: Program, tower: Tower, chip: Chip, examples: int) -> dict[str, float]:
    """Cycles an example of splash attention in each pass; of other programs, none."""
    assert chip.hbm_bandwidth is not None, "TPUs have figures"
    assert chip.clock is not None, "TPUs have figures"
    logits = examples * tower.heads * filled(tower.length) ** 2
    channels = math.ceil(tower.head_dim / LANES) * LANES
    cycles = dict.fromkeys(PRODUCTS, 0.0)
    for computation, repeats in program.running():
        for line in computation.instructions.values():
            if is_kernel(line) and not states_cost(line):
                name = "backward" if "_dkv_" in line.traced_name else "forward"
                moved = moved_bytes(program, computation, line) / chip.hbm_bandwidth
                products = PRODUCTS[name] * 2 * logits * channels / chip.peak_flops
                vector = VECTOR_COST[name][0] * logits / TRANSCENDENTALS_PER_CYCLE
                one = OVERHEAD * max(moved, products) * chip.clock + vector
                cycles[name] += repeats * one / examples
    return cycles


def compiled(tower: Tower, by: str, topology: Topology, examples: int) -> Program:
    """A block with its gradients, with one kind of attention."""
    if by == "XLA":
        return compiled_block(tower, "xla", topology, examples)
    if by == "ours":
        return compiled_block(tower, "pallas", topology, examples)
    with mock.patch.object(layers, "dot_product_attention", attend):
        return compiled_block(tower, "pallas", topology, examples)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    topology = open_topology(options.topology)
    chip, examples = topology.chip, options.examples
    assert chip is not None, "a TPU has figures"
    print(f"{options.topology}, {examples} examples a chip: thousand cycles and MB an example")
    print(f"{'':12} {'length':>6} {'':6} {'kcycles':>7} {'core':>7} {'copies':>7} {'MB':>6}")
    for tower in TOWERS:
        if tower.name not in options.towers:
            continue
        for by in options.kinds:
            program = compiled(tower, by, topology, examples)
            rows = make_account(program, chip)
            kernels = sum(kernel_cycles(program, tower, chip, examples).values())
            of_parts = {
                part: sum(row.cycles for row in rows if part in (None, row.part)) / examples
                for part in (None, "attention core", "copies")
            }
            of_parts[None] += kernels
            of_parts["attention core"] += kernels
            figures = " ".join(f"{cycles / 1e3:7.1f}" for cycles in of_parts.values())
            megabytes = hbm_traffic(program) / 1e6 / examples
            print(f"{tower.name:12} {tower.length:6} {by:6} {figures} {megabytes:6.2f}", flush=True)


if __name__ == "__main__":
    main()
