"""DataComp's large track: ViT-B/16, 1.28B samples at batch 8,192.

    python -m flaxclip.train datacomp_large \
        --data.path 'gs://BUCKET/datacomp/large/*.tar' --workdir gs://BUCKET/runs/datacomp_large

The competition fixes everything but the data: scale_configs.py and train.py of
mlfoundations/datacomp, and where they are silent open_clip's defaults (weight decay 0.2, beta_2
0.98 and epsilon 1e-6 for a ViT, crops of at least 0.9 of the area). Five checkpoints are kept, as
there. Theirs draws shards with replacement; here every pair comes once an epoch.

Expect 63.1% zero-shot on ImageNet with the filter of open_clip's `datacomp_l_s1b_b8k`.

`python -m flaxclip.plan datacomp_large --topology v5e:8x8`: 8.2 GiB of a chip's 15.75, 576
chip-hours at the 39% MFU that the compiler expects, some $690 at $1.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

STEPS = 1_280_000_000 // 8192


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/datacomp_large",
        model=VARIANTS["ViT-B-16"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=8192,
        steps=STEPS,
        data=DataConfig(path=("datacomp/large/*.tar",), workers=32),
        optim=OptimConfig(peak_lr=5e-4, warmup_steps=500, weight_decay=0.2),
        checkpoint=CheckpointConfig(every_steps=STEPS // 5, keep_every=STEPS // 5),
    )
