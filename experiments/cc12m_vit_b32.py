"""ViT-B/32 on CC12M, for one node: 8 GPUs or a v5e-8.

    python -m flaxclip.train cc12m_vit_b32 \
        --data.path 'gs://BUCKET/cc12m/{00000..01242}.tar' --workdir gs://BUCKET/runs/cc12m_vit_b32

Hyper-parameters: open_clip's for a node of 8 GPUs and a corpus of this size, YFCC-15M (its README,
"Sample running code": batch 8 x 128, weight decay 0.1, warm-up 10,000; docs/PRETRAINED.md: learning
rate 5e-4, 32 epochs).

Expect about what is published for others, since nobody has published a ViT-B/32 trained by this
recipe: open_clip's RN50 on CC12M has 36.45% zero-shot on ImageNet (docs/PRETRAINED.md), a ViT-B/16
of Fan et al. 2023 ("Improving CLIP Training with Language Rewrites", CLIP baseline) 40.2%. The
number to beat is 42.72%, of rwightman's `ViT-B-32.cc12m-siglip`: the same tower, corpus and epochs,
but the sigmoid loss, batch 4,096, and NAdaMuon at 3e-3 with weight decay 0.25.

`python -m flaxclip.plan cc12m_vit_b32 --topology v5e:2x4`: 4.6 GiB of a chip's 15.75, 72
chip-hours at the 35% MFU that the compiler expects, some $86 at $1.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

EPOCHS, PAIRS = 32, 12_423_374


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/cc12m_vit_b32",
        model=VARIANTS["ViT-B-32"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=1024,
        steps=EPOCHS * PAIRS // 1024,
        data=DataConfig(path=("cc12m/{00000..01242}.tar",), workers=32),
        optim=OptimConfig(peak_lr=5e-4, warmup_steps=10_000, weight_decay=0.1),
        checkpoint=CheckpointConfig(keep_every=50_000),
    )
