"""A tiny CLIP on the built-in scenes: a few minutes on two CPU cores.

python -m flaxclip.train
python -m flaxclip.benchmark runs/quickstart
"""

from flaxclip.config import TrainConfig
from flaxclip.data.loader import DataConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/quickstart",
        model=VARIANTS["ViT-tiny"],
        batch_size=256,
        steps=600,
        data=DataConfig(crop_scale=None),
        optim=OptimConfig(peak_lr=2e-3, warmup_steps=60, weight_decay=0.1, max_grad_norm=1.0),
        checkpoint_every=200,
    )
