"""DataComp's medium track: ViT-B/32, 128M samples at batch 4,096.

    python -m flaxclip.train datacomp_medium \
        --data.path 'gs://BUCKET/datacomp/medium/*.tar' --workdir gs://BUCKET/runs/datacomp_medium

The competition fixes everything but the data: scale_configs.py and train.py of
mlfoundations/datacomp, and where they are silent open_clip's defaults (weight decay 0.2, beta_2
0.98 and epsilon 1e-6 for a ViT, crops of at least 0.9 of the area). Five checkpoints are kept, as
there. Theirs draws shards with replacement; here every pair comes once an epoch.

Expect 29.7% zero-shot on ImageNet with the filter of open_clip's `datacomp_m_s128m_b4k`.

`python -m flaxclip.plan datacomp_medium --topology v5e:2x4`: 11.8 GiB of a chip's 15.75, 22
chip-hours at the 37% MFU that the compiler expects, some $26 at $1.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

STEPS = 128_000_000 // 4096


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/datacomp_medium",
        model=VARIANTS["ViT-B-32"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=4096,
        steps=STEPS,
        data=DataConfig(path=("datacomp/medium/*.tar",), workers=32),
        optim=OptimConfig(peak_lr=5e-4, warmup_steps=500, weight_decay=0.2),
        checkpoint=CheckpointConfig(every_steps=STEPS // 5, keep_every=STEPS // 5),
    )
