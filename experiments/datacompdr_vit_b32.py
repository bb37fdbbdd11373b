"""ViT-B/32 on DataComp-12M with two teachers, by the recipe of MobileCLIP.

    python -m flaxclip.train datacompdr_vit_b32 \
        --data.path 'gs://BUCKET/datacompdr-12m/*.tar' --workdir gs://BUCKET/runs/datacompdr_vit_b32

Vasu et al. 2024 (MobileCLIP), by `training/configs/run_datacompdr12m.sh` of apple/ml-mobileclip:
30,000 steps of 8,192 pairs, rate 1e-3 after 1,000 steps, beta_2 0.95, weight decay 0.2, gradients
clipped to 1, and a loss of the teachers alone (`--distill-loss-weights 0.0 1.0`) with a factor of
100 on their similarities, averaged after the softmax. Of `training/configs/datacompdr12m.json` are
the teachers, OpenAI's ViT-L/14 and that of DataComp-XL, and crops of torchvision's
`RandomResizedCrop`, whose default is 8% of the area or more. Theirs trains a ViT-B/16 and adds
RandAugment, synthetic captions and stored vectors; here the teachers run beside the student, and
see the crop that it sees.

Expect less than what the paper reports for a ViT-B/16 with all of that: for this model nobody has
published a figure.

`python -m flaxclip.plan datacompdr_vit_b32 --topology v5e:4x4`: 14.2 GiB of a chip's 15.75, 290
chip-hours at the 47% MFU that the compiler expects, some $350 at $1.20 a chip-hour. Of the FLOPs,
89% are the teachers'.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

STEPS = 30_000
CHECKPOINTS = 20


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/datacompdr_vit_b32",
        model=VARIANTS["ViT-B-32"].model,
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=8192,
        steps=STEPS,
        teacher=(
            "hf://openai/clip-vit-large-patch14",
            "hf://laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
        ),
        teacher_model=("ViT-L-14-quickgelu", "ViT-L-14"),
        teacher_scale=(100.0,),
        teacher_weight=1.0,
        contrastive_weight=0.0,
        data=DataConfig(
            path=("datacompdr-12m/*.tar",),
            workers=32,
            augment=AugmentConfig(crop_scale=(0.08, 1.0)),
        ),
        optim=OptimConfig(
            peak_lr=1e-3, warmup_steps=1000, b2=0.95, weight_decay=0.2, max_grad_norm=1.0
        ),
        checkpoint=CheckpointConfig(
            every_steps=STEPS // CHECKPOINTS, keep_every=STEPS // CHECKPOINTS
        ),
    )
