"""Errors of XLA are known by their text where their class does not tell."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from flaxclip.errors import InputError
from flaxclip.xla_errors import is_lost_connection, is_out_of_memory, is_xla_error
from tests.helpers.xla_flags import ONE_DEVICE

FULL = """
import resource
import jax, jax.numpy as jnp
from flaxclip.run.announcement import explain_out_of_memory
from tests.helpers.tiny_run import tiny_config

ones = jax.jit(lambda x: jnp.ones(2**22) + x)
ones(1.0).block_until_ready()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 2**23, -1))
with explain_out_of_memory(tiny_config("unset")):
    kept = [ones(1.0).block_until_ready() for _ in range(1000)]
"""


def test_memory_that_runs_out_in_a_later_step_is_explained_too():
    """Where a compiled step is called again, it is a ValueError on all versions of JAX."""
    result = subprocess.run(
        [sys.executable, "-c", FULL],
        env=os.environ | {"XLA_FLAGS": ONE_DEVICE, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ValueError: RESOURCE_EXHAUSTED: Out of memory" in result.stderr
    assert "InputError: the devices' memory is too small for batch size 16" in result.stderr


def test_other_errors_are_not_taken_for_those_of_xla():
    for error in (
        None,
        ValueError("UNKNOWN optimizer"),
        ValueError("the file says INTERNAL: no"),
        ValueError("INVALID_ARGUMENT: shapes differ"),
        InputError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer"),
        KeyError("RESOURCE_EXHAUSTED: Out of memory"),
        RuntimeError("UNAVAILABLE: no backend"),
    ):
        assert not is_xla_error(error)
        assert not is_out_of_memory(error)
        assert not is_lost_connection(error)
    with pytest.raises(jax.errors.JaxRuntimeError) as full:
        jax.jit(lambda x: jnp.ones(2**45) * x)(1.0)
    assert is_xla_error(full.value)
    assert is_out_of_memory(full.value)
    assert not is_lost_connection(full.value)
