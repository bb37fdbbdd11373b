"""Two epochs of real training, killed again and again and resumed on 1, 2 and 4 hosts in turn.

python experiments/perf/resume_order.py                                  200,000 records, 10 kills
python experiments/perf/resume_order.py --records 2000 --batch-size 100 --kills 3
python experiments/perf/resume_order.py --records 1600 --batch-size 16 --remote --hosts 4

Each image's first pixel is the number of its record, so that what the training loop takes from
the loader says which records it has trained on. All hosts are killed by SIGKILL at random steps.
The sequence of records, host by host and step by step, must be that of a run that nobody has
killed, and each epoch a permutation of the corpus; a step that is repeated after a kill must have
the same records again. Exit code 1 where it is not so.

With --remote the shards come from a web server, a process that answers after 20 ms: they are read
in runs, of four records so that a small corpus has several windows, ahead of need, through a cache
that each host has for itself. The sequence must then also be what that order makes of the same
shards on disk. With --counts, `sizes.json` counts them, and they are indexed while the run goes on.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tyro
from PIL import Image

from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.sources import runs as source_runs
from flaxclip.data.sources.tars.webdataset import WebDatasetSource

ROOT = Path(__file__).parents[2]
REMOTE_BYTES = 4_000  # of a record
MARGIN = 4  # steps that a run which is to be killed may take more: none is over before it is killed
source_runs.RUN_BYTES = 2 * REMOTE_BYTES  # here and in the hosts' processes

EXPERIMENT = """
from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig

def get_config():
    return TrainConfig(
        workdir="unset", steps={steps}, batch_size={batch_size},
        model=CLIPConfig(
            vision=ViTConfig(image_size=8, patch_size=8, width=16, layers=1, heads=1),
            text=TextConfig(context_length=8, width=16, layers=1, heads=1),
            embed_dim=8,
        ),
        data=DataConfig(path=({path!r},), augment=AugmentConfig(crop_scale=None)),
        optim=OptimConfig(warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps={every}),
    )
"""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Sizes of the trial."""

    records: int = 200_000
    batch_size: int = 1000
    kills: int = 10
    workers: int = 1
    hosts: tuple[int, ...] = (1, 2, 4)
    """Of the starts, in turn."""
    remote: bool = False
    """Shards come from a web server."""
    counts: bool = False
    """They are counted, and indexed while the run goes on."""
    seed: int = 0
    """Decides when hosts are killed."""

    @property
    def steps(self) -> int:
        """Two epochs."""
        return 2 * self.records // self.batch_size


def write_shards(folder: Path, records: int, per_shard: int, size: int) -> None:
    """Images of 8 x 8 pixels, the first of which is the record's number; `size` bytes or more."""
    folder.mkdir()
    counts = {}
    for shard, first in enumerate(range(0, records, per_shard)):
        counts[f"{shard:05d}.tar"] = min(per_shard, records - first)
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(first, min(first + per_shard, records)):
                pixels = np.zeros((8, 8, 3), np.uint8)
                pixels[0, 0] = number >> 16, number >> 8 & 255, number & 255
                image = io.BytesIO()
                Image.fromarray(pixels).save(image, "PNG", compress_level=1)
                png = image.getvalue().ljust(size, b"\0")
                for suffix, data in (("png", png), ("txt", b"record %d" % number)):
                    member = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "sizes.json").write_text(json.dumps(counts))


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server that serves the folder."""
    command = [sys.executable, "-m", "tests.helpers.faulty_store", str(folder)]
    command.append(json.dumps({"latency": 0.02}))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None, "a pipe"
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def record_and_train() -> None:
    """`flaxclip.train`, which also writes down the records of every batch that its loop takes."""
    host = os.environ["OMPI_COMM_WORLD_RANK"]  # hosts share no disk but that of the run
    os.environ["XDG_CACHE_HOME"] = str(Path(f"cache.{host}").absolute())
    import flaxclip.train

    load_batches, end = flaxclip.train.load_batches, int(os.environ["LAST_STEP"])

    def recording(*args, start_step, **options):
        with Path(f"records.{jax.process_index()}.jsonl").open("a") as file:
            batches = load_batches(*args, start_step=start_step, **options)
            for step, loaded in enumerate(batches, start_step):
                for shard in loaded.batch.images.addressable_shards:
                    pixel = np.asarray(shard.data)[:, 0, 0].astype(int) @ [1 << 16, 1 << 8, 1]
                    row = {"step": step, "row": shard.index[0].start or 0, "ids": pixel.tolist()}
                    print(json.dumps(row), file=file, flush=True)
                yield loaded
                if step == end:
                    time.sleep(3600)

    flaxclip.train.load_batches = recording
    flaxclip.train.main()


class Job:
    """One start of a run on some hosts."""

    def __init__(self, folder: Path, hosts: int, trial: Trial, target: int | None = None):
        """`target`: a step after which it is to be killed."""
        last = trial.steps if target is None else target + MARGIN
        self.folder, self.target, self.log = folder, target, folder / "log"
        self.already = len(self.log.read_text()) if self.log.exists() else 0
        command = [sys.executable, ROOT / "launch/local_cluster.py", "--processes", str(hosts)]
        child = [sys.executable, __file__, "train", "experiment.py", "--workdir", "run"]
        child += ["--data.workers", str(trial.workers)]
        child += ["--data.counts", "auto"] if trial.counts else []
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--", *child],
                cwd=folder,
                env=os.environ | {"LAST_STEP": str(last)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill_at_target(self) -> int:
        """Kill all hosts once they have taken the target's batch; the step that they were at."""
        while (reached := last_step(self.folder)) < self.target:
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.02)
        text = self.log.read_text()[self.already :]
        for process in re.findall(r"host \d+ is process (\d+)", text):
            os.kill(int(process), signal.SIGKILL)
        self.process.wait()
        return reached


