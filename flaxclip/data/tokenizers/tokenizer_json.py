"""A tokenizer.json of Hugging Face's `tokenizers`, with the scores that are written in it."""

import json
from pathlib import Path

import tokenizers
from tokenizers import models


def read_tokenizer_json(file: str | Path) -> tokenizers.Tokenizer:
    """The tokenizer in `file`.

    `Tokenizer.from_file` (tokenizers 0.23) reads every eighth score or so of a Unigram vocabulary
    off by its last bit, so where two splits of a word weigh the same, as `..` `.` and `.` `..` do,
    it may choose the other one. transformers 5 builds the model from the scores as they are
    written, and so do we (`findings/unigram_scores.sh`).

    Raises:
        Exception: the file cannot be read; `tokenizers` raises nothing narrower.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    if isinstance(tokenizer.model, models.Unigram):
        model = json.loads(Path(file).read_bytes())["model"]
        scores = [(piece, score) for piece, score in model["vocab"]]
        fallback = model.get("byte_fallback", False)
        tokenizer.model = models.Unigram(scores, model["unk_id"], fallback)
    return tokenizer
