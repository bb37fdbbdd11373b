"""Settings that the process of a run works under, and the time of each part of its start."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax


@contextlib.contextmanager
def no_hidden_transfers() -> Iterator[None]:
    """Refuse implicit transfers from host to devices, in this thread.

    `state.step + 1`, or a NumPy array passed to the step, is easily written and costs a transfer in
    every step. Explicit transfers are allowed: `jax.device_put`, and code within
    `jax.transfer_guard("allow")`.

    Transfers between devices need no guard: the step refuses arrays with another sharding.
    Transfers to the host have none either: on CPUs JAX does not count them, so no test could show
    which of them a run on accelerators would be refused.
    """
    # Operations that are debugged run one by one, each with its own numbers from the host.
    options: Any = jax.config  # gets its attributes at run time
    debugged = options.jax_disable_jit or options.jax_debug_nans
    with jax.transfer_guard_host_to_device("allow" if debugged else "disallow"):
        yield


class StartupClock:
    """Seconds that each part of a start takes, from the start of the process."""

    def __init__(self) -> None:
        self._parts = {"imports": _process_age()}
        self._last = time.perf_counter()

    def finished(self, part: str) -> None:
        """Note the end of `part`, which began when the one before it ended."""
        now = time.perf_counter()
        self._parts[part] = now - self._last
        self._last = now

    def summary(self) -> str:
        """`first step after 9.1 s: imports 4.0, state 2.1, …`."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._parts.items())
        return f"first step after {sum(self._parts.values()):.1f} s: {parts}"


def _process_age() -> float:
    """Seconds since this process was started; 0 if the system does not say (not Linux)."""
    try:
        stat = Path("/proc/self/stat").read_text()
    except OSError:
        return 0.0
    # proc(5): field 22, of which 2 are the name in brackets and before; ticks since the boot.
    started = int(stat.rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started
