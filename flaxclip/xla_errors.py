"""Recognize errors of XLA, whichever class they have.

A jitted function raises `JaxRuntimeError` when it is called for the first time. Later calls take a
shorter path, on which the same error is a plain `ValueError`, distinguished by its text alone: it
begins with one of Abseil's status codes.
"""

import re

import jax

# Those that tell of the machine. INVALID_ARGUMENT and the like tell of the program.
_STATUS = re.compile(
    r"(CANCELLED|UNKNOWN|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|INTERNAL|UNAVAILABLE"
    r"|DATA_LOSS): "
)

_LOST_CONNECTION = re.compile(r"Gloo .* failed: ")


def is_xla_error(error: BaseException | None) -> bool:
    """True if XLA raised it: while it ran on devices, compiled for them, or joined hosts."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    # Of this very class: messages of ours, which are of classes below it, never count.
    return type(error) is ValueError and _STATUS.match(str(error)) is not None


def is_out_of_memory(error: BaseException | None) -> bool:
    """True if the devices' memory is too small."""
    return is_xla_error(error) and "RESOURCE_EXHAUSTED" in str(error)


def is_lost_connection(error: BaseException | None) -> bool:
    """True if the connection to another host is certainly lost.

    Holds for Gloo, which joins hosts without accelerators. Other errors are less clear about a lost
    host.
    """
    return is_xla_error(error) and _LOST_CONNECTION.search(str(error)) is not None
