"""Loading B/32's safetensors: ours, beside safetensors.torch.load_file and open_clip's model.

pip install torch open_clip_torch
python -m experiments.perf.load_peer ViT-B-32

Random weights are written once; then both load them in turn, five times each, every time in a
process of its own, so that both find the file in the page cache. Imports do not count, for either.

Their numbers go to memory that the making of their model has touched, ours to new memory. What that
costs is the machine's affair: a guest that reports free pages to its host pays for each of them
once more. So ours loads twice, the second time after as much memory was touched and given back; and
a process that loads nothing touches as much, reads the file into it, and copies it with its rows
and columns exchanged, as wide as B/32's MLP.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.models.variants import VARIANTS

ROUNDS = 5

_PEAK = """
import sys, time
def peak():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
"""
_OURS = (
    _PEAK
    + """
import flaxclip.api, jax, numpy
jax.block_until_ready(jax.numpy.zeros(3))
held = numpy.empty(int(sys.argv[2]), numpy.uint8)
held[::4096] = 1
del held
start, began, busy = peak(), time.perf_counter(), time.process_time()
model = flaxclip.load(sys.argv[1])
jax.block_until_ready(model.variables)
print(time.perf_counter() - began, time.process_time() - busy, peak() - start)
"""
)
_FLOOR = """
import os, sys, time, numpy
from flaxclip.interop.relayout import copy_transposed
def timed(what):
    began, busy = time.perf_counter(), time.process_time()
    what()
    print(time.perf_counter() - began, time.process_time() - busy, end=" ")
size = os.path.getsize(sys.argv[1])
memory = numpy.empty(size, numpy.uint8)
def touch():
    memory[::4096] = 1
def read():
    with open(sys.argv[1], "rb", buffering=0) as file:
        file.readinto(memory)
timed(touch)
timed(read)
matrix = 3072 * 768 * 4
source = memory[: size // matrix * matrix].view(numpy.float32).reshape(-1, 3072, 768)
target = numpy.ones((768, 3072), numpy.float32)
def transpose():
    for layer in source:
        copy_transposed(target.T, layer)
timed(transpose)
print()
"""
_THEIRS = (
    _PEAK
    + """
import open_clip, safetensors.torch, torch
start, began = peak(), time.perf_counter()
model = open_clip.create_model(sys.argv[2], pretrained=None)
created, busy = time.perf_counter() - began, time.process_time()
model.load_state_dict(safetensors.torch.load_file(sys.argv[1]))
loaded = time.perf_counter() - began - created
print(loaded, time.process_time() - busy, peak() - start, created)
"""
)


def measure(code: str, *arguments: str) -> list[float]:
    """The figures that `code` prints in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.splitlines()[-1].split()]


def medians(rows: Iterable[Sequence[float]]) -> list[float]:
    """Of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def main() -> None:
    """The command line."""
    name = sys.argv[1]
    spec = VARIANTS[name]
    rng = np.random.default_rng(0)
    shapes = open_clip_table(spec.model).their_shapes()
    tensors = {n: rng.standard_normal(shape, np.float32) for n, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "open_clip_model.safetensors"
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(open_clip_json(spec)))
        safetensors.numpy.save_file(tensors, file)
        del tensors
        size = file.stat().st_size
        rounds = [
            {
                "flaxclip, new memory": measure(_OURS, str(file), "0"),
                "flaxclip, touched memory": measure(_OURS, str(file), str(size * 5 // 4)),
                "open_clip": measure(_THEIRS, str(file), name),
                "floor": measure(_FLOOR, str(file)),
            }
            for _ in range(ROUNDS)
        ]
    for who in ("flaxclip, new memory", "flaxclip, touched memory", "open_clip"):
        seconds, busy, memory, *created = medians(figures[who] for figures in rounds)
        made = f", after {created[0]:.2f} s for the model" if created else ""
        # Where memory was touched before, the peak is of that.
        peak = "" if "touched" in who else f", peak {memory / size:.2f} times its size on top of "
        print(
            f"{name} {who}: {size / 1e6:.0f} MB in {seconds:.2f} s ({busy:.2f} s of the "
            f"processor){made}{peak}{'the program' if peak else ''}"
        )
    floor = medians(figures["floor"] for figures in rounds)
    parts = zip(("touching", "reading", "transposing"), floor[::2], floor[1::2], strict=True)
    print(
        "as much memory: "
        + ", ".join(f"{what} {wall:.2f} s ({busy:.2f} s)" for what, wall, busy in parts)
    )
    for who in ("flaxclip, new memory", "flaxclip, touched memory"):
        alone, processor, with_model = medians(
            (
                ours[0] / theirs[0],
                ours[1] / theirs[1],
                ours[0] / (theirs[0] + theirs[3]),
            )
            for ours, theirs in ((figures[who], figures["open_clip"]) for figures in rounds)
        )
        print(
            f"{who}: {alone:.2f} of load_file and load_state_dict, {processor:.2f} of their "
            f"processor time, and {with_model:.2f} with the making of their model"
        )


if __name__ == "__main__":
    main()
