"""Command lines, each as a process of its own or within this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flaxclip.errors import exit_on_input_error
from tests.helpers.xla_flags import ONE_DEVICE


def run_cli(*args, cwd, **environment):
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    # One device, as on a laptop.
    env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ONE_DEVICE, "COLUMNS": "100"} | environment
    return subprocess.run(
        [sys.executable, "-m", *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def refused(run, capsys):
    """What a command line says before it leaves with code 2; no process of its own is started."""
    with pytest.raises(SystemExit) as stop, exit_on_input_error("flaxclip"):
        run()
    assert stop.value.code == 2
    return "".join(capsys.readouterr())
