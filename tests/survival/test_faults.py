"""Disks that are full, folders that cannot be written, a coordinator that is not there."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from flaxclip.checkpoint.layout import saved_steps
from flaxclip.exit_codes import PREEMPTED
from tests.helpers.free_port import free_port
from tests.survival.jobs import Job, train_command
from tests.survival.outcome import losses


def with_mounts(mounts: str, command: list[str]) -> list[str]:
    """`command` where it alone sees these mounts, for which no privileges are needed."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-ec"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, ":"], check=False).returncode:
        pytest.skip("needs unshare (util-linux) and user namespaces")
    return [*unshare, f'{mounts}\nexec "$@"', "bash", *command]


def fill(ballast: Path) -> None:
    """Take all the room that there is."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))


def test_a_full_disk_costs_a_save_and_a_second_signal_ends_a_run_at_once(tmp_path):
    """On a disk of 120 MiB; that of temporary files is full from the start."""
    for name in ("run", "tmp"):
        (tmp_path / name).mkdir()
    mounts = "\n".join(
        [
            "mount -t tmpfs -o size=120m disk run",
            "mount -t tmpfs -o size=64k disk tmp",
            "head -c 1M /dev/zero > tmp/filler 2> /dev/null || true",
        ]
    )
    flags = ("--steps", "1000000", "--checkpoint.every-steps", "20", "--log-every", "1")
    job = Job(tmp_path, with_mounts(mounts, train_command(*flags)), TMPDIR=str(tmp_path / "tmp"))
    # What the job sees, seen from outside its namespace.
    inside = tmp_path.parents[-1] / f"proc/{job.process.pid}/root" / tmp_path.relative_to("/")
    workdir, ballast = inside / "run", inside / "run" / "ballast"
    job.wait_until(lambda: workdir.is_dir() and len(saved_steps(workdir)) > 1)
    fill(ballast)
    job.wait_for_text("failed: ")
    assert "the last whole checkpoint is that of step" in job.text()
    before = max(saved_steps(workdir))
    assert job.process.poll() is None
    ballast.unlink()
    job.wait_until(lambda: max(saved_steps(workdir)) > before)

    # Both are waiting when it goes on, and are handled one after the other.
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        job.process.send_signal(number)
    assert job.wait() == PREEMPTED
    assert re.search("SIG.*: saving, then stopping", job.text())
    assert re.search("SIG.* again: leaving immediately; the last checkpoint stands", job.text())


def test_a_run_to_which_nobody_listens_any_more_saves_and_stops_on_a_signal(tmp_path):
    """As with `2>&1 | tee log`, of which Ctrl-C ends `tee` too, only later."""
    reader, writer = os.pipe()
    never = ("--checkpoint.every-steps", "1000000000")
    flags = ("--steps", "1000000", "--log-every", "1", *never)
    job = Job(tmp_path, train_command(*flags), output=writer)
    os.close(writer)
    printed = b""
    while b"  loss " not in printed:
        more = os.read(reader, 2**16)
        assert more, printed.decode()
        printed += more
    os.close(reader)
    metrics = tmp_path / "run/metrics.jsonl"
    heard = metrics.read_bytes().count(b"\n")
    # A step is reported after its metrics are written: here at least one is, to nobody.
    job.wait_until(lambda: metrics.read_bytes().count(b"\n") > heard + 2)
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == PREEMPTED
    assert saved_steps(tmp_path / "run") == [losses(tmp_path)[-1][0]]


def test_a_workdir_that_is_read_only_is_a_message(tmp_path):
    (tmp_path / "run").mkdir()
    mounts = "mount -t tmpfs -o ro disk run"
    job = Job(tmp_path, with_mounts(mounts, train_command()))
    assert job.wait() == 2
    assert "cannot write into workdir run: Read-only file system" in job.text()
    assert "Traceback" not in job.text()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_hosts_that_do_not_come_are_a_message_within_the_time_out(tmp_path, rank):
    """Host 0 waits for the other; host 1 asks at an address where nobody is."""
    port = free_port()
    start = time.monotonic()
    job = Job(
        tmp_path,
        train_command("--health.host-timeout-seconds", "5"),
        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
        OMPI_MCA_orte_hnp_uri="1.0;tcp://127.0.0.1:1",
        OMPI_COMM_WORLD_SIZE="2",
        OMPI_COMM_WORLD_RANK=rank,
        OMPI_COMM_WORLD_LOCAL_RANK=rank,
    )
    assert job.wait() == PREEMPTED, job.remarks()
    assert "did not find each other in 5 s" in job.text()
    assert f"this is host {rank}; host 0 is to be reached at 127.0.0.1:{port}" in job.text()
    assert "Check failure" not in job.text()
    assert time.monotonic() - start < 60  # with the imports of a busy machine
