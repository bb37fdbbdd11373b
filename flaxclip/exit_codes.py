"""How a training process ends, for whoever started it.

0    the run is finished
2    something given cannot be used: the message says what
3    training itself went wrong; starting it again unattended would not help
75   stopped on a signal, or because a host or a process that loads data was lost: the same
     command continues the run

Launchers restart on 75 (EX_TEMPFAIL of sysexits.h), and where a process was killed by a signal.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRAINING_FAILED = 3
PREEMPTED = 75


class TrainingFailedError(Exception):
    """The numbers went bad; the message says where, and what is left to continue from."""


class PreemptedError(Exception):
    """The run was told to stop and has saved its state, or has lost a host or a worker process."""


@contextmanager
def exit_with_code(program: str) -> Iterator[None]:
    """Turn these errors into a message on standard error and the exit code of each."""
    try:
        yield
    except PreemptedError as stop:
        _leave(program, stop, PREEMPTED)
    except TrainingFailedError as failure:
        _leave(program, failure, TRAINING_FAILED)


def _leave(program: str, reason: Exception, code: int) -> None:
    print(f"{program}: {reason}", file=sys.stderr, flush=True)
    sys.exit(code)
