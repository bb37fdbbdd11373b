"""Captions to token ids by the vocabularies of XLM-V (MetaCLIP 2), XLM-R, RoBERTa, NLLB and mT5.

The user has their files.
"""

import re
from pathlib import Path

import tokenizers

from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.sentencepiece_file import t5_engine
from flaxclip.data.tokenizers.text_cleaning import clean, cleaning_of
from flaxclip.data.tokenizers.tokenizer_json import read_tokenizer_json
from flaxclip.errors import InputError

WHOSE_FILE = {
    "xlm_v": "its tokenizer.json: that of facebook/xlm-v-base for MetaCLIP 2, of "
    "FacebookAI/xlm-roberta-base for XLM-R, of FacebookAI/roberta-base for RoBERTa",
    "nllb": "its tokenizer.json: that of facebook/nllb-200-distilled-600M",
    "mt5": "its spiece.model or a tokenizer.json: that of google/mt5-base",
}
ENGLISH = "eng_Latn"
"""The language that NLLB's captions begin with, unless another is set (transformers 5.24)."""
_STARTS = {"xlm_v": "<s>", "nllb": ENGLISH, "mt5": None}
_LANGUAGE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
"""Languages of FLORES-200 (NLLB Team 2022, table 1): ISO 639-3, and the script by ISO 15924."""
_PAD, _END = "<pad>", "</s>"


class MultilingualTokenizer(Tokenizer):
    """The tokens of XLM-V (Liang et al. 2023), XLM-R, RoBERTa, NLLB or mT5.

    A row is the start marker, if there is one, the text's ids, the end marker, then padding. A text
    that is too long is cut so that the end marker stays last. Markers spelt out in a text are
    markers.
    """

    def __init__(
        self,
        name: str,
        context_length: int,
        file: str | None,
        cleaning: str | None,
        language: str | None = None,
    ):
        """Read the vocabulary of the tokenizer `name` from `file`.

        Raises:
            InputError: no file is given, it is none, or it lacks a marker, such as that of the
                language; or texts are not cleaned so.
        """
        start = _STARTS[name]
        if context_length < (2 if start is None else 3):
            raise InputError(
                f"context length {context_length} is too short\nexpected at least "
                + ("2: " if start is None else "3: start marker, ")
                + "one token of text, end marker"
            )
        kinds = (".json", ".model") if name == "mt5" else (".json",)
        if file is None or Path(file).suffix not in kinds:
            raise InputError(
                f"tokenizer {name} needs a file, and the model has {file or 'none'}\n"
                f"name it with --tokenizer.file, {WHOSE_FILE[name]}"
            )
        self._engine = _open_engine(file)
        self._engine.no_padding()
        self._engine.no_truncation()
        self.context_length = context_length
        self.vocab_size = self._engine.get_vocab_size()
        self._start = [] if start is None else [self._marker(file, start)]
        self._pad, self._end = self._marker(file, _PAD), self._marker(file, _END)
        self._cleaning = str(cleaning_of(name, cleaning))
        if language is not None:
            self._start = [self._language(file, language)]

    def _language(self, file: str, language: str) -> int:
        if not _LANGUAGE.fullmatch(language) or self._engine.token_to_id(language) is None:
            raise InputError(
                f"the tokenizer's language is {language!r}, and the vocabulary in {file} has "
                "no token of it\nexpected a language as FLORES-200 writes it, such as deu_Latn"
            )
        return self._marker(file, language)

    def _marker(self, file: str, name: str) -> int:
        index = self._engine.token_to_id(name)
        if index is None:
            raise InputError(f"the vocabulary in {file} has no token {name}")
        return int(index)

    def _ids(self, text: str) -> list[int]:
        ids = self._engine.encode(clean(text, self._cleaning), add_special_tokens=False).ids
        return [*self._start, *ids]


def _open_engine(file: str) -> tokenizers.Tokenizer:
    try:
        if Path(file).suffix == ".model":
            return t5_engine(file)
        return read_tokenizer_json(file)
    except Exception as error:  # bare exceptions of many kinds
        raise InputError(f"cannot read the vocabulary in {file}: {error}") from None
