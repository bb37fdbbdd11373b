"""Guard against transfers to the devices between steps, except for explicit ones."""

import contextlib
from collections.abc import Iterator
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
