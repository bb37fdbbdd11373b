"""A training run small enough to be run many times: what the tests of whole runs share."""

import dataclasses

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.loader import DataConfig
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig
from flaxclip.optim import OptimConfig

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
