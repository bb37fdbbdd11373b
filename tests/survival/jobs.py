"""Jobs of `flaxclip.train` as a user starts them, for the tests to do something to."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

from flaxclip.checkpoint.layout import saved_steps
from tests.helpers.tiny_run import EXPERIMENT
from tests.helpers.xla_flags import ONE_DEVICE

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds; only for what hangs, since everything is waited for by its signs


class Job:
    """A command that trains the tiny run in FOLDER/run, by FOLDER/tiny.py, and what it has printed
    so far, unless it prints to another file, `output`.
    """

    started: ClassVar[list["Job"]] = []

    def __init__(
        self,
        folder: Path,
        command: list,
        output: int | None = None,
        experiment: str = EXPERIMENT,
        **environment: str,
    ):
        self.folder, self.log = folder, folder / "log"
        (folder / "tiny.py").write_text(experiment)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ONE_DEVICE} | environment,
                stdout=log if output is None else output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(self)

    def wait(self) -> int:
        return self.process.wait(timeout=PATIENCE)

    def kill(self) -> None:
        """All of its processes, whatever a test that failed has left of them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def text(self) -> str:
        return self.log.read_text()

    def remarks(self) -> str:
        """What it has printed beside reports of steps, connections that were made and addresses of
        machine code: short enough for the message of a test that fails.
        """
        expected = re.compile(r"step +\d+/\d+ |\[Gloo\] Rank|    @ +0x")
        return "\n".join(line for line in self.text().splitlines() if not expected.search(line))

    def wait_until(self, condition) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.remarks()
            assert time.monotonic() < deadline, self.remarks()
            time.sleep(0.1)

    def wait_for_text(self, text: str, times: int = 1) -> None:
        self.wait_until(lambda: self.text().count(text) >= times)

    def wait_for_checkpoint(self, step: int) -> None:
        self.wait_until(lambda: max(saved_steps(self.folder / "run"), default=0) >= step)

    def wait_for_host_held(self, start: int) -> None:
        """Until a host waits, in this start of the run, as `held_steps` says."""
        self.wait_until((self.folder / f"held-{start}").exists)

    def host(self, rank: int) -> int:
        """Process that this host of a cluster is now."""
        return int(re.findall(rf"host {rank} is process (\d+)", self.text())[-1])


def train_command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "flaxclip.train", "tiny.py", "--workdir", "run", *flags]


def cluster_command(
    *flags: str, processes: int = 2, devices: int = 2, restarts: int = 0, patience: int = 150
) -> list:
    launcher = [sys.executable, ROOT / "launch" / "local_cluster.py"]
    size = ["--processes", str(processes), "--devices-per-process", str(devices)]
    more = ["--restarts", str(restarts), "--patience", str(patience)]
    return [*launcher, *size, *more, "--", *train_command(*flags)]


def two_hosts(script: Path, text: str, *args: str) -> subprocess.CompletedProcess[str]:
    """The program `text`, as `script`, in two processes that can join to one job; its output."""
    script.write_text(text)
    launcher = [sys.executable, ROOT / "launch" / "local_cluster.py", "--patience", "150"]
    command = [*launcher, "--devices-per-process", "1", "--", sys.executable, script, *args]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
