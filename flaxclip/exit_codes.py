"""Exit codes of a training process, for launchers.

0    the run is finished
2    an input cannot be used; the message says which and why
3    training itself went wrong; starting it again unattended would not help
75   stopped on a signal, or because a host or a data worker was lost: the same command continues
     the run

Launchers restart on 75 (EX_TEMPFAIL of sysexits.h), and if a process was killed by a signal.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from flaxclip.standard_streams import say

TRAINING_FAILED = 3
PREEMPTED = 75


class TrainingFailedError(Exception):
    """Training went wrong; the message says where, and how to continue."""


class PreemptedError(Exception):
    """The run was stopped and has saved its state, or has lost a host or a worker process."""


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
    say(f"{program}: {reason}", sys.stderr)
    sys.exit(code)
