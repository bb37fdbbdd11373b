"""Steps that take too long: all stacks are printed, and in the end the process leaves."""

import string
import subprocess
import sys

from flaxclip.exit_codes import PREEMPTED

# Seconds in place of minutes; the watchdog itself is the real one, in a process it may end.
HANG = """
import time
from flaxclip.hosts import watchdog

with watchdog.Watchdog(timeout_seconds=$timeout) as dog:
    for _ in range($steps):
        dog.step_done()
        time.sleep(0.01)
    dog.doing("waiting for the data of step 21")
    $then

    def hangs_here():
        watchdog._SLOW_SECONDS = 0.2  # not of the steps before, which a busy machine delays
        time.sleep($seconds)

    hangs_here()
print("came back")
"""


def run(steps=20, **names):
    code = string.Template(HANG).substitute(names, steps=steps)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_a_step_that_takes_ten_times_the_median_prints_all_stacks_once():
    result = run(timeout=30, then="", seconds=6)
    assert result.returncode == 0, result.stderr
    assert "came back" in result.stdout
    assert result.stderr.count("all its stacks") == 1
    assert "host 0 (" in result.stderr
    assert "waiting for the data of step 21 for " in result.stderr
    assert "in hangs_here" in result.stderr


def test_no_step_is_slow_before_there_is_one_to_compare_it_with():
    result = run(steps=1, timeout=30, then="", seconds=6)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_step_that_takes_longer_than_the_time_out_ends_the_process():
    result = run(timeout=3, then="", seconds=600)
    assert result.returncode == PREEMPTED
    assert "(health.host_timeout_seconds is 3)" in result.stderr
    assert "in hangs_here" in result.stderr


def test_a_save_may_take_as_long_as_it_takes():
    result = run(steps=2, timeout=1, then='dog.exempt("saving step 2")', seconds=3)
    assert (result.returncode, result.stderr) == (0, "")
