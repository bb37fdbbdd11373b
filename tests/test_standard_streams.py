"""Nobody reads what a process says, or it cannot be written: it does and ends the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flaxclip.exit_codes import PREEMPTED, TRAINING_FAILED
from tests.helpers.unwritable import KINDS, unwritable

ROOT = Path(__file__).parents[1]


def run_unheard(kind, *command, **environment):
    # Buffered, as it is by default: what is left is written when Python exits.
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""} | environment
    with unwritable(kind) as output:
        return subprocess.run(
            [sys.executable, *command],
            stdout=output,
            stderr=output,
            env=env,
            check=False,
        ).returncode


ENDS = """
import sys
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.exit_codes import PreemptedError, TrainingFailedError, exit_with_code
from flaxclip.standard_streams import say

errors = {75: PreemptedError, 3: TrainingFailedError, 2: InputError}
with exit_on_input_error("test"), exit_with_code("test"):
    print("not flushed yet")
    say("a line", sys.stdout)
    if error := errors.get(int(sys.argv[1])):
        raise error("a message")
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [0, 2, TRAINING_FAILED, PREEMPTED])
def test_the_exit_code_is_the_same(kind, code):
    assert run_unheard(kind, "-c", ENDS, str(code)) == code


REPORTS = """
import sys
from flaxclip.errors import exit_on_input_error
from flaxclip.exit_codes import PreemptedError, exit_with_code
from flaxclip.run.progress import ProgressReport

with exit_on_input_error("test"), exit_with_code("test"):
    with ProgressReport(0, 1000) as progress:
        if sys.argv[1:] == ["wait"]:
            sys.stdin.readline()
        for step in range(1000):
            progress.advance(step)
            progress.say(f"step {step}")
            progress.warn(f"warning {step}")
    raise PreemptedError("the loop came to its end")
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("color", ["", "1"])
def test_reports_of_a_run_do_not_end_it(kind, color):
    assert run_unheard(kind, "-c", REPORTS, FORCE_COLOR=color) == PREEMPTED


def test_a_terminal_that_is_closed_does_not_end_a_run():
    screen, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", REPORTS, "wait"],
        stdin=subprocess.PIPE,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"},
    )
    os.close(terminal)
    shown = b""
    while b"0/1000" not in shown:  # the bar
        shown += os.read(screen, 1000)
    os.close(screen)
    process.communicate(b"go on\n")
    assert process.returncode == PREEMPTED


SIGNALS = """
import os, signal, sys, time
from flaxclip.hosts.coordination import Requests
from flaxclip.hosts.stop_signals import StopSignals

with Requests(60) as requests, StopSignals(requests) as signals:
    os.kill(os.getpid(), signal.SIGINT)
    while requests.agreed(1, last=False) != "stop":
        if not signals._thread.is_alive():
            sys.exit("the request is lost")
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
    signals._thread.join()
    sys.exit("the second signal is lost")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_signals_are_obeyed(kind):
    assert run_unheard(kind, "-c", SIGNALS) == PREEMPTED


HANGS = """
import threading
from flaxclip.hosts.watchdog import Watchdog

with Watchdog(timeout_seconds=1) as dog:
    for _ in range(20):
        dog.step_done()
    dog._watcher.join()
"""


@pytest.mark.parametrize("kind", KINDS)
def test_the_watchdog_ends_a_process_that_hangs(kind):
    assert run_unheard(kind, "-c", HANGS) == PREEMPTED


HOST = "print('a line\\n' * 100_000); exit(75)"  # far more than a pipe holds


@pytest.mark.parametrize("kind", KINDS)
def test_a_cluster_ends_as_its_hosts_do(kind):
    launcher = [ROOT / "launch" / "local_cluster.py", "--processes", "2", "--"]
    assert run_unheard(kind, *launcher, sys.executable, "-c", HOST) == PREEMPTED
