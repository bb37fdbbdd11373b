"""SigLIP ViT-B/16: the sigmoid loss, 9 billion pairs at batch 32,768.

    python -m flaxclip.train siglip_vit_b16 --tokenizer.file c4_en_32k.model \
        --data.path 'gs://BUCKET/pairs/*.tar' --workdir gs://BUCKET/runs/siglip_vit_b16

From Zhai et al. 2023: the loss with t' = ln 10 and b = -10 (section 3.2), batch 32k, 9 billion
pairs and beta_2 = 0.95 (section 4). From big_vision's configs/proj/image_text/siglip_lit_coco.py,
its one public configuration of this loss: learning rate 1e-3, cosine after a warm-up of 3% of the
run, gradients clipped to norm 1. Weight decay 1e-4 is what that group uses for image-text models
(Zhai et al. 2022, "LiT"), not stated for this one. The vocabulary is big_vision's, a SentencePiece
model of 32,000 tokens of English C4.

Expect less than the released model's 76.0% zero-shot on ImageNet (open_clip's measurement), which
saw more pairs, of WebLI, a corpus that is not public.

`python -m flaxclip.plan siglip_vit_b16 --topology v5e:16x16`: 9.2 GiB of a chip's 15.75, 4,400
chip-hours at the 40% MFU that the compiler expects, some $5,300 at $1.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

STEPS = 9_000_000_000 // 32_768


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/siglip_vit_b16",
        **VARIANTS["ViT-B-16-SigLIP"]._asdict(),
        compute=ComputeConfig(dtype="bfloat16"),
        batch_size=32_768,
        steps=STEPS,
        loss="sigmoid",
        data=DataConfig(path=("pairs/*.tar",), workers=32),
        optim=OptimConfig(
            peak_lr=1e-3,
            warmup_steps=STEPS * 3 // 100,
            b2=0.95,
            weight_decay=1e-4,
            max_grad_norm=1.0,
        ),
        checkpoint=CheckpointConfig(keep_every=50_000),
    )
