"""A run of two hosts that is disturbed every minute, beside one that is left alone.

    python experiments/perf/soak.py --minutes 30 --out soak

Two processes of four virtual devices train a tiny model on tar shards, one record of which makes
the loss NaN. First a run that nobody touches, then the same run, again and again until the time is
up, with hosts killed (some during a save), stopped, frozen, the disk full, checkpoints damaged.
Prints, and writes into OUT: restarts, steps lost, memory, open files, what was left
behind, and whether parameters and every step's loss are those of the undisturbed run, bit for bit.
As root the workdir is a small tmpfs, which a full disk takes; otherwise that fault is left out.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from soak_faults import FAULTS, MARK, Life, fill_disk
from soak_run import SAVE_STEPS, write_shards

DISK_BYTES = 256 * 2**20


@dataclasses.dataclass
class Sampler:
    """Memory and open files of the hosts, every few seconds, by life."""

    samples: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def watch(self, life: Life, name: str) -> Iterator[None]:
        ended = threading.Event()

        def sample() -> None:
            while not ended.wait(2):
                for pid in life.pids():
                    with contextlib.suppress(OSError, IndexError):
                        status = Path(f"/proc/{pid}/status").read_text()
                        self.samples.append(
                            {
                                "life": name,
                                "step": life.steps_done(),
                                "age": time.monotonic() - life.started,
                                "rss_mib": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024,
                                "files": len(os.listdir(f"/proc/{pid}/fd")),
                                "training": "first step after" in life.text(),
                            }
                        )

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def params_and_losses(workdir: Path) -> tuple[bytes, dict[int, list[float]]]:
    """Bytes of the last checkpoint's parameters, and every loss that was reported for each step."""
    code = (
        "import sys, hashlib, jax, numpy as np\n"
        "from flaxclip.api import load\n"
        "leaves = jax.tree.leaves(load(sys.argv[1]).params)\n"
        "print(hashlib.sha256(b''.join(np.asarray(x).tobytes() for x in leaves)).hexdigest())"
    )
    found = subprocess.check_output([sys.executable, "-c", code, workdir], text=True)
    losses = collections.defaultdict(list)
    for line in (workdir / "metrics.jsonl").open():
        metrics = json.loads(line)
        losses[metrics["step"]].append(metrics["loss"])
    return found.split()[-1], dict(losses)


def train_undisturbed(out: Path, steps: int, sampler: Sampler) -> tuple[float, tuple]:
    folder = out / "undisturbed"
    folder.mkdir()
    life = Life(folder, 0, steps)
    with sampler.watch(life, "undisturbed"):
        life.wait_until(lambda: "first step after" in life.text(), 3600)
        Life.usual_start = time.monotonic() - life.started
        if life.end() != 0:
            sys.exit(f"the undisturbed run has failed: see {life.log}")
    return time.monotonic() - life.started, params_and_losses(folder / "run")


def train_disturbed(
    folder: Path,
    steps: int,
    rng: random.Random,
    deadline: float,
    sampler: Sampler,
    events: list[dict],
) -> None:
    """One whole run, with a fault in each of its lives until `deadline`."""
    order = [fault for fault, times in FAULTS for _ in range(times)]
    if not os.path.ismount(folder):
        order = [fault for fault in order if fault is not fill_disk]
    for number in range(1000):
        life = Life(folder, number, steps)
        with sampler.watch(life, f"{folder.name}-{number}"):
            note, fault = None, None
            if time.monotonic() < deadline:
                # Every kind once before any comes again.
                done = {event["fault"] for event in events}
                kinds = [kind for kind in order if kind.__name__ not in done] or order
                fault = rng.choice(kinds)
                note = fault(life, rng)
            code = life.end()
        reached, text = life.steps_done(), life.text()
        starts = re.findall(r"(?:start    at |going on from )step (\d+)", text)
        events.append(
            {
                "life": f"{folder.name}-{number}",
                "fault": fault.__name__ if fault and note else "none",
                "note": note,
                "start": int(starts[-1]) if starts else None,
                "reached": reached,
                "codes": (re.findall(r"exit codes (.*)", text) or ["?"])[-1],
                "seconds": time.monotonic() - life.started,
                "fell_back": re.findall(r"checkpoint of step (\d+) is damaged", text),
                "traceback": "Traceback" in text,
            }
        )
        print(json.dumps(events[-1]), flush=True)
        if code == 0:
            return
        if code in (2, 3):
            sys.exit(f"the run cannot go on: see {life.log}")
    raise AssertionError("a thousand lives")


