"""Whole commands side by side: `python -m flaxclip.benchmark` and `clip_benchmark eval`.

    python experiments/perf/benchmark_commands.py --peer-python peers/bin/python --images 500

`--peer-python` is the interpreter of an environment with clip-benchmark 1.6.2, which without its
old pins needs: open_clip_torch torch torchvision transformers pycocoevalcap pycocotools
scikit-learn pandas requests "numpy<2.4" webdataset==0.2.86 (1.0.2 finds no samples in one shard, by
four workers). Both measure a ViT-B/32 of random weights in float32 on the same photographs, weights
and batch size, from the start of the process to its end, and take turns. Before the first round,
ours fills the compile cache from a few photographs; embeddings are never taken from disk.

After the rounds that are timed, each runs once more for its peak memory: that of the process and of
those that it starts, together. To add that up takes half of a core where there are many processes,
which is why those runs are not timed. With `--rounds 0`, there are no others.
"""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
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
    classes: int = 10
    image_size: int | None = None
    """Of the model, in pixels, where it is not its own: fewer patches, for what is measured of
    memory."""
    batch_size: int = 64
    rounds: int = 3
    memory: bool = True


def main(command: Command) -> None:
    """Print seconds, scores, memory and the ratios."""
    spec = VARIANTS[command.model]
    if command.image_size:
        vision = dataclasses.replace(spec.model.vision, image_size=command.image_size)
        spec = spec._replace(model=dataclasses.replace(spec.model, vision=vision))
    variables = jax.jit(init_variables, static_argnums=1)(jax.random.key(0), spec.model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(spec, variables, folder / "exported", "open_clip", overwrite=False)
        del variables
        # Of the shapes that all of them have: whole batches, and a last one.
        few = command.batch_size + command.images % command.batch_size
        write_photographs(folder / "wds_few", few, command.classes)
        run(ours("few", command), folder, "few")
        write_photographs(folder / "wds_photographs", command.images, command.classes)
        sides = {
            "flaxclip": ours("photographs", command),
            "CLIP_benchmark": theirs("photographs", command, folder),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(command.rounds):
            for side, words in sides.items():
                start = time.perf_counter()
                top1 = run(words, folder, "photographs")
                seconds[side].append(time.perf_counter() - start)
                print(f"{side:15} {seconds[side][-1]:6.1f} s top-1 {top1:.4f}", flush=True)
        if command.rounds:
            ratios = np.divide(seconds["CLIP_benchmark"], seconds["flaxclip"])
            print(f"CLIP_benchmark / flaxclip: {np.median(ratios):.2f} of the seconds")
        if command.memory:
            gib = {}
            for side, words in sides.items():
                watch = PeakMemory()
                run(words, folder, "photographs", watch)
                gib[side] = watch.gib
                print(f"{side:15} {watch.gib:6.2f} GiB", flush=True)
            print(f"flaxclip / CLIP_benchmark: {gib['flaxclip'] / gib['CLIP_benchmark']:.2f} of it")


def ours(dataset: str, command: Command) -> list[str]:
    """Our command for one of the sets."""
    return [
        sys.executable, "-m", "flaxclip.benchmark", "exported", "--tasks", f"wds:wds_{dataset}",
        "--out", "out", "--cache", "embeddings", "--batch-size", str(command.batch_size),
    ]  # fmt: skip


def theirs(dataset: str, command: Command, folder: Path) -> list[str]:
    """CLIP_benchmark's."""
    return [
        str(command.peer_python.absolute()), "-m", "clip_benchmark.cli", "eval",
        "--model", f"local-dir:{folder / 'exported'}", "--pretrained", "",
        "--dataset", f"wds/{dataset}", "--dataset_root", f"wds_{dataset}", "--no_amp",
        "--task", "zeroshot_classification", "--batch_size", str(command.batch_size),
        "--output", "theirs.json",
    ]  # fmt: skip


def run(
    words: list[str], folder: Path, dataset: str, watch: Callable[[int], object] | None = None
) -> float:
    """Run a command, with nothing kept but compiled programs, and return its top-1.

    `watch` is called with the process again and again.
    """
    for used in ("out", "embeddings"):
        shutil.rmtree(folder / used, ignore_errors=True)
    (folder / "theirs.json").unlink(missing_ok=True)
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=folder, env=environment,
                                   stdout=output, stderr=subprocess.STDOUT)  # fmt: skip
        while watch and process.poll() is None:
            watch(process.pid)
            time.sleep(0.1)
    if code := process.wait():
        sys.exit(f"failed with {code}: {' '.join(words)}\n{log.read_text()}")
    if (folder / "theirs.json").exists():
        return json.loads((folder / "theirs.json").read_text())["metrics"]["acc1"]
    return json.loads((folder / f"out/{dataset}.json").read_text())["scores"]["top1"]["value"]


class PeakMemory:
    """The most GiB that a process and its children have had at once."""

    def __init__(self):
        self.gib = 0.0

    def __call__(self, pid: int) -> None:
        self.gib = max(self.gib, _proportional_kib(pid) / 2**20)


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
