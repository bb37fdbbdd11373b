"""Hosts of a run that wait after a step: whatever a test does to them then is not too late."""

import time
from collections.abc import Sequence
from pathlib import Path

import jax

from flaxclip.hosts.coordination import Requests


def held(*moments: tuple[int, int]) -> str:
    """Lines of an experiment by which the N-th start of its run has a host that waits.

    Args:
        moments: for each start from the first, the step after whose dispatch one host waits, and
            the rank of that host. The others go on, as far as they come without it.
    """
    return f"\nfrom tests.helpers.held_steps import hold\n\nhold({moments!r})\n"


def hold(moments: Sequence[tuple[int, int]]) -> None:
    """Wait as `held` says, until there is a file `go`; a file `held-N` says that the host waits."""
    start = len(list(Path().glob("held-*")))
    if start >= len(moments):
        return
    (held_step, host), agreed = moments[start], Requests.agreed

    def agreed_later(self: Requests, step: int, last: bool) -> str | None:
        if step == held_step and jax.process_index() == host:
            Path(f"held-{start}").touch()
            while not Path("go").exists():
                time.sleep(0.05)
        return agreed(self, step, last)

    Requests.agreed = agreed_later  # type: ignore[method-assign]
