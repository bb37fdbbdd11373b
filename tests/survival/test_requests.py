"""What one host asks for is done by all after the same step, however far each of them has come.

And what host 0 finds is what all go by.
"""

import re

import pytest

from flaxclip.checkpoint.layout import saved_steps
from tests.survival.jobs import two_hosts

# Host 1 asks when host 0 is past step 7 already, and waits in a collective of step 8 for it.
HOST = """
import sys, time
import jax, numpy as np
from jax.experimental.multihost_utils import process_allgather
from flaxclip.hosts.connections import join_hosts
from flaxclip.hosts.coordination import Requests

join_hosts(120)
with Requests(120) as requests:
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


@pytest.mark.parametrize(("steps", "request_followed"), [(1000, "stop"), (7, "None")])
def test_a_host_that_asks_while_another_is_a_step_ahead(tmp_path, steps, request_followed):
    job = two_hosts(tmp_path / "host.py", HOST, str(steps))
    assert job.returncode == 0, job.stdout + job.stderr
    left = re.findall(r"left after (\d+) (\w+)", job.stdout)
    # Step 8, or later where host 1's threads take turns slowly; both hosts after the same one.
    assert len(left) == 2, job.stdout
    assert left[0] == left[1], job.stdout
    step, followed = left[0]
    assert followed == request_followed
    assert int(step) == 7 if followed == "None" else 8 <= int(step) < steps, job.stdout


# Of a GPU's policies, in the order of their speed, each host has memory for another one.
REMAT = """
import time
import jax
from flaxclip.hosts.connections import join_hosts
from flaxclip.models.compute import ComputeConfig
from flaxclip.train_step import choose_remat
from tests.helpers.tiny_run import tiny_config

join_hosts(120)
host = jax.process_index()
time.sleep(host)
config = tiny_config("unused", compute=ComputeConfig(remat="auto"))
config = choose_remat(config, "gpu", lambda tried: tried.compute.remat == ["names", "none"][host])
print("chosen:", config.compute.remat)
"""


def test_hosts_that_find_that_different_policies_fit_take_that_of_host_0(tmp_path):
    job = two_hosts(tmp_path / "remat.py", REMAT)
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count("chosen: names") == 2, job.stdout


# Host 1 does not see the last checkpoint yet, as it may be on NFS.
RESTORE = """
import sys
import jax
from flaxclip.checkpoint import restore
from flaxclip.hosts.connections import join_hosts
from flaxclip.models.clip import abstract_variables
from flaxclip.sharding import MeshConfig, make_mesh
from tests.helpers.tiny_run import TINY_MODEL

join_hosts(120)
if jax.process_index() == 1:
    restore.saved_steps = lambda workdir: [4]
everywhere = jax.NamedSharding(make_mesh(MeshConfig()), jax.P())
params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
    abstract_variables(TINY_MODEL)["params"],
)
print("asked first:", restore.steps_on_host_0(sys.argv[1], "the test"))
print("restored:", restore.restore_latest(sys.argv[1], {"params": params}).step)
"""


def test_hosts_that_see_different_checkpoints_take_that_of_host_0(finished_run, tmp_path):
    assert saved_steps(finished_run) == [4, 8]
    job = two_hosts(tmp_path / "restore.py", RESTORE, str(finished_run))
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count("asked first: [4, 8]") == 2, job.stdout
    assert job.stdout.count("restored: 8") == 2, job.stdout
    assert saved_steps(finished_run) == [4, 8]
