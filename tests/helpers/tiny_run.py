"""A training run small enough to be run many times: what the tests of whole runs share."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

import flaxclip
from flaxclip.api import CLIPModel
from flaxclip.checkpoint.layout import save_variables
from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.models.clip import CLIPConfig, init_variables
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig
from tests.helpers.command_lines import run_cli
from tests.helpers.xla_flags import ONE_DEVICE

TINY_MODEL = CLIPConfig(
    vision=ViTConfig(image_size=16, patch_size=8, width=32, layers=2, heads=2),
    text=TextConfig(context_length=20, width=32, layers=2, heads=2),
    embed_dim=16,
)


def tiny_config(workdir, **changes) -> TrainConfig:
    config = TrainConfig(
        workdir=str(workdir),
        model=TINY_MODEL,
        batch_size=16,
        steps=8,
        data=DataConfig(augment=AugmentConfig(crop_scale=None), workers=0),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=2),
        log_every=2,
        shown_pairs=0,  # drawing takes longer than all eight steps
        checkpoint=CheckpointConfig(every_steps=4),
    )
    return dataclasses.replace(config, **changes)


EXPERIMENT = """
from tests.helpers.tiny_run import tiny_config

def get_config():
    return tiny_config("unset")
"""


def train_on(folder: Path, spec: ModelSpec, *flags: str) -> tuple[CLIPModel, set[str]]:
    """Random weights, trained three steps by the command; and the names of arrays that changed."""
    before = init_variables(jax.random.key(0), spec.model)
    save_variables(folder / "weights", spec._asdict(), before)
    (folder / "tiny.py").write_text(EXPERIMENT)
    done = run_cli(
        "flaxclip.train", "tiny.py", "--workdir", "run", "--init-from", "weights", "--steps", "3",
        *flags, cwd=folder, XLA_FLAGS=f"{ONE_DEVICE} --xla_backend_optimization_level=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = flaxclip.load(folder / "run")
    after, old = flatten_dict(model.variables, sep="/"), flatten_dict(before, sep="/")
    assert after.keys() == old.keys()
    return model, {name for name in after if not np.array_equal(after[name], old[name])}
