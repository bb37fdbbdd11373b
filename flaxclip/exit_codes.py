"""How a training process ends, for whoever started it.

0    the run is finished
2    something given cannot be used: the message says what
3    training itself went wrong; starting it again unattended would not help
75   stopped on a signal, or because a host or a process that loads data was lost: the same
     command continues the run

Launchers restart on 75 (EX_TEMPFAIL of sysexits.h), and where a process was killed by a signal.
"""

TRAINING_FAILED = 3
PREEMPTED = 75


class TrainingFailedError(Exception):
    """The numbers went bad; the message says where, and what is left to continue from."""


class PreemptedError(Exception):
    """The run was told to stop and has saved its state, or has lost a host."""
