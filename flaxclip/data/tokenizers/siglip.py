"""Captions to token ids for SigLIP and SigLIP 2, by a vocabulary that the user has."""

from pathlib import Path
from typing import Literal

import sentencepiece

from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.text_cleaning import clean, cleaning_of
from flaxclip.data.tokenizers.tokenizer_json import read_tokenizer_json
from flaxclip.errors import InputError


class SigLIPTokenizer(Tokenizer):
    """SigLIP's and SigLIP 2's tokens.

    A row is the text's ids, the end marker, then padding up to the context length: these models
    attend to padding and are read out at the last position, so a row that is padded otherwise is
    another caption. A text that is too long is cut so that the end marker stays last ("sticky" in
    big_vision, `pp/ops_text.py`).

    SigLIP pads with the end marker, SigLIP 2 with a token of its own. How texts are cleaned is not
    the model's but the library's: big_vision, which both were trained with, lower-cases ASCII;
    open_clip removes the punctuation of both; transformers' has a class for each, and a tokenizer
    without any. Ids equal those of the library whose cleaning it is.

    Markers spelt out in a text are text to a SentencePiece model, and markers to a tokenizer.json.
    """

    def __init__(
        self,
        context_length: int,
        file: str | None,
        version: Literal[1, 2],
        cleaning: str | None = None,
    ):
        """Read the vocabulary from `file`, a SentencePiece model or a tokenizer.json.

        Raises:
            InputError: no file is given, it is neither of these, or it lacks a marker; or texts
                are not cleaned so.
        """
        if context_length < 2:
            raise InputError(
                f"context length {context_length} is too short\n"
                "expected at least 2: one token of text, end marker"
            )
        if file is None:
            raise InputError(
                "SigLIP's tokenizer needs a file with its vocabulary, and the model has none\n"
                "name it with --tokenizer.file: the spiece.model, tokenizer.model or "
                "tokenizer.json from where the weights are from"
            )
        self.context_length = context_length
        self._vocabulary = open_vocabulary(file)
        self.vocab_size = self._vocabulary.size
        own = cleaning_of("siglip" if version == 1 else "siglip2", cleaning)
        assert own is not None, "only BERT's has no name"
        self._cleaning = own
        self._end = self._marker(file, "<eos>", "</s>")
        self._pad = self._end if version == 1 else self._marker(file, "<pad>")

    def _marker(self, file: str, *names: str) -> int:
        for name in names:
            index = self._vocabulary.find(name)
            if index is not None:
                return index
        raise InputError(f"the vocabulary in {file} has no token {' or '.join(names)}")

    def _ids(self, text: str) -> list[int]:
        return self._vocabulary.encode(clean(text, self._cleaning))


class _SentencePiece:
    """The vocabulary in a SentencePiece model."""

    def __init__(self, file: str):
        self._processor = sentencepiece.SentencePieceProcessor(model_file=file)
        self.size = self._processor.get_piece_size()
        self.unknown: int | None = self._processor.unk_id()

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def find(self, token: str) -> int | None:
        index = self._processor.piece_to_id(token)
        return None if index == self._processor.unk_id() else index


class _TokenizerJSON:
    """The vocabulary in a tokenizer.json of Hugging Face's `tokenizers`."""

    def __init__(self, file: str):
        self._engine = read_tokenizer_json(file)
        self._engine.no_padding()
        self._engine.no_truncation()
        self.size = self._engine.get_vocab_size()
        self.unknown: int | None = self._engine.token_to_id("<unk>")

    def encode(self, text: str) -> list[int]:
        return self._engine.encode(text, add_special_tokens=False).ids

    def find(self, token: str) -> int | None:
        return self._engine.token_to_id(token)


def open_vocabulary(file: str) -> _SentencePiece | _TokenizerJSON:
    """The vocabulary in a file; raises InputError if there is none."""
    """The vocabulary in a file; raises InputError if there is none."""
    kind = _TokenizerJSON if Path(file).suffix == ".json" else _SentencePiece
    try:
        return kind(file)
    except Exception as error:  # both libraries raise bare exceptions of many kinds
        raise InputError(
            f"cannot read the vocabulary in {file}: {error}\n"
            "expected a SentencePiece model, or a tokenizer.json of Hugging Face"
        ) from None
