"""DataComp's small track: ViT-B/32, 12.8M samples at batch 4,096.

    python -m flaxclip.train datacomp_small \
        --data.path 'gs://BUCKET/datacomp/small/*.tar' --workdir gs://BUCKET/runs/datacomp_small

The competition fixes everything but the data: scale_configs.py and train.py of
mlfoundations/datacomp, and where they are silent open_clip's defaults (weight decay 0.2, beta_2
0.98 and epsilon 1e-6 for a ViT, crops of at least 0.9 of the area). Five checkpoints are kept, as
there. Theirs draws shards with replacement; here every pair comes once an epoch.

Expect 3.9% zero-shot on ImageNet with the baseline filter of open_clip's `datacomp_s_s13m_b4k`.

`python -m flaxclip.plan datacomp_small --topology v5e:2x4`: 11.8 GiB of a chip's 15.75, 2.2
chip-hours at the 37% MFU that the compiler expects, some $2.60 at $1.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

STEPS = 12_800_000 // 4096


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/datacomp_small",
        model=VARIANTS["ViT-B-32"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=4096,
        steps=STEPS,
        data=DataConfig(path=("datacomp/small/*.tar",), workers=32),
        optim=OptimConfig(peak_lr=5e-4, warmup_steps=500, weight_decay=0.2),
        checkpoint=CheckpointConfig(every_steps=STEPS // 5, keep_every=STEPS // 5),
    )
