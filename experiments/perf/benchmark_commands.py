"""Whole commands side by side: `python -m flaxclip.benchmark` and `clip_benchmark eval`.

    python experiments/perf/benchmark_commands.py --peer-python peers/bin/python --images 500

`--peer-python` is the interpreter of an environment with clip-benchmark 1.6.2, which without its
old pins needs: open_clip_torch torch torchvision transformers pycocoevalcap pycocotools
scikit-learn pandas requests "numpy<2.4" webdataset==0.2.86 (1.0.2 finds no samples in one shard, by
four workers). Both measure a ViT-B/32 of random weights in float32 on the same photographs, weights
and batch size, from the start of the process to its end, and take turns. Before the first round
that counts, ours runs once to fill the compile cache; embeddings are never taken from disk. Peak
memory is that of the process and of those that it starts, together.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from benchmark_throughput import write_photographs

from flaxclip.errors import exit_on_input_error
from flaxclip.interop.export import export
from flaxclip.models.clip import init_variables
from flaxclip.models.variants import VARIANTS


@dataclasses.dataclass(frozen=True)
class Command:
    """Seconds and peak memory of whole commands."""

    peer_python: Path
    model: str = "ViT-B-32"
    images: int = 500
    batch_size: int = 64
    rounds: int = 3


def main(command: Command) -> None:
    """Print seconds, memory, scores and the ratio of seconds."""
    spec = VARIANTS[command.model]
    variables = jax.jit(init_variables, static_argnums=1)(jax.random.key(0), spec.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "wds_photographs", command.images)
        export(spec, variables, folder / "exported", "open_clip", overwrite=False)
        del variables
        run_ours(command, folder)
        seconds: dict[str, list[float]] = {"flaxclip": [], "CLIP_benchmark": []}
        for _ in range(command.rounds):
            for side, run in (("flaxclip", run_ours), ("CLIP_benchmark", run_theirs)):
                took, gib, score = run(command, folder)
                seconds[side].append(took)
                print(f"{side:15} {took:6.1f} s {gib:5.2f} GiB top-1 {score:.4f}", flush=True)
    ratio = np.median(seconds["CLIP_benchmark"]) / np.median(seconds["flaxclip"])
    print(f"CLIP_benchmark / flaxclip: {ratio:.2f}")


def run_ours(command: Command, folder: Path) -> tuple[float, float, float]:
    """Seconds, GiB and top-1."""
    for used in ("out", "embeddings"):
        shutil.rmtree(folder / used, ignore_errors=True)
    words = [
        sys.executable, "-m", "flaxclip.benchmark", "exported", "--tasks", "wds:wds_photographs",
        "--out", "out", "--cache", "embeddings", "--batch-size", str(command.batch_size),
    ]  # fmt: skip
    took, gib = timed(words, folder, {"XDG_CACHE_HOME": str(folder / "cache")})
    content = json.loads((folder / "out/photographs.json").read_text())
    return took, gib, content["scores"]["top1"]["value"]


def run_theirs(command: Command, folder: Path) -> tuple[float, float, float]:
    """Likewise."""
    words = [
        str(command.peer_python), "-m", "clip_benchmark.cli", "eval",
        "--model", f"local-dir:{folder / 'exported'}", "--pretrained", "",
        "--dataset", "wds/photographs", "--dataset_root", "wds_photographs", "--no_amp",
        "--task", "zeroshot_classification", "--batch_size", str(command.batch_size),
        "--output", "theirs.json",
    ]  # fmt: skip
    took, gib = timed(words, folder, {})
    content = json.loads((folder / "theirs.json").read_text())
    return took, gib, content["metrics"]["acc1"]


def timed(words: list[str], folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds of a command, and the most GiB that it and its children have at once."""
    log = folder / "log.txt"
    start, peak = time.perf_counter(), 0
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=folder, env=os.environ | environment,
                                   stdout=output, stderr=subprocess.STDOUT)  # fmt: skip
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.1):
            peak = max(peak, _proportional_kib(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    took = time.perf_counter() - start
    done.set()
    watcher.join()
    if code:
        sys.exit(f"failed with {code}: {' '.join(words)}\n{log.read_text()}")
    return took, peak / 2**20


def _proportional_kib(pid: int) -> int:
    """Memory of a process and its children, pages that several share counted once."""
    total = 0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss: +(\d+)", rollup, re.M)[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text().split()
            total += sum(_proportional_kib(int(child)) for child in children)
    except (OSError, TypeError):  # it has just ended
        pass
    return total


if __name__ == "__main__":
    with exit_on_input_error("benchmark_commands"):
        main(tyro.cli(Command, description=__doc__))