def summarize(events: list[dict], samples: list[dict], rounds: list[dict]) -> dict:
    """The totals over all events, samples and rounds."""
    faults = collections.Counter(event["fault"] for event in events)
    # Not those that ended before they said where they start, or had nothing left to do.
    started = [event for event in events if event["start"] is not None]
    lost = [
        max(event["reached"] - following["start"], 0)
        for event, following in itertools.pairwise(started)
        if event["life"].split("-")[0] == following["life"].split("-")[0]
    ]
    by_life = collections.defaultdict(list)
    for sample in samples:
        if sample["training"]:
            by_life[sample["life"]].append(sample)

    def flat(lives: list[str], name: str) -> str:
        values = [max(s[name] for s in by_life[life]) for life in lives]
        third = max(len(values) // 3, 1)
        first, last = (statistics.median(part) for part in (values[:third], values[-third:]))
        return f"{first:.0f} in the first third of the lives, {last:.0f} in the last"

    disturbed = [life for life in by_life if life != "undisturbed"]
    alone = by_life["undisturbed"]
    fifth = max(len(alone) // 5, 1)
    result = {
        "rounds": rounds,
        "faults": dict(faults),
        "restarts": len(events) - len(rounds),
        "steps_lost": {"median": statistics.median(lost or [0]), "most": max(lost, default=0)},
        "steps_between_saves": SAVE_STEPS,
        "stops": [event["note"] for event in events if event["fault"] == "stop"],
        "tracebacks": sum(event["traceback"] for event in events),
        "fell_back": sum(bool(event["fell_back"]) for event in events),
    }
    for name in ("rss_mib", "files"):
        early, late = (
            statistics.median(s[name] for s in part)
            for part in (alone[fifth : 2 * fifth], alone[-fifth:])
        )
        result[f"{name}_undisturbed"] = f"{early:.0f} early, {late:.0f} at the end"
        result[f"{name}_disturbed"] = flat(disturbed, name)
    return result


def soak(out: Path, minutes: float, steps: int, seed: int) -> None:
    """Run it all."""
    out = out.resolve()
    (out / "shards").mkdir(parents=True)
    write_shards(out / "shards")
    rng, sampler = random.Random(seed), Sampler()
    shared_before = len(os.listdir("/dev/shm"))
    seconds, reference = train_undisturbed(out, steps, sampler)
    print(f"undisturbed: {steps} steps in {seconds:.0f} s", flush=True)
    events: list[dict] = []
    rounds: list[dict] = []
    deadline = time.monotonic() + 60 * minutes
    while time.monotonic() < deadline:
        folder = out / f"round{len(rounds)}"
        folder.mkdir()
        mounted = os.geteuid() == 0
        if mounted:
            options = f"size={DISK_BYTES}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        try:
            train_disturbed(folder, steps, rng, deadline, sampler, events)
            params, losses = params_and_losses(folder / "run")
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)
        rounds.append(
            {
                "same_parameters": params == reference[0],
                "same_losses": losses == reference[1],
                "every_step_once": {step: len(x) for step, x in losses.items()}
                == dict.fromkeys(range(1, steps + 1), 1),
            }
        )
        print(json.dumps(rounds[-1]), flush=True)
    found = {"rounds": rounds, "events": events, "samples": sampler.samples}
    (out / "events.json").write_text(json.dumps(found, indent=1))
    summary = summarize(events, sampler.samples, rounds)
    summary["left_in_dev_shm"] = len(os.listdir("/dev/shm")) - shared_before
    summary["left_processes"] = left_processes(out)
    (out / "summary.json").write_text(json.dumps(summary, indent=1))
    print(json.dumps(summary, indent=1))


def left_processes(out: Path) -> int:
    """Processes of the jobs, such as workers that read data, that outlive them."""
    mark, left = f"{MARK}={out}".encode(), 0
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            left += mark in environment.read_bytes().split(b"\0")
    return left


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, default=3000, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    soak(args.out, args.minutes, args.steps, args.seed)


if __name__ == "__main__":
    main()
