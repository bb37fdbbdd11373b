"""OpenAI's CLIP ViT-L/14: 32 epochs of 400M pairs at batch 32,768.

    python -m flaxclip.train openai_vit_l14 \
        --data.path 'gs://BUCKET/400m/*.tar' --workdir gs://BUCKET/runs/openai_vit_l14

Hyper-parameters: Radford et al. 2021, tables 18 and 20; their 400M pairs were never published,
so this needs another corpus of that size. The crop is open_clip's, at least 0.9 of the
area; theirs was a random square of the resized image.

Expect 75.3% zero-shot on ImageNet (their table 11); 75.5% as CLIP_benchmark measures their weights.

`python -m flaxclip.plan openai_vit_l14 --topology v6e:16x16`: 24.3 GiB of a chip's 31.24, 9,300
chip-hours at the 22% MFU that the compiler expects, some $25,000 at $2.70 a chip-hour; 3,100 were
the bandwidth of its memory all there is.
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
        workdir="runs/openai_vit_l14",
        model=VARIANTS["ViT-L-14-quickgelu"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=32_768,
        steps=EPOCHS * PAIRS // 32_768,
        data=DataConfig(path=("400m/*.tar",), workers=32),
        optim=OptimConfig(peak_lr=4e-4, warmup_steps=2000, weight_decay=0.2),
        checkpoint=CheckpointConfig(keep_every=50_000),
    )
