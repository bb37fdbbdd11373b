"""DataComp's xlarge track: ViT-L/14, 12.8B samples at batch 90,112.

    python -m flaxclip.train datacomp_xlarge \
        --data.path 'gs://BUCKET/datacomp/xlarge/*.tar' --workdir gs://BUCKET/runs/datacomp_xlarge

The competition fixes everything but the data: scale_configs.py and train.py of
mlfoundations/datacomp, and where they are silent open_clip's defaults (weight decay 0.2, beta_2
0.98 and epsilon 1e-6 for a ViT, crops of at least 0.9 of the area). Five checkpoints are kept, as
there. Theirs draws shards with replacement; here every pair comes once an epoch.

Expect 79.2% zero-shot on ImageNet on DataComp-1B (open_clip's docs/PRETRAINED.md).

`python -m flaxclip.plan datacomp_xlarge --topology v5p:8x8x8`: 31.1 GiB of a chip's 95.73, 9,500
chip-hours at the 43% MFU that the compiler expects, some $40,000 at $4.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

STEPS = 12_800_000_000 // 90_112


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/datacomp_xlarge",
        model=VARIANTS["ViT-L-14"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=90_112,
        steps=STEPS,
        data=DataConfig(path=("datacomp/xlarge/*.tar",), workers=32),
        optim=OptimConfig(peak_lr=1e-3, warmup_steps=10_000, b2=0.95, weight_decay=0.2),
        checkpoint=CheckpointConfig(every_steps=STEPS // 5, keep_every=STEPS // 5),
    )
