"""SigLIP 2 NaFlex ViT-B/16: a trained SigLIP 2 that learns images at their own aspect ratio.

    python -m flaxclip.train siglip2_naflex_b16 --tokenizer.file tokenizer.model \
        --data.path 'gs://BUCKET/pairs/*.tar' --workdir gs://BUCKET/runs/siglip2_naflex_b16

From Tschannen et al. 2025 (SigLIP 2, arXiv 2502.14786). Section 2.4.2: lengths of 128, 256, 576,
784 and 1,024 patches, drawn for each step, all equally often; the schedule of the last tenth
stretched 3.75 times; positions learned on a grid of 16 x 16, resampled for each image; neither
self-distillation nor masked prediction. Section 2.1: 40 billion pairs, batch 32k, a cosine from
1e-3 after 20,000 steps of warm-up, of which 2.5e-5 are left after nine tenths; decoupled weight
decay 1e-4, gradients clipped to norm 1; 64 tokens of Gemma's vocabulary. Section 2.2: patches of 16
pixels. beta_2 = 0.95 from Zhai et al. 2023 (SigLIP, section 4).

Ours, otherwise than theirs:
- The weights to start from have finished their training: big_vision's `siglip2_b16_256.npz`, beside
  which its vocabulary is. Those after nine tenths of it are not public.
- The schedule is a whole cosine from those 2.5e-5. Theirs is the last tenth of one, which falls
  faster at first: its mean is a third of its start, ours a half.
- All steps have as many patches, those of 32,768 squares (open_clip's NaFlex). Theirs have 32k
  pairs, and at 1,024 patches half of that, twice as often: a fifth of the pairs at each length.
  Here the lengths have 50, 25, 11, 8 and 6% of the pairs.
- The sigmoid loss alone, without their captioning decoder (section 2.2).

Expect about the 78.5% zero-shot on ImageNet of their NaFlex model at 256 patches (big_vision's
README_siglip2.md), if the data is as good: WebLI is not public.

`python -m flaxclip.plan siglip2_naflex_b16 --topology v5e:16x16`: 14.3 GiB of a chip's 15.75, for
images of 128 patches, whose steps have the most pairs; 14,000 chip-hours at the 33% MFU that
the compiler expects, some $16,800 at $1.20 a chip-hour.
"""

import dataclasses

from flaxclip.checkpoint.manager import CheckpointConfig
from flaxclip.config import TrainConfig
from flaxclip.data.config import DataConfig
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.optim import OptimConfig

PAIRS = 15_000_000_000  # 3.75 x 4 billion
PAIRS_A_STEP = 26_266  # the mean over the lengths


def get_config() -> TrainConfig:
    spec = VARIANTS["ViT-B-16-SigLIP2-256"]
    native = dataclasses.replace(spec.preprocess, resize="native")
    return TrainConfig(
        workdir="runs/siglip2_naflex_b16",
        **spec._replace(preprocess=native)._asdict(),
        compute=ComputeConfig(dtype="bfloat16"),
        init_from="siglip2_b16_256.npz",
        batch_size=32_768,
        batch_divisor=256,
        steps=PAIRS // PAIRS_A_STEP,
        loss="sigmoid",
        data=DataConfig(
            path=("pairs/*.tar",), sequence_lengths=(128, 256, 576, 784, 1024), workers=32
        ),
        optim=OptimConfig(
            peak_lr=2.5e-5,
            warmup_steps=0,
            b2=0.95,
            weight_decay=1e-4,
            max_grad_norm=1.0,
        ),
        checkpoint=CheckpointConfig(keep_every=50_000),
    )
