"""Exact recall of N images among N captions: peak memory and time, against the whole matrix.

    python experiments/perf/recall_memory.py --sizes 16384 32768 65536

Each size runs in a process of its own. Memory must grow with N, not with its square: what a million
by a million takes is what the last column says, times the ratio of the sizes.
"""

import dataclasses
import subprocess
import sys

import tyro

_CHILD = """
import sys, time
import numpy as np
from flaxclip.benchmark.methods.retrieval import count_rivals
count, width = int(sys.argv[1]), int(sys.argv[2])
def peak():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
rng = np.random.default_rng(0)
z = rng.normal(size=(2, count, width)).astype(np.float32)
z[1] += z[0]
z /= np.linalg.norm(z, axis=2, keepdims=True)
pairs = np.stack([np.arange(count)] * 2, axis=1)
count_rivals(z[0][:4096], z[1][:4096], pairs[:4096])
before, start = peak(), time.perf_counter()
rivals = count_rivals(z[0], z[1], pairs)
print((rivals < 1).mean(), time.perf_counter() - start, peak() - before)
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """Memory and time of exact recall."""

    sizes: tuple[int, ...] = (16_384, 32_768, 65_536)
    width: int = 64


def main(command: Command) -> None:
    """Print a row a size."""
    print("      N   recall@1   seconds   MiB   whole matrix, MiB   bytes a pair")
    for size in command.sizes:
        out = subprocess.run(
            [sys.executable, "-c", _CHILD, str(size), str(command.width)],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        recall, seconds, mib = map(float, out.split())
        whole = size * size * 4 / 2**20
        print(
            f"{size:7,}   {recall:8.4f}   {seconds:7.1f}   {mib:4.0f}   {whole:17.0f}   "
            f"{mib * 2**20 / size:12.0f}"
        )


if __name__ == "__main__":
    main(tyro.cli(Command, description=__doc__))
