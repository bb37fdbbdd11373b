"""Memory of all processes while data is being loaded: must not grow.

    pip install scikit-image scikit-learn matplotlib psutil
    python experiments/perf/data_memory.py --minutes 20 --plot memory.png

Photographs of 384 x 320 and 1024 x 768, loaded as for training by as many workers as cores, as fast
as they can; every ten seconds the proportional set size (shared pages counted once) of this process
and of its workers is noted. A slope is fitted to the second half of the samples.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, str(Path(__file__).parent))
    from data_loading import SIZES, write_shards

    from flaxclip.data.config import DataConfig
    from flaxclip.data.loader import load_batches, open_source
    from flaxclip.models.variants import VARIANTS
    from flaxclip.sharding import MeshConfig, make_mesh

    with tempfile.TemporaryDirectory() as root:
        for width, height in SIZES:
            write_shards(Path(root, f"{width}x{height}"), width, height)
        config = DataConfig(path=(f"{root}/*/*.tar",), workers=arguments.workers)
        batches = load_batches(
            config,
            VARIANTS["ViT-B-32"],
            open_source(config, 224),
            make_mesh(MeshConfig()),
            batch_size=64,
            seed=0,
            start_step=0,
            stop_step=10**6,
        )
        samples = sample(batches, arguments.minutes * 60)
        batches.close()
    report(samples, arguments.plot)


def sample(batches, seconds: float) -> np.ndarray:
    """[samples, 4]: seconds, images so far, MB of this process and of all its workers."""
    samples, images, start = [], 0, time.monotonic()
    print(f"{'seconds':>8} {'images':>10} {'trainer MB':>11} {'workers MB':>11}")
    while (now := time.monotonic() - start) < seconds:
        images += len(next(batches).batch.images)
        if now >= 10 * len(samples):
            samples.append((now, images, *megabytes()))
            print("{:8.0f} {:10,d} {:11.0f} {:11.0f}".format(*samples[-1]), flush=True)
    return np.array(samples)


def megabytes() -> tuple[float, float]:
    """Proportional set size of this process, and of its children together."""
    import psutil

    process = psutil.Process()
    workers = sum(child.memory_full_info().pss for child in process.children())
    return process.memory_full_info().pss / 1e6, workers / 1e6


def report(samples: np.ndarray, plot: Path | None) -> None:
    """Print the growth, and draw the samples."""
    half = samples[len(samples) // 2 :]
    for name, column in (("trainer", 2), ("workers", 3)):
        slope = np.polyfit(half[:, 0] / 60, half[:, column], 1)[0]
        print(
            f"{name}: {half[:, column].min():.0f} to {half[:, column].max():.0f} MB in the second "
            f"half, {slope:+.2f} MB a minute"
        )
    print(f"{samples[-1, 1]:,.0f} images in {samples[-1, 0] / 60:.1f} minutes")
    if plot:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(8, 4))
        for name, column in (("training process", 2), ("workers together", 3)):
            axes.plot(samples[:, 0] / 60, samples[:, column], label=name)
        axes.set(xlabel="minutes", ylabel="MB (proportional set size)", ylim=0)
        axes.legend()
        plt.savefig(plot, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
