"""What one host asks for is done by all after the same step, however far each of them has come."""

import subprocess
import sys

import pytest

from tests.survival.jobs import ROOT

# Host 1 asks when host 0 is past step 7 already, and waits in a collective of step 8 for it.
HOST = """
import sys, time
import jax, numpy as np
from jax.experimental.multihost_utils import process_allgather
from flaxclip.coordination import Requests
from flaxclip.sharding import join_hosts

join_hosts(60)
with Requests(20) as requests:
    for step in range(1, int(sys.argv[1]) + 1):
        process_allgather(np.array([step]))
        if step == 7 and jax.process_index() == 1:
            time.sleep(3)
            requests.make("stop")
        request = requests.agreed(step, step == int(sys.argv[1]))
        if request:
            break
print("left after", step, request)
"""


@pytest.mark.parametrize(("steps", "left"), [(30, "left after 8 stop"), (7, "left after 7 None")])
def test_a_host_that_asks_while_another_is_a_step_ahead(tmp_path, steps, left):
    script = tmp_path / "host.py"
    script.write_text(HOST)
    launcher = [sys.executable, ROOT / "launch" / "local_cluster.py", "--processes", "2"]
    command = [*launcher, "--devices-per-process", "1", "--", sys.executable, script, str(steps)]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count(left) == 2, job.stdout
