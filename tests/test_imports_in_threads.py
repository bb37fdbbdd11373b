"""What replaces `builtins.__import__` for all threads is imported before there are others."""

import json
import os
import pickle
import subprocess
import sys

import pytest

from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.sources.scenes import ScenesSource
from tests.helpers.tiny_run import EXPERIMENT
from tests.helpers.xla_flags import ONE_DEVICE

RECORDED = """
import json, sys, threading
from etils import epy

replacing, seen = epy.lazy_imports, []

def recorded(**options):
    threads = [thread.name for thread in threading.enumerate()]
    seen.append([threading.current_thread().name, threads])
    return replacing(**options)

epy.lazy_imports = recorded
from flaxclip.train import main
main()
print(json.dumps(seen))
"""


def test_grain_is_imported_before_batches_are_moved(tmp_path):
    """Without workers, the first who draws from the order is the thread that moves batches."""
    (tmp_path / "tiny.py").write_text(EXPERIMENT)
    flags = ("tiny.py", "--workdir", "run", "--data.workers", "0", "--steps", "2")
    done = subprocess.run(
        [sys.executable, "-c", RECORDED, *flags, "--optim.warmup-steps", "1"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": ONE_DEVICE},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen
    for thread, others in seen:
        assert thread == "MainThread"
        assert "moves batches" not in others


@pytest.mark.parametrize(("order", "needed"), [("epochs", True), ("with_replacement", False)])
def test_an_order_that_needs_grain_brings_it_when_it_arrives(order, needed):
    """In a worker, before its threads begin."""
    source = ScenesSource("train", image_size=16)
    sent = pickle.dumps(draw_order(source, OrderConfig(sampling=order), seed=0, batch_size=16))
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); print('grain' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert done.stdout.decode().split() == [str(needed)]
