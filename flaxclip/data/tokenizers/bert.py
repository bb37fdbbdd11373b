"""Captions to token ids for LiT's BERT and CLIPA, by a WordPiece vocabulary that the user has."""

import json
import unicodedata
from pathlib import Path

import regex
import tokenizers
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.text_cleaning import clean, cleaning_of
from flaxclip.errors import InputError
from flaxclip.models.inputs import TextCleaning

_PAD, _UNKNOWN, _CLASS = "[PAD]", "[UNK]", "[CLS]"
_SPECIAL = (_PAD, _UNKNOWN, _CLASS, "[SEP]", "[MASK]")

# tensorflow/text, `python/ops/bert_tokenizer.py`: punctuation, and ideographs by their blocks, are
# words by themselves. The only space that is left is the ASCII one.
_ALONE = (
    r"!-/:-@\[-`{-~\p{P}"
    r"\u4E00-\u9FFF\u3400-\u4DBF\U00020000-\U0002A6DF\U0002A700-\U0002B73F"
    r"\U0002B740-\U0002B81F\U0002B820-\U0002CEAF\uF900-\uFAFF\U0002F800-\U0002FA1F"
)
_WORDS = regex.compile(rf"[{_ALONE}]|[^{_ALONE} ]+")
_IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_ACCENTS = regex.compile(r"\p{Mn}")
_CONTROLS = regex.compile(r"[\p{Cc}\p{Cf}]")
_MAX_WORD_BYTES = 100


class BertTokenizer(Tokenizer):
    """The tokens of LiT's BERT: those of `tensorflow_text.BertTokenizer` with `lower_case`.

    A row is the class token, the text's ids, then zeros. There is no separator at the end, unlike
    in BERT (big_vision, `pp/proj/flaxformer/bert_ops.py`; vision_transformer, `preprocess.py`). A
    text that is too long is cut. Texts are folded to lower case and lose their accents; a word that
    cannot be put together from the vocabulary is one unknown token. Lone surrogates become U+FFFD.
    """

    def __init__(self, context_length: int, file: str | None):
        """Read the vocabulary from `file`, of one token a line in the order of their ids.

        Raises:
            InputError: no file is given, it is no such vocabulary, or it lacks a marker.
        """
        if context_length < 2:
            raise InputError(
                f"context length {context_length} is too short\n"
                "expected at least 2: class token, one token of text"
            )
        if file is None:
            raise InputError(
                "BERT's tokenizer needs a file with its vocabulary, and the model has none\n"
                "name it with --tokenizer.file: the LiT-B16B.txt, or vocab.txt of BERT, from where "
                "the weights are from"
            )
        vocabulary = read_vocabulary(file)
        self.context_length = context_length
        self.vocab_size = len(vocabulary)
        self._class = vocabulary[_CLASS]
        self._engine = tokenizers.Tokenizer(
            WordPiece(vocabulary, unk_token=_UNKNOWN, max_input_chars_per_word=_MAX_WORD_BYTES)
        )

    def _ids(self, text: str) -> list[int]:
        return [self._class, *self._engine.encode(_words(text), is_pretokenized=True).ids]


