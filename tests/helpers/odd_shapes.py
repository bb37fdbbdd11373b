"""A small corpus of images of odd shapes, and a tiny run on it at native aspect ratio."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from flaxclip.config import TrainConfig
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import ImageTransform
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from tests.helpers.image_tars import write_shard
from tests.helpers.tiny_run import tiny_config

LENGTHS = (4, 9, 16)
EXPERIMENT = """
from tests.helpers.odd_shapes import native_config

def get_config():
    return native_config("unset", "odd.tar")
"""


def write_odd_shapes(path: Path, count: int = 100) -> None:
    """Images of noise from 4:1 to 1:4, and of a few pixels."""
    rng = np.random.default_rng(1)
    sizes = [(2, 60), (60, 2), (1, 1), *rng.integers(8, 60, (count - 3, 2)).tolist()]
    pairs = {}
    for index, (height, width) in enumerate(sizes):
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG")
        pairs[f"{index:03}"] = file.getvalue(), f"caption {index}"
    write_shard(path, pairs)


def native_config(workdir: Path | str, corpus: Path | str, **changes: Any) -> TrainConfig:
    """Steps of 64 pairs of 4 patches of 4 x 4 pixels, 24 of 9 or 16 of 16, the model's square."""
    model = CLIPConfig(
        ViTConfig(image_size=16, patch_size=4, width=32, layers=1, heads=2),
        TextConfig(context_length=20, width=32, layers=1, heads=2),
        embed_dim=16,
    )
    config = tiny_config(workdir, model=model, preprocess=ImageTransform("native"))
    # Of this seed, steps of all lengths are among the first four.
    data = dataclasses.replace(config.data, path=(str(corpus),), sequence_lengths=LENGTHS)
    return dataclasses.replace(config, **({"data": data, "log_every": 1, "seed": 6} | changes))
