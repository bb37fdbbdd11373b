"""Patches per second and core at native aspect ratio, against squares of as many patches.

    python experiments/perf/native_loader.py
    python experiments/perf/native_loader.py --whole

Tars of JPEGs of 1:4 to 4:1, cut from scikit-learn's photographs at random, are loaded by both sides
with as many workers, in turn, several times. Squares of 192, 256 and 384 pixels have 144, 256 and
576 patches of 16; images at native aspect ratio have at most these. Counted are real patches,
without padding; a core is a second of CPU time of all processes of a side. For each side the median
round counts, and the ratio is that of the medians.

By default both sides take training's random crops. Those of squares are 3:4 to 4:3, and leave out a
quarter of these images' pixels, which then need no resizing. With `--whole` both take all of an
image: squares are squashed, as SigLIP's are.

Last come the parts that differ, each timed alone in this process.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from data_loading import best_microseconds, measure

PATCH = 16
SHARDS, EXAMPLES = 4, 150  # in a shard
PIXELS = (120_000, 900_000)  # of an image
BUDGET = 2**14  # patches of a step
SIDES = ("square", "native")


def main() -> None:
    """The command line; `--side` is how it calls itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="no random crops")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--pixels", type=int, nargs="+", default=(192, 256, 384), help="a side")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run = real_patches(Path(arguments.folder), arguments)
        print(json.dumps(measure(run, arguments.seconds)))
        return
    with tempfile.TemporaryDirectory() as root:
        files = write_shards(Path(root))
        for pixels in arguments.pixels:
            compare(Path(root), pixels, arguments)
        for pixels in arguments.pixels:
            print_parts(files, pixels, arguments.whole)


def write_shards(folder: Path) -> list[bytes]:
    """Tars of parts of photographs at odd shapes; returns some of the files."""
    from sklearn.datasets import load_sample_images

    photographs = [PIL.Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(0)
    files = []
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(EXAMPLES):
                photograph = photographs[rng.integers(len(photographs))]
                aspect = 4 ** rng.uniform(-1, 1)
                area = np.exp(rng.uniform(*np.log(PIXELS)))
                size = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
                largest = min(photograph.width / size[0], photograph.height / size[1])
                part = [side * largest * rng.uniform(0.6, 1) for side in size]
                left = rng.uniform(0, photograph.width - part[0])
                top = rng.uniform(0, photograph.height - part[1])
                box = left, top, left + part[0], top + part[1]
                file = io.BytesIO()
                photograph.resize(size, box=box).save(file, "JPEG", quality=90)
                files.append(file.getvalue())
                caption = f"part {number} of a photograph, {size[0]} pixels wide".encode()
                for suffix, data in ((".jpg", files[-1]), (".txt", caption)):
                    member = tarfile.TarInfo(f"{shard}{number:04}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return files[:EXAMPLES]


def compare(folder: Path, pixels: int, arguments: argparse.Namespace) -> None:
    """Print the figures at one number of pixels."""
    rates: dict[str, list[dict]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side, rounds in rates.items():
            command = [sys.executable, __file__, "--side", side, "--folder", folder]
            command += ["--pixels", pixels, "--workers", arguments.workers]
            command += ["--seconds", arguments.seconds, *["--whole"] * arguments.whole]
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
            rounds.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\n{(pixels // PATCH) ** 2} patches ({pixels} x {pixels} pixels):")
    medians = {}
    for side, rounds in rates.items():
        spread = [rate["per_cpu_second"] for rate in rounds]
        medians[side] = statistics.median(spread)
        print(
            f"  {side:7} {medians[side]:9,.0f} patches per CPU second "
            f"({min(spread):,.0f} to {max(spread):,.0f})"
        )
    print(f"  native is {medians['native'] / medians['square']:.2f} times square", flush=True)


def real_patches(folder: Path, arguments: argparse.Namespace) -> Iterator[int]:
    """Load for ever; yields the patches of each batch, without padding."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import dataclasses

    from flaxclip.data.config import DataConfig
    from flaxclip.data.images.train_transform import AugmentConfig
    from flaxclip.data.loader import load_batches, open_source
    from flaxclip.data.sequence_lengths import schedule_lengths
    from flaxclip.malloc import keep_freed_memory
    from flaxclip.models.inputs import ImageTransform
    from flaxclip.models.variants import VARIANTS
    from flaxclip.sharding import MeshConfig, make_mesh

    keep_freed_memory()  # as `flaxclip.train` does

    spec, (pixels,) = VARIANTS["ViT-B-16"], arguments.pixels
    patches = (pixels // PATCH) ** 2
    vision = dataclasses.replace(spec.model.vision, image_size=pixels)
    how = ImageTransform("native" if arguments.side == "native" else "squash")
    model = dataclasses.replace(spec.model, vision=vision)
    spec, lengths = spec._replace(model=model, preprocess=how), None
    if arguments.side == "native":
        lengths = schedule_lengths([patches], BUDGET, 1, seed=0)
    augment = AugmentConfig(crop_scale=None) if arguments.whole else AugmentConfig()
    config = DataConfig(path=(str(folder / "*.tar"),), workers=arguments.workers, augment=augment)
    batches = load_batches(
        config,
        spec,
        open_source(config, pixels),
        make_mesh(MeshConfig()),
        batch_size=BUDGET // patches,
        seed=0,
        start_step=0,
        stop_step=10**6,
        lengths=lengths,
    )
    try:
        for loaded in batches:
            assert not loaded.replaced
            yield BUDGET // patches * patches if loaded.patches is None else loaded.patches
    finally:
        batches.close()


def print_parts(files: list[bytes], pixels: int, whole: bool) -> None:
    """Print the time of what differs: choosing a part, decoding and resizing it, writing it."""
    from flaxclip.data.images.eval_transform import NativeTransform, SizedTransform
    from flaxclip.data.images.native_size import native_grid, write_patches
    from flaxclip.data.images.train_transform import AugmentConfig, transform_for_training
    from flaxclip.models.inputs import ImageTransform

    patches = (pixels // PATCH) ** 2
    augment = AugmentConfig(crop_scale=None) if whole else AugmentConfig()
    square, other = np.zeros((2, pixels, pixels, 3), np.uint8)
    places = np.zeros((patches, 3 * PATCH**2), np.uint8)
    squash = SizedTransform(pixels, ImageTransform("squash"))
    native = NativeTransform(PATCH, patches, ImageTransform("native"))

    def render(number: int, transform: SizedTransform | NativeTransform) -> np.ndarray:
        rng = np.random.default_rng(number)
        return transform_for_training(files[number], transform, augment, rng)

    images = [render(number, native) for number in range(len(files))]
    parts = {
        "square, all but writing": lambda i: render(i, squash),
        "native, all but writing": lambda i: render(i, native),
        "its grid alone": lambda i: native_grid(300 + i, 700, PATCH, patches),
        "square, writing": lambda _: np.copyto(square, other),
        "native, writing": lambda i: write_patches(images[i], places),
    }
    print(f"\nmicroseconds an image of {patches} patches:")
    for name, part in parts.items():
        print(f"  {name:24} {best_microseconds(part, range(len(files))):8.1f}")


if __name__ == "__main__":
    main()
