"""Time and peak memory of loading weights, against the size of the file and reading its bytes.

python -m experiments.perf.load ViT-B-32
python -m experiments.perf.load ViT-L-14

Random weights are written as safetensors and as a torch file; each is then loaded in a process of
its own, after one that only reads the file, so that both find it in the page cache.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from flaxclip.interop.open_clip.names import open_clip_table
from flaxclip.interop.open_clip.write_config import open_clip_json
from flaxclip.models.variants import VARIANTS
from tests.helpers.torch_files import Tensor, pickled

_CHILD = """
import sys, time
import flaxclip.api, jax
def peak():  # not getrusage's, which counts the parent's too
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
start = peak()
began = time.perf_counter()
if sys.argv[2] == "read":
    data = open(sys.argv[1], "rb").read()
else:
    model = flaxclip.load(sys.argv[1])
    jax.block_until_ready(model.variables)
seconds = time.perf_counter() - began
print(seconds, start, peak())
"""


def measure(path: Path, what: str) -> tuple[float, float, float]:
    """Seconds, and peak memory in bytes before and after, of a process that does `what`."""
    command = [sys.executable, "-c", _CHILD, str(path), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, before, after = map(float, done.stdout.split())
    return seconds, before, after


def write_torch(tensors: dict[str, np.ndarray], path: Path) -> None:
    """As `torch.save` writes a state dict, one storage after the other."""
    described = {}
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, array) in enumerate(tensors.items()):
            strides = tuple(step // array.itemsize for step in array.strides)
            described[name] = Tensor(
                str(number), "FloatStorage", array.size, 0, array.shape, strides
            )
            archive.writestr(f"archive/data/{number}", array.tobytes())
        archive.writestr("archive/data.pkl", pickled(described))


def main() -> None:
    """The command line."""
    spec = VARIANTS[sys.argv[1]]
    rng = np.random.default_rng(0)
    shapes = open_clip_table(spec.model).their_shapes()
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "open_clip_config.json").write_text(json.dumps(open_clip_json(spec)))
        safetensors.numpy.save_file(tensors, root / "model.safetensors")
        write_torch(tensors, root / "model.pt")
        for name in ("model.safetensors", "model.pt"):
            size = (root / name).stat().st_size
            read, *_ = measure(root / name, "read")
            seconds, before, peak = measure(root / name, "load")
            print(
                f"{sys.argv[1]} {name}: {size / 1e6:.0f} MB, loaded in {seconds:.2f} s "
                f"({seconds / read:.1f} times reading its bytes), peak {peak / size:.2f} times "
                f"its size, {(peak - before) / size:.2f} of them on top of the program's"
            )


if __name__ == "__main__":
    main()
