"""Which records a run trains on, when it is killed and goes on with other hosts."""

import os
import subprocess
import sys

from tests.helpers.xla_flags import ONE_DEVICE
from tests.survival.jobs import ROOT


def test_a_run_killed_and_resumed_on_other_hosts_takes_the_records_of_one_that_is_not():
    """The long form, of 200,000 records, is the script's own default."""
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "experiments/perf/resume_order.py"),
            *("--records", "2000", "--batch-size", "100", "--kills", "2"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ONE_DEVICE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 host(s) killed at step" in done.stdout
    assert "2 host(s) killed at step" in done.stdout
    assert "4 host(s) finished" in done.stdout
    assert "each of 2 epochs is a permutation: True" in done.stdout
    assert "killed 2 times, the sequence is the same: True" in done.stdout