def last_step(folder: Path) -> int:
    """The last step that host 0 has begun, -1 for none."""
    path = folder / "records.0.jsonl"
    if not path.exists():
        return -1
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16))
        whole = [line for line in file.read().split(b'{"step": ')[1:] if line.endswith(b"}\n")]
    return int(whole[-1].split(b",")[0]) if whole else -1


def read_sequence(folder: Path, trial: Trial) -> np.ndarray:
    """[steps, batch] of record numbers; raises ValueError where a repeated step differs."""
    sequence = np.full((trial.steps, trial.batch_size), -1)
    for path in sorted(folder.glob("records.*.jsonl")):
        # A line that a kill has cut off has no successor, or one right behind it.
        for line in re.findall(r'\{"step": [^{}]*\}', path.read_text()):
            row = json.loads(line)
            place = sequence[row["step"], row["row"] : row["row"] + len(row["ids"])]
            if not ((place == -1) | (place == row["ids"])).all():
                raise ValueError(f"step {row['step']} has other records after a kill")
            place[:] = row["ids"]
    return sequence


def on_disk_in_order_of(path: str, shards: Path, trial: Trial) -> np.ndarray:
    """[steps, batch] of record numbers: those of the shards on disk, in the order of `path`."""
    source, disk = WebDatasetSource(path), WebDatasetSource(f"{shards}/*.tar")
    order = draw_order(source, OrderConfig(), 0, trial.batch_size)
    assert getattr(order, "storage", None) is not None, "an order in runs"

    def number(example: int) -> int:
        image = disk[example].image
        assert isinstance(image, bytes), "a file"
        red, green, blue = np.asarray(Image.open(io.BytesIO(image)))[0, 0].tolist()
        return red << 16 | green << 8 | blue

    numbers = [number(order[n].example) for n in range(trial.steps * trial.batch_size)]
    return np.array(numbers).reshape(trial.steps, trial.batch_size)


def main(trial: Trial) -> None:
    """Train twice and compare."""
    rng = np.random.default_rng(trial.seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        shards, path = root / "shards", "shards/*.tar"
        if trial.remote:
            write_shards(shards, trial.records, trial.records // 10, REMOTE_BYTES)
            path = f"{running.enter_context(served(shards))}/{{00000..00009}}.tar"
        else:
            write_shards(shards, trial.records, 10_000, 0)
        runs = {}
        for name in ("undisturbed", "killed"):
            runs[name] = root / name
            runs[name].mkdir()
            (runs[name] / "shards").symlink_to(shards)
            text = EXPERIMENT.format(
                steps=trial.steps,
                batch_size=trial.batch_size,
                path=path,
                every=max(5, trial.steps // 40),
            )
            (runs[name] / "experiment.py").write_text(text)
        if Job(runs["undisturbed"], 1, trial).process.wait() != 0:
            raise RuntimeError((runs["undisturbed"] / "log").read_text())
        targets = sorted(rng.choice(trial.steps - 5, trial.kills, replace=False).tolist())
        for number, target in enumerate(targets):
            hosts = trial.hosts[number % len(trial.hosts)]
            reached = Job(runs["killed"], hosts, trial, target).kill_at_target()
            print(f"{hosts} host(s) killed at step {reached + 1} of {trial.steps}", flush=True)
        hosts = trial.hosts[trial.kills % len(trial.hosts)]
        if Job(runs["killed"], hosts, trial).process.wait() != 0:
            raise RuntimeError((runs["killed"] / "log").read_text())
        print(f"{hosts} host(s) finished", flush=True)
        expected, found = (read_sequence(run, trial) for run in runs.values())
        as_on_disk = True
        if trial.remote:
            as_on_disk = bool((on_disk_in_order_of(path, shards, trial) == expected).all())
            print(f"undisturbed, the sequence is that order's on disk: {as_on_disk}")
            for cache in sorted(runs["killed"].glob("cache.*")):
                extents = sum(file.is_file() for file in cache.glob("flaxclip/runs/??/*"))
                print(f"{cache.name} has {extents} byte ranges")
    epochs = expected.reshape(2, trial.records)
    permutations = bool((np.sort(epochs) == np.arange(trial.records)).all())
    same = bool((expected == found).all())
    print(f"{trial.records:,} records, {expected.size:,} examples")
    print(f"each of 2 epochs is a permutation: {permutations}")
    print(f"killed {trial.kills} times, the sequence is the same: {same}")
    sys.exit(not (permutations and same and as_on_disk))


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        del sys.argv[1]
        record_and_train()
    else:
        main(tyro.cli(Trial))
