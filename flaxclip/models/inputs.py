"""What images and texts go through before a model sees them: it comes with the weights."""

import dataclasses
from typing import Literal

from flaxclip.errors import InputError

# openai/CLIP, `clip/clip.py`: statistics of its training images, in units of 0..1.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

CENTRED_MEAN = CENTRED_STD = (0.5, 0.5, 0.5)
"""Pixels from -1 to 1: big_vision's models, SigLIP and LiT among them."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """How an image becomes a square of pixels, whose side is the image tower's `image_size`."""

    resize: Literal["shortest", "squash"] = "shortest"
    """`shortest`: the shorter side is resized and the middle cut out (CLIP). `squash`: both sides
    are resized (SigLIP)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    transparency: Literal["dropped", "white"] = "dropped"
    """How evaluation makes an image RGB. `dropped`: after the resize, without alpha, as OpenAI and
    open_clip do. `white`: before it, laid over white, as transformers does. Training lays images
    over white always."""
    crop_rounding: Literal["even", "down"] = "even"
    """Where the middle begins if that is at half a pixel: `even`, at the even one of its two
    neighbours (torchvision, and so open_clip), or `down`, at the lower one (transformers)."""
    mean: tuple[float, float, float] = OPENAI_MEAN
    """Subtracted from red, green and blue in units of 0..1, on the device."""
    std: tuple[float, float, float] = OPENAI_STD
    """By which they are then divided."""

    def __post_init__(self) -> None:
        for index, value in enumerate(self.std):
            if value <= 0:
                raise InputError(f"preprocess std[{index}] is {value}\nexpected a positive number")


TextCleaning = Literal[
    "lower",
    "whitespace",
    "canonicalize",
    "transformers_clip",
    "transformers_siglip",
    "transformers_siglip2",
    "big_vision",
    "unicode_lower",
    "none",
]
"""What is done to a caption before it is taken apart; `text_cleaning` says what each does."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How captions become token ids."""

    name: Literal["clip", "siglip", "siglip2", "bert"] = "clip"
    """CLIP's BPE, the SentencePiece vocabulary of SigLIP (C4, 32,000) or SigLIP 2 (Gemma), or
    BERT's WordPiece."""
    file: str | None = None
    """Vocabulary of SigLIP's tokenizers, a SentencePiece model or a tokenizer.json; or of BERT's, a
    text file of one token a line. CLIP's BPE needs none."""
    cleaning: TextCleaning | None = None
    """What is done to a caption before its tokens are looked up, by the library that does so. If
    None, `lower` with CLIP's tokenizer, `canonicalize` with SigLIP's, `unicode_lower` with SigLIP
    2's, and with BERT's the only way that it has."""
