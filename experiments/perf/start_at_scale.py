"""A run over a billion pairs whose index is there: seconds to its first batch, and its memory.

    python experiments/perf/start_at_scale.py
    python experiments/perf/start_at_scale.py --shards 1000 --latency 0.15

The bucket is simulated (`simulated_bucket.py`); the training process, its workers and its
prefetcher are as in a run. It starts twice, the second time with the table of the index in the
user's cache. For each process, the largest resident set from its start to the first batch is told,
and how it is made up at that batch: memory of its own, and pages of files or of shared batches,
which processes may have in common. Of the training process, 2 batches of 128 images or 37 MiB are
its own.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro
from simulated_bucket import SimulatedBucket, SimulatedTars, Simulation, register, write_table

BATCH, WORKERS = 128, 2


@dataclasses.dataclass(frozen=True)
class Trial:
    """Size of the trial."""

    shards: int = 128_000
    latency: float = 0.04
    """Seconds that the bucket takes to answer."""


def main(trial: Trial) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(trial.shards, trial.latency, f"{folder}/table")
        register(simulation)
        write_table(simulation)
        for title in ("first start", "second start"):
            command = [sys.executable, __file__, json.dumps(dataclasses.asdict(simulation))]
            environment = {"XDG_CACHE_HOME": f"{folder}/cache", "JAX_PLATFORMS": "cpu"}
            print(title, flush=True)
            began = str(time.time())
            subprocess.run([*command, began], check=True, env=os.environ | environment)


def run(simulation: Simulation, began: float) -> None:
    """Start as a run does, up to the first batch."""
    from flaxclip.data.config import DataConfig
    from flaxclip.data.loader import load_batches
    from flaxclip.models.variants import VARIANTS
    from flaxclip.sharding import MeshConfig, make_mesh

    source = SimulatedTars.open(simulation)
    print(f"  corpus open after {time.time() - began:.1f} s, {SimulatedBucket.requests:,} requests")
    print(f"  {of_process(os.getpid())}: the training process, corpus open")
    batches = load_batches(
        DataConfig(workers=WORKERS),
        VARIANTS["ViT-B-32"],
        source,
        make_mesh(MeshConfig()),
        batch_size=BATCH,
        seed=0,
        start_step=0,
        stop_step=10**6,
    )
    reads = next(batches).reads
    print(
        f"  first batch of {len(source):,} pairs after {time.time() - began:.1f} s, "
        f"{reads.requests:,.0f} requests, {reads.bytes / 1e6:,.0f} MB; the training process has "
        f"used a processor for {time.process_time():.1f} s"
    )
    print(f"  {of_process(os.getpid())}: the training process")
    for process in children():
        command = Path(f"/proc/{process}/cmdline").read_text().split("\0")
        print(f"  {of_process(process)}: {next(word for word in command if 'flaxclip' in word)}")
    batches.close()


def of_process(process: int) -> str:
    """Its memory, in words."""
    status = Path(f"/proc/{process}/status").read_text()
    peak, now, own, files, shared = (
        int(status.split(f"{name}:")[1].split()[0]) / 1024
        for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem")
    )
    return f"{peak:4.0f} MiB at most, {now:.0f} now ({own:.0f} + {files:.0f} + {shared:.0f})"


def children() -> list[int]:
    """Processes that this one has started."""
    own = os.getpid()
    return [
        int(process) for process in Path(f"/proc/{own}/task/{own}/children").read_text().split()
    ]


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1].startswith("{"):
        run(Simulation(**json.loads(sys.argv[1])), float(sys.argv[2]))
    else:
        main(tyro.cli(Trial, description=__doc__))
