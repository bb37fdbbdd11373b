"""What signals to a run mean."""

import os
import subprocess
import sys

from flaxclip.exit_codes import PREEMPTED

TOLD = """
import os, signal, time
from flaxclip.hosts import stop_signals
from flaxclip.hosts.coordination import Requests

def tell():
    os.kill(os.getpid(), signal.SIGINT)

stop_signals._SAME_NOTICE_SECONDS = 600.0
with Requests(60) as requests, stop_signals.StopSignals(requests) as signals:
    tell()
    tell()
    while requests.agreed(1, last=False) != "stop":
        time.sleep(0.01)
    signals._thread.join(1)
    print("goes on", flush=True)
    stop_signals._SAME_NOTICE_SECONDS = 0.0
    tell()
    signals._thread.join()
"""


def test_the_same_signal_soon_is_the_same_notice_and_later_another_one():
    """A launcher passes on to its hosts what Ctrl-C has sent to all of them."""
    told = subprocess.run(
        [sys.executable, "-c", TOLD],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == PREEMPTED, told.stderr
    assert told.stdout == "goes on\n"
    first, second = (line for line in told.stderr.splitlines() if "SIGINT" in line)
    assert "SIGINT: saving, then stopping; again after 600 s: leaving immediately" in first
    assert "SIGINT again: leaving immediately; the last checkpoint stands" in second
