"""Preprocessing of images and texts, which belongs to a model's weights."""

import dataclasses
from typing import Literal

from flaxclip.errors import InputError

# openai/CLIP, `clip/clip.py`: statistics of its training images, in units of 0..1.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

# torchvision: statistics of ImageNet's training images.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CENTRED_MEAN = CENTRED_STD = (0.5, 0.5, 0.5)
"""Pixels from -1 to 1: big_vision's models, SigLIP and LiT among them."""


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Conversion of an image to a square of pixels, `image_size` of the image tower on a side, or
    to patches at its own aspect ratio.
    """

    resize: Literal["shortest", "squash", "native"] = "shortest"
    """`shortest`: the shorter side is resized and the middle cut out (CLIP). `squash`: both sides
    are resized (SigLIP). `native`: both are, by nearly the same factor, to whole patches, as many
    as an image may have (SigLIP 2's NaFlex)."""
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
    # Not in `repr`, by which embeddings are kept: of squares it says nothing.
    max_patches: int | None = dataclasses.field(default=None, repr=False)
    """With `native`, the most patches of an image. If None, those of the image tower's square."""

    def __post_init__(self) -> None:
        if self.max_patches is not None and (self.resize != "native" or self.max_patches < 1):
            raise InputError(
                f"preprocess max_patches is {self.max_patches}, and resize {self.resize}\n"
                "expected a positive number, and only with resize native: leave it out"
            )
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

    name: Literal[
        "clip", "siglip", "siglip2", "bert", "bert_uncased", "xlm_v", "mt5", "nllb", "tips"
    ] = "clip"  # fmt: skip
    """CLIP's BPE, the SentencePiece vocabulary of SigLIP (C4, 32,000) or SigLIP 2 (Gemma), BERT's
    WordPiece, as LiT uses it (bert) or CLIPA (bert_uncased), a vocabulary stored as XLM-R's is: its
    own, RoBERTa's or XLM-V's, which is MetaCLIP 2's (xlm_v), mT5's, NLLB's, or TIPSv2's
    SentencePiece vocabulary (tips)."""
    file: str | None = None
    """Vocabulary of SigLIP's tokenizers, mT5's and TIPSv2's, a SentencePiece model or a
    tokenizer.json; of BERT's, a text file of one token a line, for bert_uncased also a
    tokenizer.json; of xlm_v and nllb, a tokenizer.json. CLIP's BPE needs none."""
    cleaning: TextCleaning | None = None
    """Cleaning of captions before they are tokenized, by the library that does it. If None, `lower`
    for CLIP's tokenizer, `canonicalize` for SigLIP's, `unicode_lower` for SigLIP 2's, for LiT's its
    only one, `transformers_siglip2` for TIPSv2's, and for all others `whitespace`."""
    language: str | None = None
    """With nllb, the language of captions by the token that they begin with, such as `deu_Latn`. If
    None, `eng_Latn`, with which open_clip and CLIP_benchmark measure other languages, too: setting
    one there has no effect (findings/nllb_language.sh)."""
