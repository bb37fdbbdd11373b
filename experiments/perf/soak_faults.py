"""The faults that `soak.py` inflicts on a job of two hosts."""

import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from soak_run import BATCH_SIZE

HOSTS = 2
MARK = "FLAXCLIP_SOAK"
"""In the environment of every process of a job: what is left of them can be found by it."""


class Life:
    """The job from one start to its end."""

    usual_start = 60.0
    """Seconds that it usually takes to the first step."""

    def __init__(self, folder: Path, number: int, steps: int):
        self.workdir, self.log = folder / "run", folder.parent / "logs" / f"{folder.name}-{number}"
        self.log.parent.mkdir(exist_ok=True)
        here = Path(__file__).parent
        run, launcher = here / "soak_run.py", here.parents[1] / "launch" / "local_cluster.py"
        size = ["--processes", str(HOSTS), "--devices-per-process", "4", "--patience", "60"]
        flags = ["--workdir", self.workdir, "--steps", str(steps)]
        flags += ["--data.path", f"{folder.parent}/shards/*.tar"]
        self._first_step = self.steps_done()
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, launcher, *size, "--", sys.executable, run, run, *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {MARK: str(folder.parent)},
            )
        self.started = time.monotonic()

    def alive(self) -> bool:
        return self.process.poll() is None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def pids(self) -> list[int]:
        return [int(pid) for pid in re.findall(r"host \d+ is process (\d+)", self.text())]

    def steps_done(self) -> int:
        """The last step that the run has reported."""
        return max((line["step"] for line in self._last_reports()), default=0)

    def step_seconds(self) -> float:
        """Seconds a step takes: the median of the last ones that were reported."""
        return statistics.median(
            BATCH_SIZE / line["images_per_second"] for line in self._last_reports()
        )

    def _last_reports(self) -> list[dict]:
        try:
            with (self.workdir / "metrics.jsonl").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(file.tell() - 8192, 0))
                return [json.loads(line) for line in file.readlines()[-9:-1]]
        except (OSError, ValueError):
            return []

    def wait_until(
        self, condition: Callable[[], object], seconds: float = 300, poll: float = 0.1
    ) -> bool:
        """Wait until `condition` is true; False if the time is over or the job has ended before."""
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(poll)
        return False

    def until_training(self) -> bool:
        return self.wait_until(lambda: "first step after" in self.text()) and self.wait_until(
            lambda: self.steps_done() != self._first_step
        )

    def kill(self, ranks: list[int]) -> None:
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(self.pids()[rank], signal.SIGKILL)

    def end(self) -> int:
        return self.process.wait()


def some_hosts(rng: random.Random) -> list[int]:
    return rng.choice([[0], [1], [0, 1]])


# A fault is done to a life, and returns what is to be noted of it, or None if the job has ended
# before it could be.


def kill_at_any_moment(life: Life, rng: random.Random) -> str | None:
    hosts, seconds = some_hosts(rng), rng.uniform(0, 2 * life.usual_start)
    life.wait_until(lambda: False, seconds)
    life.wait_until(life.pids)
    if not life.alive():
        return None
    life.kill(hosts)
    return f"SIGKILL of {hosts} after {seconds:.1f} s"


def kill_during_save(life: Life, rng: random.Random) -> str | None:
    hosts, later = some_hosts(rng), rng.uniform(0, 0.2)
    if not life.until_training():
        return None
    unfinished = lambda: list((life.workdir / "checkpoints").glob("*tmp*"))  # noqa: E731
    life.wait_until(lambda: not unfinished())
    if not life.wait_until(unfinished, poll=0.01):
        return None
    time.sleep(later)
    during = bool(unfinished())
    life.kill(hosts)
    return f"SIGKILL of {hosts} {later:.2f} s into a save{'' if during else ', just finished'}"


def stop(life: Life, rng: random.Random) -> str | None:
    if not life.until_training() or life.wait_until(lambda: False, rng.uniform(0, 8)):
        return None
    host = rng.randrange(HOSTS)
    step, at = life.steps_done(), time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        os.kill(life.pids()[host], signal.SIGTERM)
    code = life.end()
    seconds, a_step = time.monotonic() - at, life.step_seconds()
    saved = ", ".join(set(re.findall(r"stopped after step (\d+), which is saved", life.text())))
    return (
        f"SIGTERM of host {host} at step {step}, {a_step:.2f} s each: "
        f"out in {seconds:.1f} s with {code}, step {saved} saved"
    )


def freeze(life: Life, rng: random.Random) -> str | None:
    if not life.until_training():
        return None
    host, at = rng.randrange(HOSTS), time.monotonic()
    other = life.pids()[1 - host]
    os.kill(life.pids()[host], signal.SIGSTOP)
    gone = life.wait_until(lambda: not Path(f"/proc/{other}").exists() or _zombie(other))
    seconds = time.monotonic() - at
    life.kill([host])
    life.end()
    named = "named" if re.search(rf"host {host}\b.*(frozen|silent)", life.text()) else "NOT NAMED"
    return f"SIGSTOP of host {host}: the other out in {seconds:.0f} s ({gone}), {named}"


def fill_disk(life: Life, rng: random.Random) -> str | None:
    del rng
    if not life.until_training():
        return None
    ballast = life.workdir.parent / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    noticed = life.wait_until(lambda: "failed:" in life.text(), 120)
    ballast.unlink()
    before = _newest(life.workdir)
    again = life.wait_until(lambda: _newest(life.workdir) > before, 180)
    life.kill([0, 1])
    return f"disk full: save failed and said so ({noticed}), saved when there was room ({again})"


def damage_checkpoint(life: Life, rng: random.Random) -> str | None:
    if not life.until_training():
        return None
    life.kill([0, 1])
    life.end()
    steps = [path for path in (life.workdir / "checkpoints").iterdir() if path.name.isdecimal()]
    if len(steps) < 2:  # a run whose only checkpoint is damaged rightly refuses to start over
        return "SIGKILL of both, with a single checkpoint, which is left alone"
    newest = max(steps, key=lambda path: int(path.name))
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    file = rng.choice(files[:1] + [max(files, key=lambda path: path.stat().st_size)] * 3)
    content = bytearray(file.read_bytes())
    how = rng.choice(["truncated", "bit flipped"])
    if how == "truncated":
        del content[len(content) // 2 :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return f"{how}: {file.relative_to(life.workdir)} ({len(steps)} checkpoints)"


FAULTS: list[tuple[Callable[[Life, random.Random], str | None], int]] = [
    (kill_at_any_moment, 10),
    (kill_during_save, 6),
    (stop, 4),
    (damage_checkpoint, 3),
    (freeze, 1),
    (fill_disk, 1),
]


def _zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


def _newest(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    return max((int(p.name) for p in folder.iterdir() if p.name.isdecimal()), default=0)
