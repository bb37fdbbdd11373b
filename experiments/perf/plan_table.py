"""The README's table of plans: the largest batch that fits, how fast it can be, what it costs.

    pip install 'flaxclip[plan]'
    python experiments/perf/plan_table.py --models ViT-B-32 ViT-B-16 --topologies v5e:16x16

For each architecture and slice: parameters are divided over the smallest number of chips
(`--mesh.fsdp`) that leaves a chip at least seven eighths of its memory, then the largest power of
two of pairs a chip that compiles is found. A compilation takes a minute or more on a core; all
results are kept, so the same command goes on where it was stopped.
"""

import dataclasses
import sys

import tyro
from rich.console import Console

from flaxclip.config import TrainConfig
from flaxclip.errors import exit_on_input_error
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig
from flaxclip.planning.estimate import state_bytes
from flaxclip.planning.run_plan import make_plan
from flaxclip.planning.search import largest_batch
from flaxclip.planning.topology import Topology, open_topology
from flaxclip.sharding import MeshConfig
from flaxclip.train_step import settle_compute

PAIRS = 12_800_000_000


@dataclasses.dataclass(frozen=True)
class Options:
    models: tuple[str, ...] = (
        "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14", "ViT-bigG-14", "ViT-SO400M-14-SigLIP",
    )  # fmt: skip
    topologies: tuple[str, ...] = ("v5e:16x16", "v6e:16x16", "v5p:4x4x4", "v5p:8x8x8")


def starting_point(model: str, topology: Topology) -> TrainConfig:
    """One pair a chip, bfloat16 activations, and as little FSDP as leaves room."""
    chips, fsdp = len(topology.devices), 1
    while True:
        config = TrainConfig(
            workdir="unused",
            steps=PAIRS // 32_768,
            batch_size=chips,
            **VARIANTS[model]._asdict(),
            compute=ComputeConfig(dtype="bfloat16"),
            optim=OptimConfig(),
            mesh=MeshConfig(fsdp=fsdp),
        )
        if fsdp == chips or state_bytes(config, topology) <= topology.chip.hbm_bytes / 8:
            return settle_compute(config, topology.devices[0], chips)
        fsdp *= 2


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    progress = Console(stderr=True)
    print("| model | slice | fsdp | pairs a chip | GiB a chip (state and batch) "
          "| MFU at most | limited by | MFU by the compiler | chip-hours |")  # fmt: skip
    print("|" + "---|" * 9)
    for model in options.models:
        for name in options.topologies:
            topology = open_topology(name)
            trial = largest_batch(starting_point(model, topology), topology, progress.print)
            if trial is None:
                print(f"| {model} | {name} | not one pair a chip fits |||||||")
                continue
            config = trial.config
            plan = make_plan(config, topology, decode_rate=1.0, pair_bytes=40_000.0)
            step, roof = plan.step, plan.roofline
            chips = plan.chips / topology.chip.devices
            hours = PAIRS / config.batch_size * roof.expected * chips / 3600
            print(
                f"| {model} | {name} | {config.mesh.fsdp} | {config.batch_size // plan.chips} "
                f"| {step.peak_bytes / 2**30:.1f} ({step.argument_bytes / 2**30:.2f}) "
                f"| {plan.mfu(roof.bound):.0%} | {roof.limit} "
                f"| {plan.mfu(roof.expected):.0%} | {hours:,.0f} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    with exit_on_input_error("plan_table"):
        main()
