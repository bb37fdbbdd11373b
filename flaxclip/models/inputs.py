"""Preprocessing of images and texts, which belongs to a model's weights."""

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
    """Conversion of an image to a square of pixels, `image_size` of the image tower on a side."""

    resize: Literal["shortest", "squash"] = "shortest"
    """`shortest`: the shorter side is resized and the middle cut out (CLIP). `squash`: both sides
    are resized (SigLIP)."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    transparency: Literal["dropped", "white"] = "dropped"
    """Conversion to RGB in evaluation. `dropped`: after the resize, without alpha, as in OpenAI's
    CLIP and open_clip. `white`: before the resize, over white, as in transformers. Training always
    lays images over white."""
    crop_rounding: Literal["even", "down"] = "even"
    """Start of a centre crop that falls on half a pixel: `even`, at the even one of its two
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
"""Cleaning of a caption before it is tokenized; described in `text_cleaning`."""


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Conversion of captions to token ids."""

    name: Literal["clip", "siglip", "siglip2", "bert"] = "clip"
    """CLIP's BPE, the SentencePiece vocabulary of SigLIP (C4, 32,000) or SigLIP 2 (Gemma), or
    BERT's WordPiece."""
    file: str | None = None
    """Vocabulary of SigLIP's tokenizers, a SentencePiece model or a tokenizer.json; or of BERT's, a
    text file of one token a line. CLIP's BPE needs none."""
    cleaning: TextCleaning | None = None
    """Cleaning of captions before they are tokenized, by the library that does it. If None, `lower`
    for CLIP's tokenizer, `canonicalize` for SigLIP's, `unicode_lower` for SigLIP 2's, and for
    BERT's its only one."""
