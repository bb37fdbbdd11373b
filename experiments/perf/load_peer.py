"""Loading B/32's safetensors: ours, beside safetensors.torch.load_file and open_clip's model.

pip install torch open_clip_torch
python -m experiments.perf.load_peer ViT-B-32

Random weights are written once; then both load them in turn, three times each, every time in a
process of its own, so that both find the file in the page cache. Imports do not count, for either.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.models.variants import VARIANTS

_PEAK = """
import sys, time
def peak():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
"""
_OURS = (
    _PEAK
    + """
import flaxclip.api, jax
jax.block_until_ready(jax.numpy.zeros(3))
start, began, busy = peak(), time.perf_counter(), time.process_time()
model = flaxclip.load(sys.argv[1])
jax.block_until_ready(model.variables)
print(time.perf_counter() - began, time.process_time() - busy, peak() - start)
"""
)
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
        runs = [(measure(_OURS, str(file)), measure(_THEIRS, str(file), name)) for _ in range(3)]
    for who, figures in zip(("flaxclip", "open_clip"), zip(*runs, strict=True), strict=True):
        seconds, busy, memory, *created = (
            statistics.median(column) for column in zip(*figures, strict=True)
        )
        made = f", after {created[0]:.2f} s for the model" if created else ""
        print(
            f"{name} {who}: {size / 1e6:.0f} MB in {seconds:.2f} s ({busy:.2f} s of the "
            f"processor){made}, peak "
            f"{memory / size:.2f} times its size on top of the program's"
        )
    alone, processor, made = (
        statistics.median(ratio(ours, theirs) for ours, theirs in runs)
        for ratio in (
            lambda ours, theirs: ours[0] / theirs[0],
            lambda ours, theirs: ours[1] / theirs[1],
            lambda ours, theirs: ours[0] / (theirs[0] + theirs[3]),
        )
    )
    print(
        f"ours takes {alone:.2f} of load_file and load_state_dict, {processor:.2f} of their "
        f"processor time, and {made:.2f} with the making of their model"
    )


if __name__ == "__main__":
    main()
