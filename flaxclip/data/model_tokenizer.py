"""A model's own tokenizer, apart from `tokenizers.py`, which workers import without Flax."""

from flaxclip.data.tokenizer import Tokenizer
from flaxclip.data.tokenizers import load_tokenizer
from flaxclip.models.clip import CLIPConfig


def model_tokenizer(model: CLIPConfig) -> Tokenizer:
    """The tokenizer that goes with `model`.

    Raises:
        InputError: see `load_tokenizer`.
    """
    return load_tokenizer(
        model.tokenizer,
        model.text.context_length,
        model.tokenizer_file,
        model.text.vocab_size,
        model.text_cleaning,
    )
