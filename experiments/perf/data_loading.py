"""Images per second and core at 224 pixels, against open_clip's own pipeline and decoding alone.

    pip install scikit-image scikit-learn
    python experiments/perf/data_loading.py --open-clip /another/environment/bin/python

Tars of photographs from these two packages, as JPEG at 384 x 320 and 1024 x 768, are loaded by both
sides with as many workers, one side after the other, several times; a core is a second of CPU time
of all processes of a side. open_clip is what the other environment has of `open_clip_torch`,
`pandas` and `webdataset<=0.2.86`; without `--open-clip` its side is left out. Decoding alone is
libjpeg-turbo at the scale that training needs, in as many processes.
"""

import argparse
import importlib.util
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

SIZES = ((384, 320), (1024, 768))
CAPTION = "a photograph of the kind that people put on the web, number {}"
SHARDS, RECORDS = 4, 200  # in a shard
# Each shard under so many names, since nobody trains on 800 records: Grain permutes at least 65,536
# numbers and passes over those beyond the last record, eighty of them for each of so few.
LINKS = 25
BATCH = 64


def main() -> None:
    """The command line; `--side` is how it calls itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--open-clip", help="Python of an environment that has open_clip_torch")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run = SIDES[arguments.side](Path(arguments.folder), arguments.workers)
        print(json.dumps(measure(run, arguments.seconds)))
        return
    with tempfile.TemporaryDirectory() as root:
        for width, height in SIZES:
            folder = Path(root, f"{width}x{height}")
            write_shards(folder, width, height)
            compare(folder, arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    """Print one size's figures."""
    sides = {"decoding alone": sys.executable, "flaxclip": sys.executable}
    if arguments.open_clip:
        sides["open_clip"] = arguments.open_clip
    rates: dict[str, list[dict]] = {side: [] for side in sides}
    for _ in range(arguments.rounds):
        for side, python in sides.items():
            command = [python, __file__, "--side", side, "--folder", folder]
            command += ["--workers", arguments.workers, "--seconds", arguments.seconds]
            done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True)
            rates[side].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\n{folder.name}, {arguments.workers} workers, medians of {arguments.rounds}:")
    per_core = {}
    for side, rounds in rates.items():
        per_core[side] = statistics.median(rate["per_cpu_second"] for rate in rounds)
        per_second = statistics.median(rate["per_second"] for rate in rounds)
        spread = [rate["per_cpu_second"] for rate in rounds]
        print(
            f"  {side:15} {per_core[side]:6.0f} images per CPU second "
            f"({min(spread):.0f} to {max(spread):.0f}), {per_second:6.0f} per second"
        )
    ours = per_core["flaxclip"]
    print(f"  flaxclip is at {ours / per_core['decoding alone']:.0%} of decoding alone")
    if "open_clip" in per_core:
        print(f"  flaxclip is {ours / per_core['open_clip']:.1f} times open_clip")
    print_fidelity(folder)
    print_profile(folder)


def measure(run, seconds: float) -> dict[str, float]:
    """Rates of an iterator over numbers of images, once it is running steadily."""
    for _ in range(12):
        next(run)
    images, start, cpu = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - start < seconds:
        images += next(run)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - start
    run.close()
    return {"per_cpu_second": images / cpu, "per_second": images / wall}


def cpu_seconds() -> float:
    """CPU time, user and system, of this process and its children so far (Linux)."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)], ticks[int(entry.name)] = int(fields[1]), fields[11:15]
    ours = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(int(x) for process in ours for x in ticks[process]) / os.sysconf("SC_CLK_TCK")


def flaxclip_side(folder: Path, workers: int):
    """Everything that the training loop does to get a batch onto the device."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from flaxclip.data.config import DataConfig
    from flaxclip.data.loader import load_batches, open_source
    from flaxclip.malloc import keep_freed_memory
    from flaxclip.models.variants import VARIANTS
    from flaxclip.sharding import MeshConfig, make_mesh

    keep_freed_memory()  # as `flaxclip.train` does

    config = DataConfig(path=(str(folder / "*.tar"),), workers=workers)
    source = open_source(config, 224)
    batches = load_batches(
        config,
        VARIANTS["ViT-B-32"],
        source,
        make_mesh(MeshConfig()),
        batch_size=BATCH,
        seed=0,
        start_step=0,
        stop_step=10**6,
    )
    try:
        for loaded in batches:
            assert not loaded.replaced
            yield BATCH
    finally:
        batches.close()


