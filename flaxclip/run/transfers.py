"""What moves to the devices while a run steps: only what the code says it moves."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax


@contextlib.contextmanager
def no_hidden_transfers() -> Iterator[None]:
    """Refuse numbers of the host where arrays of the devices belong, in this thread.

    `state.step + 1` or a NumPy array given to the step is easily written, and costs a transfer in
    every step. `jax.device_put` says what it does, and may; so may what is within
    `jax.transfer_guard("allow")`.

    Among devices there is no need of a guard: the step refuses what lies otherwise than it wants.
    The other way there is none either: JAX does not count it as a transfer on CPUs, so no test
    could show which readings a run on accelerators would be refused.
    """
    # Operations that are debugged run one by one, each with its own numbers from the host.
    options: Any = jax.config  # gets its attributes at run time
    debugged = options.jax_disable_jit or options.jax_debug_nans
    with jax.transfer_guard_host_to_device("allow" if debugged else "disallow"):
        yield
