"""What a host does that hears, in the middle of a step, that another is gone."""

import os
import re
import string
import subprocess
import sys

import pytest

from flaxclip.exit_codes import PREEMPTED
from tests.helpers.free_port import free_port
from tests.helpers.xla_flags import ONE_DEVICE
from tests.survival.jobs import PATIENCE

SUMS = """
import os, signal, sys
import jax, numpy as np

rank = int(sys.argv[1])
jax.distributed.initialize(
    "127.0.0.1:$port", 2, rank, heartbeat_timeout_seconds=200, shutdown_timeout_seconds=100
)
from flaxclip.hosts.watchdog import Watchdog

mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
total = jax.jit(jax.shard_map(
    lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=jax.P(), out_specs=jax.P(),
    check_vma=False,
))
with Watchdog(timeout_seconds=30) as dog:
    started = dog._hosts.heard_at
    for step in range(10**9):
        dog.doing(f"waiting for step {step}")
        try:
            jax.device_get(total(np.ones($numbers, np.float32)))
        except Exception as error:
            print(type(error).__name__, flush=True)
            raise
        dog.step_done()
        # After its first report, without which it has no name.
        if rank == 1 and dog._hosts.heard_at > started:
            os.kill(os.getpid(), signal.SIGKILL)
"""


# What is little is computed while it is dispatched, and it is the dispatch that raises.
@pytest.mark.parametrize(("numbers", "raised"), [(10**5, "JaxRuntimeError"), (1, "ValueError")])
def test_a_host_killed_in_a_collective_is_named_whichever_class_the_error_has(numbers, raised):
    port = free_port()
    code = string.Template(SUMS).substitute(port=port, numbers=numbers)
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            env=os.environ | {"XLA_FLAGS": ONE_DEVICE, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        hosts[1].wait(timeout=PATIENCE)
        out, err = hosts[0].communicate(timeout=PATIENCE)
    finally:
        for host in hosts:
            host.kill()
            host.communicate()
    assert hosts[0].returncode == PREEMPTED, err
    assert out.split()[-1] == raised
    found = re.search(r"flaxclip.train: host 1 \(.*\) is dead or frozen: silent for (\d+) s", err)
    assert found, err
    assert "UNKNOWN: Gloo all-reduce failed" in err
    # Without the error its silence would tell after 21 s.
    assert int(found[1]) < 20