class UncasedBertTokenizer(Tokenizer):
    """The tokens of transformers' `BertTokenizer` for bert-base-uncased, as CLIPA takes them.

    A row is the class token, the text's ids, then zeros: open_clip's `strip_sep_token` puts a zero
    in the place of the separator too, for which a text that is too long leaves room.
    """

    def __init__(self, context_length: int, file: str | None, cleaning: TextCleaning | None = None):
        """As `BertTokenizer`; `file` may be a tokenizer.json, too, of which the vocabulary counts.

        Raises:
            InputError: as that; or texts cannot be cleaned so.
        """
        self._cleaning = str(cleaning_of("bert_uncased", cleaning))
        if context_length < 3:
            raise InputError(
                f"context length {context_length} is too short\n"
                "expected at least 3: class token, one token of text, a zero"
            )
        if file is None:
            raise InputError(
                "BERT's tokenizer needs a file with its vocabulary, and the model has none\n"
                "name it with --tokenizer.file: the vocab.txt of bert-base-uncased"
            )
        vocabulary = read_vocabulary(file)
        self.context_length = context_length
        self.vocab_size = len(vocabulary)
        self._end = vocabulary[_PAD]
        self._class = vocabulary[_CLASS]
        self._engine = tokenizers.Tokenizer(
            WordPiece(vocabulary, unk_token=_UNKNOWN, max_input_chars_per_word=_MAX_WORD_BYTES)
        )
        self._engine.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        # transformers finds these in a text, too, as they are spelled.
        special = [token for token in _SPECIAL if token in vocabulary]
        self._engine.add_special_tokens(
            [tokenizers.AddedToken(token, normalized=False, special=True) for token in special]
        )
        self._separator = vocabulary.get("[SEP]")

    def _ids(self, text: str) -> list[int]:
        ids = self._engine.encode(clean(text, self._cleaning), add_special_tokens=False).ids
        return [self._class, *(0 if i == self._separator else i for i in ids)]


def read_vocabulary(file: str) -> dict[str, int]:
    """Token -> id, of a vocab.txt or a tokenizer.json.

    Raises:
        InputError: it is no such file, lacks a marker, or has a token twice.
    """
    if file.endswith(".json"):
        return _checked(_vocabulary_of_json(file), file)
    try:
        # Not by `splitlines`: some tokens are separators of lines to Unicode.
        lines = Path(file).read_bytes().decode().removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the vocabulary in {file}: {error}\n"
            "expected text of one token a line, such as vocab.txt of BERT"
        ) from None
    vocabulary = {line.removesuffix("\r"): index for index, line in enumerate(lines)}
    if len(vocabulary) != len(lines):
        raise InputError(f"the vocabulary in {file} has a token twice")
    return _checked(vocabulary, file)


def _vocabulary_of_json(file: str) -> dict[str, int]:
    try:
        model = json.loads(Path(file).read_bytes())["model"]
        vocabulary, kind = dict(model["vocab"]), model.get("type", "WordPiece")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read the vocabulary in {file}: {error!r}") from None
    if kind != "WordPiece":
        raise InputError(
            f"the vocabulary in {file} is of type {kind}\nexpected WordPiece, which is BERT's"
        )
    return vocabulary


def _checked(vocabulary: dict[str, int], file: str) -> dict[str, int]:
    for token in (_PAD, _UNKNOWN, _CLASS):
        if token not in vocabulary:
            raise InputError(
                f"the vocabulary in {file} has no token {token}\n"
                "expected text of one token a line, such as vocab.txt of BERT"
            )
    if vocabulary[_PAD] != 0:
        raise InputError(
            f"the vocabulary in {file} has {_PAD} in line {vocabulary[_PAD] + 1}\n"
            "expected it in the first: rows are filled up with id 0, which the model does not see"
        )
    return vocabulary


def _words(text: str) -> list[str]:
    """Words and punctuation marks of a text, without case and accents."""
    if text.isascii():
        text = text.lower()
    else:
        text = text.encode("utf-8", "replace").decode() if _has_surrogates(text) else text
        text = _ACCENTS.sub("", unicodedata.normalize("NFD", _nfkc_casefold(text)))
    words = _WORDS.findall(_CONTROLS.sub(" ", text))
    return [word if len(word.encode()) <= _MAX_WORD_BYTES else _UNKNOWN for word in words]


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _nfkc_casefold(text: str) -> str:
    """Unicode's NFKC_Casefold (Unicode 15, section 3.13, R6), which ICU folds by."""
    before, text = None, _IGNORABLE.sub("", text)
    while text != before:
        before, text = text, unicodedata.normalize("NFKC", text.casefold())
    return text
