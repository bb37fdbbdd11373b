"""Images a second of the zero-shot benchmark: ours, CLIP_benchmark's, and the bare encoder's.

    python experiments/perf/benchmark_throughput.py --peer-python peers/bin/python

`--peer-python` is the interpreter of an environment with clip-benchmark and open_clip_torch. A
ViT-B/32 of random weights classifies the same JPEG photographs (500 x 375, crops of scikit-learn's
samples) from the same `wds_*` folder on both sides, with the same weights, batch and number of
classes. What is timed is everything between files and scores: decoding, resizing, encoding, the
classifier's prompts; not imports, loading of weights and compilation, for which each side gets one
round that does not count. The sides take turns.
"""

import dataclasses
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro
from photographs import photographs

from flaxclip.api import CLIPModel, encode_image
from flaxclip.benchmark.embeddings import Embedder
from flaxclip.benchmark.methods.zero_shot import classify_task
from flaxclip.benchmark.prompts import choose_wording
from flaxclip.benchmark.readers import open_test
from flaxclip.benchmark.tasks import find_tasks
from flaxclip.errors import InputError, exit_on_input_error
from flaxclip.interop.export import export
from flaxclip.models.clip import init_variables
from flaxclip.models.variants import VARIANTS

PEER = """
import json, sys, time, torch, open_clip
from clip_benchmark.datasets.builder import build_dataset, get_dataset_collate_fn
from clip_benchmark.metrics import zeroshot_classification
exported, root, batch_size, workers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{exported}")
tokenizer = open_clip.get_tokenizer(f"local-dir:{exported}")
model.eval()
images = torch.zeros(batch_size, 3, *model.visual.image_size)
for line in sys.stdin:
    if line.strip() == "bare":
        start, batches = time.perf_counter(), int(sys.argv[5]) // batch_size
        with torch.no_grad():
            for _ in range(batches):
                model.encode_image(images)
        print("SECONDS", time.perf_counter() - start, 0, flush=True)
        continue
    dataset = build_dataset("wds/x", root=root, transform=transform, split="test",
                            task="zeroshot_classification")
    loader = torch.utils.data.DataLoader(dataset.batched(batch_size), batch_size=None,
                                         shuffle=False, num_workers=workers)
    start = time.perf_counter()
    scores = zeroshot_classification.evaluate(
        model, loader, tokenizer, dataset.classes, dataset.templates, device="cpu",
        amp=line.strip() == "amp")
    print("SECONDS", time.perf_counter() - start, scores["acc1"], flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """Throughput of the benchmark."""

    peer_python: Path
    model: str = "ViT-B-32"
    images: int = 256
    classes: int = 10
    batch_size: int = 64
    rounds: int = 3
    peer_workers: int = 4
    """CLIP_benchmark's own default."""
    autocast: bool = False
    """Measure CLIP_benchmark in its default precision too: bfloat16, which takes minutes a batch on
    processors without instructions for it."""


def main(command: Command) -> None:
    """Print rates and ratios.

    Raises:
        InputError: the images do not fill whole batches.
    """
    if command.images % command.batch_size:
        raise InputError(
            f"{command.images} images do not fill batches of {command.batch_size}\n"
            "the bare encoders are timed on whole batches: choose a multiple"
        )
    spec = VARIANTS[command.model]
    variables = jax.jit(init_variables, static_argnums=1)(jax.random.key(0), spec.model)
    model = CLIPModel(spec, variables)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "wds_photographs"
        write_photographs(root, command.images, command.classes)
        export(spec, variables, Path(folder) / "exported", "open_clip", overwrite=False)
        rates = measure(command, model, root, Path(folder))
    for name, values in rates.items():
        print(f"{name:38} {np.median(values):7.1f} images/s  {[round(v, 1) for v in values]}")
    ours = np.array(rates.pop("flaxclip, float32"))
    for name, values in rates.items():
        print(f"flaxclip / {name}: {np.median(ours / values):.2f}")


def measure(command: Command, model: CLIPModel, root: Path, folder: Path) -> dict[str, list[float]]:
    """Rates of every side, a list with one a round."""
    (task,) = find_tasks([f"wds:{root}"])
    peer = subprocess.Popen(
        [command.peer_python, "-c", PEER, folder / "exported", root, str(command.batch_size),
         str(command.peer_workers), str(command.images)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def ours(round_: int) -> tuple[float, float]:
        embedder = Embedder(model, command.batch_size, folder / f"cache{round_}")
        start = time.perf_counter()
        _, data = open_test(task, root.parent, model.transform.size)
        result = classify_task(embedder, task, data, choose_wording(task, data, "clip_benchmark"))
        return time.perf_counter() - start, result.scores["top1"].value

    def theirs(what: str) -> tuple[float, float]:
        peer.stdin.write(f"{what}\n")
        peer.stdin.flush()
        while not (line := peer.stdout.readline()).startswith("SECONDS"):
            if not line:
                sys.exit("CLIP_benchmark failed: run its part by hand to see why")
        return tuple(map(float, line.split()[1:]))

    def bare(_: int) -> tuple[float, float]:
        side = model.config.vision.image_size
        images = jax.device_put(np.zeros((command.batch_size, side, side, 3), np.uint8))
        start = time.perf_counter()
        for _ in range(command.images // command.batch_size):
            encode_image(model.variables, images, model.spec).block_until_ready()
        return time.perf_counter() - start, 0.0

    sides = {
        "bare encoder, float32": bare,
        "flaxclip, float32": ours,
        "bare encoder of open_clip, float32": lambda _: theirs("bare"),
        "CLIP_benchmark, float32": lambda _: theirs("float32"),
    }
    if command.autocast:
        sides["CLIP_benchmark, its default, autocast"] = lambda _: theirs("amp")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(command.rounds + 1):
        for name, run in sides.items():
            seconds, score = run(round_)
            if round_:
                rates[name].append(command.images / seconds)
            else:
                print(f"{name}: top-1 {score:.4f}", flush=True)
    peer.stdin.close()
    peer.wait()
    return rates


def write_photographs(root: Path, count: int, classes: int) -> None:
    """`count` JPEGs with random labels, in CLIP_benchmark's layout."""
    rng = np.random.default_rng(0)
    (root / "test").mkdir(parents=True)
    with tarfile.open(root / "test/0.tar", "w") as tar:
        for number, jpeg in enumerate(photographs(count, rng)):
            label = str(rng.integers(classes)).encode()
            for suffix, data in (("jpg", jpeg), ("cls", label)):
                info = tarfile.TarInfo(f"s{number:07}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (root / "test/nshards.txt").write_text("1\n")
    names = [f"thing {number}" for number in range(classes)]
    (root / "classnames.txt").write_text("\n".join(names) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")


if __name__ == "__main__":
    with exit_on_input_error("benchmark_throughput"):
        main(tyro.cli(Command, description=__doc__))
