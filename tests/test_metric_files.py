"""Metric files on a disk that is full."""

import json
import subprocess
import sys

from flaxclip.metrics import METRICS_FILE


def test_metrics_wait_for_room_on_the_disk_and_training_goes_on(tmp_path):
    """A limit of the size of files stands in for the disk: it, too, cuts a line in the middle."""
    code = """
import resource, sys
from flaxclip.metrics import MetricWriter
warnings = []
writer = MetricWriter(sys.argv[1], warn=warnings.append)
limit = lambda soft: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
for step in range(1, 31):
    if step == 11: limit(1000)
    if step == 21: limit(resource.RLIM_INFINITY)
    writer.write(step, {"loss": step / 2})
writer.close()
print(*warnings, sep="\\n")
"""
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "unclosed" not in done.stderr
    [warning] = done.stdout.splitlines()
    assert "cannot be written: File too large" in warning
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert (tmp_path / "metrics.jsonl").stat().st_size > 1000
    assert len(list((tmp_path / "tensorboard").iterdir())) > 1  # the broken file, and another
