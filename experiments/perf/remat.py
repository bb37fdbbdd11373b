"""Compare the cost and savings of remat policies and unrolling, compiled for TPUs on any machine.

    pip install 'flaxclip[plan]'
    python experiments/perf/remat.py --model ViT-B-16 --topology v5e:2x4 --pairs-per-chip 32

Compiles the whole training step for each, data-parallel in bfloat16. Extra work is the FLOPs of the
matrix units beyond those of the same step when it keeps everything; time is the compiler's own
estimate. A compilation takes a minute or more on a core; results are kept.
"""

import dataclasses

import tyro
from rich.console import Console
from rich.table import Table

from flaxclip.config import TrainConfig
from flaxclip.errors import exit_on_input_error
from flaxclip.models.compute import ComputeConfig, Remat
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig
from flaxclip.planning.compiled_step import Refusal
from flaxclip.planning.store import stored_or_compiled
from flaxclip.planning.topology import open_topology


@dataclasses.dataclass(frozen=True)
class Options:
    model: str = "ViT-B-16"
    topology: str = "v5e:2x4"
    pairs_per_chip: int = 32
    policies: tuple[Remat, ...] = ("none", "names", "dots", "offload", "full")
    unroll: tuple[int, ...] = (1,)
    """Blocks a turn of the scan; as many as there are: no scan."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    topology, progress = open_topology(options.topology), Console(stderr=True)
    table = Table("remat", "unroll", "GiB a chip", "extra work", "HBM traffic, GiB", "Mcycles")
    least_work = None
    for unroll in options.unroll:
        for remat in options.policies:
            progress.print(f"compiling {remat}, unroll {unroll}")
            config = TrainConfig(
                workdir="unused",
                steps=10_000,
                batch_size=options.pairs_per_chip * len(topology.devices),
                **VARIANTS[options.model]._asdict(),
                compute=ComputeConfig(dtype="bfloat16", remat=remat, unroll=unroll),
                optim=OptimConfig(),
            )
            step = stored_or_compiled(config, topology)
            if isinstance(step, Refusal):
                table.add_row(remat, str(unroll), f"{step.needed_bytes / 2**30:.1f}: does not fit")
                continue
            least_work = step.matrix_flops if least_work is None else least_work
            cycles = step.estimated_cycles
            table.add_row(
                remat, str(unroll), f"{step.peak_bytes / 2**30:.2f}",
                f"{step.matrix_flops / least_work - 1:+.1%}", f"{step.hbm_bytes / 2**30:.1f}",
                "unknown" if cycles is None else f"{cycles / 1e6:.1f}",
            )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    with exit_on_input_error("remat"):
        main()