def open_clip_side(folder: Path, workers: int):
    """Its training pipeline, as its own command line builds it, up to batches on the host."""
    import open_clip
    from open_clip_train.data import get_wds_dataset

    arguments = argparse.Namespace(
        train_data=str(folder / f"{{0..{LINKS * SHARDS - 1}}}.tar"),
        train_data_upsampling_factors=None,
        train_num_samples=10**7,
        dataset_resampled=True,
        seed=0,
        batch_size=BATCH,
        workers=workers,
        world_size=1,
    )
    transform = open_clip.image_transform(224, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    data = get_wds_dataset(arguments, transform, is_train=True, tokenizer=tokenizer)
    for images, _ in data.dataloader:
        yield len(images)


def decoding_side(folder: Path, workers: int):
    """libjpeg-turbo at the scale that the training crop needs, in `workers` processes."""
    script = (
        "import sys, json, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from data_loading import decode_for_ever\n"
        "decode_for_ever(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", script, str(folder)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(workers)]
    try:
        for process in itertools.cycle(processes):
            yield int(process.stdout.readline())
    finally:
        for process in processes:
            process.kill()


def decode_for_ever(folder: str) -> None:
    """Print how many images have been decoded, each time it is so many more."""
    import simplejpeg

    files = read_files(Path(folder))
    width, height = map(int, Path(folder).name.split("x"))
    scale = decoded_scale(files[0])
    least = {"min_width": int(width * scale), "min_height": int(height * scale)}
    while True:
        for file in files[:BATCH]:
            simplejpeg.decode_jpeg(file, **least)
        print(BATCH, flush=True)


def decoded_scale(file: bytes) -> float:
    """At which training decodes it, for most crops."""
    from flaxclip.data.images.decode import UprightImage
    from flaxclip.data.images.train_transform import MARGIN

    image = UprightImage(file)
    return image.decode(MARGIN * 224 / (0.95 * image.height))[1]


SIDES = {
    "flaxclip": flaxclip_side,
    "open_clip": open_clip_side,
    "decoding alone": decoding_side,
}


def write_shards(folder: Path, width: int, height: int) -> None:
    """Parts of photographs at the scale at which they fill the frame, as JPEG of quality 90."""
    import numpy as np
    import PIL.Image

    photographs = load_photographs()
    rng = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(RECORDS):
                image = photographs[number % len(photographs)]
                scale = max(width / image.width, height / image.height)
                covered = width / scale * 0.95, height / scale * 0.95
                left, top = (
                    rng.uniform(0, whole - part)
                    for whole, part in zip(image.size, covered, strict=True)
                )
                box = left, top, left + covered[0], top + covered[1]
                image = image.resize((width, height), PIL.Image.Resampling.LANCZOS, box)
                file = io.BytesIO()
                image.save(file, "JPEG", quality=90)
                caption = CAPTION.format(number).encode()
                for suffix, data in ((".jpg", file.getvalue()), (".txt", caption)):
                    member = tarfile.TarInfo(f"{shard}{number:05}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        for link in range(1, LINKS):
            os.link(folder / f"{shard}.tar", folder / f"{link * SHARDS + shard}.tar")


def load_photographs():
    """Colour photographs, not charts or textures, of scikit-image and scikit-learn."""
    import PIL.Image

    names = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket", "retina")
    names += ("hubble_deep_field", "ihc", "china", "flower")
    paths = [
        path
        for package, folder in (("skimage", "data"), ("sklearn", "datasets/images"))
        if (spec := importlib.util.find_spec(package))
        for path in Path(spec.origin).parent.joinpath(folder).iterdir()
    ]
    found = [PIL.Image.open(path).convert("RGB") for path in sorted(paths) if path.stem in names]
    if len(found) < len(names):
        sys.exit("photographs are missing: pip install scikit-image scikit-learn")
    return found


def read_files(folder: Path) -> list[bytes]:
    """The images of the first shard."""
    with tarfile.open(folder / "0.tar") as tar:
        return [tar.extractfile(x).read() for x in tar if x.name.endswith(".jpg")]


def print_fidelity(folder: Path) -> None:
    """Print how far training's crops differ from Pillow's, which decodes all and then resizes."""
    import numpy as np
    import PIL.Image

    from flaxclip.data.images.eval_transform import SizedTransform
    from flaxclip.data.images.train_transform import (
        AugmentConfig,
        sample_crop,
        transform_for_training,
    )

    differences = []
    for seed, file in enumerate(read_files(folder)):
        ours = transform_for_training(
            file, SizedTransform(224), AugmentConfig(), np.random.default_rng(seed)
        )
        image = PIL.Image.open(io.BytesIO(file))
        rng = np.random.default_rng(seed)
        top, left, height, width = sample_crop(
            image.height, image.width, rng, (0.9, 1.0), (3 / 4, 4 / 3)
        )
        crop = image.crop((left, top, left + width, top + height))
        exact = crop.resize((224, 224), PIL.Image.Resampling.BICUBIC)
        differences.append(np.abs(ours.astype(int) - np.asarray(exact).astype(int)).mean())
    print(
        f"  from Pillow's bicubic: mean absolute {np.mean(differences):.2f} of 255, "
        f"{np.max(differences):.2f} in the worst of {len(differences)} images"
    )


def print_profile(folder: Path) -> None:
    """Print the time of each part of loading an example, each timed alone in this process."""
    import numpy as np

    from flaxclip.data.config import DataConfig
    from flaxclip.data.examples import ExampleLoader
    from flaxclip.data.images.decode import UprightImage
    from flaxclip.data.images.eval_transform import SizedTransform
    from flaxclip.data.images.resize import resize_part
    from flaxclip.data.images.train_transform import AugmentConfig, sample_crop
    from flaxclip.data.loader import open_source
    from flaxclip.data.order import draw_order, example_rng
    from flaxclip.data.tokenizers.load import load_tokenizer
    from flaxclip.data.workers.host_batches import ROWS_AT_A_TIME
    from flaxclip.models.inputs import TokenizerConfig

    config = DataConfig(path=(str(folder / "*.tar"),))
    source = open_source(config, 224)
    order = draw_order(source, config.order, 0, 256)
    tokenizer = load_tokenizer(TokenizerConfig(), 77)
    load = ExampleLoader(source, order, tokenizer, SizedTransform(224), AugmentConfig(), 0)
    positions = range(200)
    draws = [order[position] for position in positions]
    files = [source[draw.example].image for draw in draws]
    captions = [[source[draw.example].captions[0]] for draw in draws]
    scale = decoded_scale(files[0])
    pixels = UprightImage(files[0]).decode(scale)[0]
    height, width = pixels.shape[:2]
    box = 0.02 * width, 0.02 * height, 0.98 * width, 0.98 * height
    ratio = 3 / 4, 4 / 3
    rng = np.random.default_rng(0)
    parts = {
        "its place in the order": lambda i: order[i],
        "reading the tar": lambda i: source[draws[i].example],
        "decoding": lambda i: UprightImage(files[i]).decode(scale),
        "random numbers": lambda i: example_rng(0, draws[i], "image"),
        "choosing the crop": lambda i: sample_crop(height, width, rng, (0.9, 1.0), ratio),
        "resizing": lambda i: resize_part(pixels, box, 224, "bicubic"),
        "tokenising": lambda i: tokenizer.encode(captions[i]),
    }
    whole = best_microseconds(
        lambda i: i % ROWS_AT_A_TIME or load(positions[i : i + ROWS_AT_A_TIME], lambda _: None),
        positions,
    )
    print(f"  an example takes {whole:.0f} µs in one process; its parts, each by itself:")
    for name, part in parts.items():
        microseconds = best_microseconds(part, positions)
        whole_share = microseconds / whole
        print(f"    {name:24} {microseconds:6.0f} µs  {whole_share:5.1%}")


def best_microseconds(part, positions: range) -> float:
    """Of a call, on average over `positions`, in the fastest of five passes."""
    passes = []
    for _ in range(5):
        start = time.process_time()
        for position in positions:
            part(position)
        passes.append((time.process_time() - start) / len(positions) * 1e6)
    return min(passes)


if __name__ == "__main__":
    main()
