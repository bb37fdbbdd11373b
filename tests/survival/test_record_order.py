"""Which records a run trains on, when it is killed and goes on with other hosts."""

import os
import re
import subprocess
import sys

import pytest

from tests.helpers.xla_flags import ONE_DEVICE
from tests.survival.jobs import ROOT


@pytest.mark.parametrize(
    "where",
    [
        ("--records", "2000", "--batch-size", "100"),
        ("--records", "1600", "--batch-size", "16", "--remote", "--counts"),
    ],
    ids=["disk", "remote"],
)
def test_a_run_killed_and_resumed_on_other_hosts_takes_the_records_of_one_that_is_not(where):
    """The long forms, of 200,000 records, and of ten kills of 1, 2 and 4 hosts, are the script's.

    Remote: the shards come from a web server, are counted, and read in runs, ahead, into a cache.
    """
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "experiments/perf/resume_order.py"),
            *("--kills", "2", *where),
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
    if "--remote" in where:
        assert "undisturbed, the sequence is that order's on disk: True" in done.stdout
        assert not re.search("cache.[0-3] has 0 byte ranges", done.stdout)
        assert "cache.3 has" in done.stdout
    assert "killed 2 times, the sequence is the same: True" in done.stdout
