"""LiT ViT-B/16: a text tower that learns to read a locked image tower, as Zhai et al. 2022.

    python -m flaxclip.train lit_vit_b16 --tokenizer.file vocab.txt \
        --data.path 'gs://BUCKET/pairs/*.tar' --workdir gs://BUCKET/runs/lit_vit_b16

The image tower is that of Google's published `LiT-B16B_2.npz`, trained on ImageNet-21k
(`gs://vit_models/lit/`, with BERT's vocabulary beside it); `--init-from` takes any other image
tower of this shape. It stays as it is; the text tower, a BERT-Base of 16 tokens, starts from random
parameters, where theirs started from BERT's.

Hyper-parameters: big_vision's configs/proj/image_text/lit_coco.py (learning rate 1e-3, cosine after
a warm-up of 3%, weight decay 0.01, gradients clipped to norm 1, temperature 10). Their model card
says 1.5e19 FLOP of training on CC12M and YFCC100M: with a locked image tower some 330M pairs, so
20,000 steps at batch 16,384; how they divided them is not published.

Expect less than their 72.1% zero-shot on ImageNet (their model card), which began with BERT.

`python -m flaxclip.plan lit_vit_b16 --topology v5e:8x8`: 2.9 GiB of a chip's 15.75, 48 chip-hours
at the 42% MFU that the compiler expects, some $58 at $1.20 a chip-hour.
"""

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

STEPS = 20_000


def get_config() -> TrainConfig:
    return TrainConfig(
        workdir="runs/lit_vit_b16",
        **VARIANTS["LiT-B16B_2"]._asdict(),
        compute=ComputeConfig(dtype="bfloat16"),
        init_from="LiT-B16B_2.npz",
        init_only=("^vision/",),
        batch_size=16_384,
        steps=STEPS,
        data=DataConfig(path=("pairs/*.tar",), workers=32),
        optim=OptimConfig(
            peak_lr=1e-3,
            warmup_steps=STEPS * 3 // 100,
            weight_decay=0.01,
            max_grad_norm=1.0,
            freeze=("^vision/",),
        ),
        checkpoint=CheckpointConfig(keep_every=5_000),
    )
