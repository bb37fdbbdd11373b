"""The run that `soak.py` disturbs: a tiny model on tar shards, one record of which is NaN.

    python experiments/perf/soak_run.py experiments/perf/soak_run.py --workdir D --data.path ...

This file is the experiment, and trains it as `python -m flaxclip.train` would, but for that record.
"""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

import flaxclip.train
from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.order import batch_names
from flaxclip.data.sources.scenes import ScenesSource
from flaxclip.health import HealthConfig
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig
from flaxclip.train_step import make_train_step

SAVE_STEPS = 50
BATCH_SIZE = 16
SHARDS, PAIRS = 4, 256
NAN_RECORD = "2.tar/130"


def get_config() -> TrainConfig:
    """Every step reported, a checkpoint every `SAVE_STEPS`."""
    return TrainConfig(
        workdir="unset",
        steps=3000,
        batch_size=BATCH_SIZE,
        model=CLIPConfig(
            vision=ViTConfig(image_size=16, patch_size=8, width=32, layers=1, heads=2),
            text=TextConfig(context_length=20, width=32, layers=1, heads=2),
            embed_dim=16,
        ),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=20),
        log_every=1,
        checkpoint=CheckpointConfig(every_steps=SAVE_STEPS),
        health=HealthConfig(host_timeout_seconds=20, check_replicas_every=50),
    )


def write_shards(folder: Path) -> None:
    """Tars as img2dataset writes them, of the built-in data's images."""
    source = ScenesSource("train", 32)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for index in range(shard * PAIRS // SHARDS, (shard + 1) * PAIRS // SHARDS):
                image = io.BytesIO()
                Image.fromarray(source[index].image).save(image, "JPEG")
                for suffix, data in (
                    ("jpg", image.getvalue()),
                    ("txt", source[index].captions[0].encode()),
                ):
                    member = tarfile.TarInfo(f"{index}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def make_nan(records: Iterable[str]) -> None:
    """Have `flaxclip.train` see NaN for the images of these records, in whatever batch."""
    load_batches, bad = flaxclip.train.load_batches, frozenset(records)

    @jax.jit
    def poison(images, rows):
        # Pixels are bytes, which know no NaN: they become floats of the same values.
        return jnp.where(rows[:, None, None, None], jnp.nan, images.astype(jnp.float32))

    def poisoned(*args, **kwargs):
        config, source, seed, batch_size = args[0], args[2], kwargs["seed"], kwargs["batch_size"]
        for step, loaded in enumerate(load_batches(*args, **kwargs), kwargs["start_step"]):
            names = batch_names(source, config.order, seed, batch_size, step)
            rows = np.array([name in bad for name in names])
            batch = loaded.batch
            # The training loop refuses to move arrays that nobody has put somewhere.
            everywhere = NamedSharding(batch.images.sharding.mesh, PartitionSpec())
            images = poison(batch.images, jax.device_put(rows, everywhere))
            yield loaded._replace(batch=batch._replace(images=images))

    flaxclip.train.load_batches = poisoned
    # Compiled when it is called, for images of floats.
    flaxclip.train.compile_train_step = make_train_step


if __name__ == "__main__":
    make_nan([NAN_RECORD])
    flaxclip.train.main()
