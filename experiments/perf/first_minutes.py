"""The first minutes of two builds: from return to the first step, and to the end of a run.

    git worktree add ../before ba0bdcf
    for build in before main; do
      python3.13 -m venv $build-env && $build-env/bin/pip install -e ../$build
    done
    python experiments/perf/first_minutes.py before=before-env/bin/python main=main-env/bin/python

Each side runs `python -m flaxclip.train` on the built-in data twice, with an empty cache of
compiled programs and with the one that this leaves; the sides take turns, and medians of the rounds
are compared with those of the first side. Nothing else should run. Seconds count from the start of
the process; images a second are those of the run's second half.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FIGURES = ("first line", "first step", "done", "images/s")


def run(python: str, steps: int, folder: Path, workdir: str) -> dict[str, float]:
    """Figures of one run, with the cache of compiled programs that is in `folder`."""
    command = [
        python, "-m", "flaxclip.train", "--steps", str(steps), "--log-every", str(steps // 4),
        "--optim.warmup-steps", str(steps // 4), "--workdir", str(folder / workdir),
    ]  # fmt: skip
    began, seconds, rates, lines = time.perf_counter(), dict[str, float](), [], []
    environment = os.environ | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, env=environment, cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter() - began
            lines.append(line)
            seconds.setdefault("first line", now)
            if line.startswith("first step after"):
                seconds["first step"] = now
            if rate := re.search(r"([\d,]+) img/s", line):
                rates.append(float(rate[1].replace(",", "")))
    seconds["done"] = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"{python} failed:\n{''.join(lines)}")
    return seconds | {"images/s": statistics.mean(rates[-2:])}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", nargs="+", metavar="NAME=PYTHON")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sides = {name: os.path.abspath(python) for name, python in (s.split("=") for s in args.sides)}
    measured: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for name, python in sides.items():
            with tempfile.TemporaryDirectory() as folder:
                for cache in ("empty", "warm"):
                    figures = run(python, args.steps, Path(folder), cache)
                    measured.setdefault((cache, name), []).append(figures)
    first = next(iter(sides))
    for cache in ("empty", "warm"):
        for figure in FIGURES:
            medians = {
                name: statistics.median(figures[figure] for figures in measured[cache, name])
                for name in sides
            }
            shown = ", ".join(
                f"{name} {median:.1f} ({median / medians[first]:.2f}x)"
                for name, median in medians.items()
            )
            print(f"{cache} cache, {figure}: {shown}")


if __name__ == "__main__":
    main()
