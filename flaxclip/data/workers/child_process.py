"""A process that loads data for the training process, which ends it."""

import multiprocessing.connection
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType

_ENVIRONMENT = {
    # It must not take the accelerator, nor start threads: there is a worker for every core.
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # glibc keeps what images of usual sizes need, instead of asking the kernel for zeroed pages
    # each time.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
    "MALLOC_ARENA_MAX": "2",
}


class ChildProcess:
    """`python -m MODULE NUMBER CONNECTION DESCRIPTOR ...`; this side of it.

    All but the number are descriptors that it inherits. It ends when `connection`'s other end,
    which is its own, is at its end: also if the training process was killed.
    """

    def __init__(
        self,
        module: str,
        number: int,
        *descriptors: int,
        environment: Mapping[str, str] = MappingProxyType({}),
    ):
        """Start it, with `environment` in addition to this process's own."""
        self.connection, theirs = multiprocessing.connection.Pipe()
        inherited = theirs.fileno(), *descriptors
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, *map(str, (number, *inherited))],
                pass_fds=inherited,
                env={
                    **os.environ,
                    **_ENVIRONMENT,
                    **environment,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                },
            )

    def close(self) -> None:
        """End the process: by closing its connection, or else by a signal."""
        self.connection.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def how_it_ended(self) -> tuple[str, str]:
        """What to say of the end of a process that should be running, and what to do."""
        code = self.process.wait(timeout=10)
        how = f"ended with exit code {code}; its own message is above"
        advice = "the same command again continues the run"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            advice = "the kernel kills so when memory runs out: fewer data.workers need less"
        return how, advice
