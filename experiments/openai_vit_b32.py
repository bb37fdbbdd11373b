"""OpenAI's CLIP ViT-B/32: 32 epochs of 400M pairs at batch 32,768.

    python -m flaxclip.train openai_vit_b32 \
        --data.path 'gs://BUCKET/400m/*.tar' --workdir gs://BUCKET/runs/openai_vit_b32

Hyper-parameters: Radford et al. 2021, tables 18 and 20; their 400M pairs were never published,
so this needs another corpus of that size. The crop is open_clip's, at least 0.9 of the
area; theirs was a random square of the resized image.

Expect 63.2% zero-shot on ImageNet (their table 11); 63.3% as CLIP_benchmark measures their weights.

`python -m flaxclip.plan openai_vit_b32 --topology v5e:16x16`: 4.6 GiB of a chip's 15.75, 2,300
chip-hours at the 35% MFU that the compiler expects, some $2,800 at $1.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

EPOCHS, PAIRS = 32, 400_000_000


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/openai_vit_b32",
        model=VARIANTS["ViT-B-32-quickgelu"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=32_768,
        steps=EPOCHS * PAIRS // 32_768,
        data=DataConfig(path=("400m/*.tar",), workers=32),
        optim=OptimConfig(peak_lr=5e-4, warmup_steps=2000, weight_decay=0.2),
        checkpoint=CheckpointConfig(keep_every=50_000),
    )
