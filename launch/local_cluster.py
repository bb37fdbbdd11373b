"""A real job of several hosts on one machine: to try out what only several hosts can do.

    python launch/local_cluster.py --processes 2 --devices-per-process 4 --restarts 3 -- \
        python -m flaxclip.train --workdir runs/two-hosts

The processes are an Open MPI job to JAX, and find each other by its variables. Signals to this one
go to all of them. Where they end otherwise than with 0, 2 or 3 (flaxclip/exit_codes.py), and there
are restarts left, all of them start again, as the launchers for real clusters do it.
"""

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Annotated

import tyro

from flaxclip.exit_codes import PREEMPTED, TRAINING_FAILED
from flaxclip.standard_streams import drop_what_cannot_be_written, say

_USAGE_ERROR = 2


@dataclasses.dataclass(frozen=True)
class LocalCluster:
    """Run a command in several processes that JAX joins to one job."""

    processes: Annotated[int, tyro.conf.arg(metavar="P")] = 2
    """Hosts of the job."""
    devices_per_process: Annotated[int, tyro.conf.arg(metavar="D")] = 1
    """Virtual CPU devices of each."""
    restarts: int = 0
    """Times that the job is started again after it was preempted or has lost a host."""
    patience: float = 360.0
    """Seconds that the other processes may take to end after one has: longer than it takes them to
    notice (health.host_timeout_seconds). What is left then, e.g. frozen, is killed."""


class Job:
    """The processes of one start, and their output, line by line behind the name of its host."""

    def __init__(self, cluster: LocalCluster, command: list[str]):
        port = _free_port()
        self.processes = [
            subprocess.Popen(
                command,
                env=os.environ | _open_mpi(rank, cluster, port),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(cluster.processes)
        ]
        for rank, process in enumerate(self.processes):
            _say(f"host {rank} is process {process.pid}")
        self._readers = [
            threading.Thread(target=_repeat, args=(rank, process))
            for rank, process in enumerate(self.processes)
        ]
        for reader in self._readers:
            reader.start()

    def wait(self, patience: float) -> list[int]:
        """Exit codes, once all have ended; negative where a signal ended one."""
        while all(process.poll() is None for process in self.processes):
            time.sleep(0.1)
        deadline = time.monotonic() + patience
        for rank, process in enumerate(self.processes):
            try:
                process.wait(timeout=max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                _say(f"host {rank} is still there {patience:g} s after another has ended: killed")
                process.kill()
        codes = [process.wait() for process in self.processes]
        for reader in self._readers:
            reader.join()
        return codes

    def send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def run(cluster: LocalCluster, command: list[str]) -> int:
    """The exit code for the whole."""
    job, told = None, False

    def forward(number: int, _: object) -> None:
        nonlocal told
        told = True
        if job is not None:
            job.send(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    for left in range(cluster.restarts, -1, -1):
        job = Job(cluster, command)
        codes = job.wait(cluster.patience)
        _say(f"exit codes {', '.join(map(str, codes))}")
        if not any(codes):
            return 0
        if hopeless := {_USAGE_ERROR, TRAINING_FAILED}.intersection(codes):
            return min(hopeless)
        if told or left == 0:
            return PREEMPTED
        _say(f"starting again; {left} restarts left")
        time.sleep(1)
    raise AssertionError("the last start returns")


def _open_mpi(rank: int, cluster: LocalCluster, port: int) -> dict[str, str]:
    flags = os.environ.get("XLA_FLAGS", "")
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count="
        f"{cluster.devices_per_process}",
        # XLA's threads, which are as many as cores or devices otherwise. Every device may wait in
        # several collectives at once, each in a thread of its own, for others that then find none.
        "NPROC": os.environ.get(
            "NPROC", str(max(os.cpu_count() or 1, 4 * cluster.devices_per_process))
        ),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        # JAX takes an Open MPI job to be one where this is set; the address above is the one used.
        "OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": str(cluster.processes),
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
    }


def _free_port() -> int:
    # Host 0 listens at it some seconds later. Until then the kernel gives to others any port that
    # is free, but of those from 32,768 on.
    draw = random.SystemRandom()
    while True:
        port = draw.randrange(20_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _repeat(rank: int, process: subprocess.Popen[str]) -> None:
    for line in process.stdout:
        # Read on even if nobody listens any more: the host would wait for its output to be read.
        say(f"[host {rank}] {line.rstrip()}", sys.stdout)


def _say(text: str) -> None:
    say(f"local_cluster: {text}", sys.stdout)


def main() -> int:
    """The command line."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    cluster = tyro.cli(LocalCluster, args=words[:split], prog="local_cluster.py")
    command = words[split + 1 :]
    if not command:
        print("local_cluster.py: which command? give it after --", file=sys.stderr)
        return _USAGE_ERROR
    code = run(cluster, command)
    drop_what_cannot_be_written()
    return code


if __name__ == "__main__":
    sys.exit(main())
