"""What XLA complains of, whichever class the complaint comes in.

A jitted function raises `JaxRuntimeError` when it is called for the first time. Later calls take a
shorter way, on which the same complaint is a plain `ValueError`: its text alone tells it from
others, for it begins with one of the status codes of Abseil.
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
    """Whether XLA has raised it: what runs on the devices, compiles for them, or joins hosts."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    # Of this very class: messages of ours, which are of classes below it, never count.
    return type(error) is ValueError and _STATUS.match(str(error)) is not None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the devices' memory is too small."""
    return is_xla_error(error) and "RESOURCE_EXHAUSTED" in str(error)


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether it is certain that another host is gone, or the network to it.

    Gloo joins hosts without accelerators. What others say of a lost host is not as clear.
    """
    return is_xla_error(error) and _LOST_CONNECTION.search(str(error)) is not None
