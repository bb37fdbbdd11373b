"""open_clip's ViT-B/32 on LAION-400M: 32 epochs at batch 32,768.

    python -m flaxclip.train laion400m_vit_b32 \
        --data.path 'gs://BUCKET/laion400m/{00000..41455}.tar' --workdir gs://BUCKET/runs/laion400m_vit_b32

Hyper-parameters: those of the CLIP paper (open_clip#100) with QuickGELU (open_clip#441); batch and
epochs from open_clip's docs/PRETRAINED.md, warm-up from the SLURM example of its README.

Expect 62.96% zero-shot on ImageNet (docs/PRETRAINED.md). It took open_clip 4,600 hours of A100.

`python -m flaxclip.plan laion400m_vit_b32 --topology v5e:16x16`: 4.6 GiB of a chip's 15.75, 2,350
chip-hours at the 35% MFU that the compiler expects, some $2,800 at $1.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

EPOCHS, PAIRS = 32, 407_332_084


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/laion400m_vit_b32",
        model=VARIANTS["ViT-B-32-quickgelu"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=32_768,
        steps=EPOCHS * PAIRS // 32_768,
        data=DataConfig(path=("laion400m/{00000..41455}.tar",), workers=32),
        optim=OptimConfig(peak_lr=5e-4, warmup_steps=2000, weight_decay=0.2),
        checkpoint=CheckpointConfig(keep_every=50_000),
    )
